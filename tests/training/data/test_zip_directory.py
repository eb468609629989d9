import json
import os
import random
import subprocess
import sys
import zipfile

import pytest

from benchmarks.dataset_reading import READ_ALONE, write_fake_zip
from dnnlib.util import UserError
from paths import ROOT
from training.data.image_files import ImageFiles, list_archive
from training.data.image_names import METADATA_NAME, why_left_out

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def make(path, names, *, comment=b"", prefix=b"", streamed=False, method=zipfile.ZIP_STORED):
    """Files whose content is their number."""
    path.write_bytes(prefix)
    with (Unseekable(path) if streamed else open(path, "r+b")) as f:
        f.seek(len(prefix)) if not streamed else None
        with zipfile.ZipFile(f, "w" if not prefix else "a", method) as archive:
            for i, name in enumerate(names):
                archive.writestr(name, f"content {i}")
            archive.comment = comment
    return path


class Unseekable:
    """As a pipe: zipfile then writes sizes and checksums behind the data."""

    def __init__(self, path):
        self._file = open(path, "wb")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()

    def write(self, data):
        return self._file.write(data)

    def flush(self):
        self._file.flush()


def open_zip(path):
    return ImageFiles(str(path), [list_archive(str(path))])


def assert_as_zipfile(path):
    with zipfile.ZipFile(path) as archive:
        expected = {info.filename: info for info in archive.infolist()}
        names = sorted(name for name in expected if why_left_out(name) is None)
        contents = [archive.read(expected[name]) for name in names]
    files = open_zip(path)
    assert files.names() == names == [files.get_name(i) for i in range(len(files))]
    assert [files.read(i) for i in range(len(files))] == contents
    assert list(zip(*files.checksums())) == [(expected[name].file_size, expected[name].CRC) for name in names]
    assert files.read_metadata(0) == (archive_metadata(path) if METADATA_NAME in expected else None)


def archive_metadata(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(METADATA_NAME)


REGULAR = [f"00000/img{i:08d}.png" for i in range(300)]
MIXED = ["b.png", "a.JPG", "dir/", "dataset.json", "x.txt", "\u00e9.png", "dir/c.webp", "png", ".png", "b.png", "z.PNG",
         "__MACOSX/._b.png", "@eaDir/b.png", "dir/.x/d.png", "../up.png", "./e.jfif", "a/Thumbs.db", "b/dataset.json"]


@pytest.mark.parametrize("names", [
    REGULAR, REGULAR[::-1], [*REGULAR, "dataset.json"], [*REGULAR[:9], *MIXED], MIXED, [],
])
@pytest.mark.parametrize("options", [
    {}, {"comment": b"a comment"}, {"prefix": b"#!/bin/sh\n"}, {"streamed": True},
    {"method": zipfile.ZIP_DEFLATED},
])
def test_agrees_with_zipfile(tmp_path, names, options):
    assert_as_zipfile(make(tmp_path / "a.zip", names, **options))


def test_names_of_many_lengths_agree_with_zipfile(tmp_path):
    rng = random.Random(0)
    irregular = [f"{'x' * rng.randint(1, 99)}{i}.png" for i in range(200)]
    assert_as_zipfile(make(tmp_path / "a.zip", [*REGULAR, *irregular, *(f"y{i:04d}.png" for i in range(300))]))


def test_zip64_agrees_with_zipfile(tmp_path, monkeypatch):
    """Offsets of more than 32 bits, without writing 4 GiB: a hole in front of the entries."""
    path = tmp_path / "a.zip"
    with open(path, "wb") as f:
        f.seek((1 << 32) + 5)
        with zipfile.ZipFile(f, "w") as archive:
            for i in range(70):
                archive.writestr(f"{i:03d}.png", f"content {i}")
            with archive.open(zipfile.ZipInfo("zip64.png"), "w", force_zip64=True) as entry:
                entry.write(b"more")
    assert path.stat().st_blocks * 512 < 1 << 20
    assert_as_zipfile(path)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    assert_as_zipfile(make(tmp_path / "b.zip", REGULAR))  # The count stands in the zip64 end record.


def test_fake_zip_is_a_zip(tmp_path):
    write_fake_zip(tmp_path / "a.zip", 5, 1500)
    assert_as_zipfile(tmp_path / "a.zip")


def changed(path, at, data):
    content = bytearray(path.read_bytes())
    at = at % len(content)
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def test_hostile_directories(tmp_path):
    def fails(at, data, *parts):
        path = changed(make(tmp_path / "a.zip", REGULAR[:20]), at, data)
        with pytest.raises(UserError) as e:
            open_zip(path)
        assert "a.zip" in str(e.value) and "\n" not in str(e.value)
        for part in parts:
            assert part in str(e.value)

    good = make(tmp_path / "a.zip", REGULAR[:20]).read_bytes()
    first = good.index(b"PK\1\2")
    record = good.index(b"PK\1\2", first + 4)
    fails(-22, b"XX", "no zip")
    fails(-22 + 10, b"\7\0", "20 entries, but its end says 7")
    fails(-22 + 12, b"\xff\xff\xff\x7f")
    fails(-22 + 12, b"\x30\0\0\0")
    fails(-22 + 16, b"\xff\xff\xff\x7f")
    fails(record, b"XX", "magic number")
    fails(record + 28, b"\xff\xff")
    fails(record + 42, b"\xff\xff\xff\x7f", "no room")
    fails(record + 42, good[first + 42 : first + 46], "over each other")
    fails(record + 20, b"\xff\xff\0\0", "no room")
    fails(record + 8, b"\1\0", REGULAR[1], "encrypted")
    fails(record + 10, b"\x0c\0", REGULAR[1], "unusual method")


def test_no_damage_makes_anything_but_a_user_error(tmp_path):
    good = make(tmp_path / "good.zip", [*REGULAR[:6], "dataset.json"], comment=b"x").read_bytes()
    rng, path, num_errors = random.Random(0), tmp_path / "a.zip", 0
    begin = good.index(b"PK\1\2")
    for _ in range(400):
        content = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(begin, len(content))] = rng.choice([0, 1, 255, rng.randrange(256)])
        os.truncate(path, 0) if path.exists() else None
        path.write_bytes(content if rng.random() < 0.8 else content[: rng.randrange(len(content))])
        try:
            files = open_zip(path)
            files.read_metadata(0), files.checksums(), files.names()
            [files.read(i) for i in range(len(files))]
        except UserError as e:
            num_errors += 1
            assert "\n" not in str(e)
    assert num_errors > 200


def test_entry_that_is_elsewhere_is_named(tmp_path):
    path = make(tmp_path / "a.zip", REGULAR[:3])
    changed(path, path.read_bytes().index(b"img00000001") + 1, b"X")
    with pytest.raises(UserError, match="img00000001.*not where the zip's directory says"):
        open_zip(path).read(1)


def test_open_files_are_bounded(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc here")
    for i in range(150):
        assert open_zip(make(tmp_path / f"{i}.zip", ["a.png"])).read(0) == b"content 0"
    assert len(os.listdir("/proc/self/fd")) <= before + 64


def test_reader_of_many_images_is_small_and_opens_quickly(tmp_path):
    for i in range(2):
        write_fake_zip(tmp_path / f"x-{i:05d}.zip", i * 100_000, 100_000)
    command = [sys.executable, "-c", READ_ALONE, tmp_path, "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["rss_mb"] < 120 and figures["opening_sec"] < 15 and not figures["torch"]
