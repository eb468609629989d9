import json
import os
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from paths import ROOT
from tests.training.data.test_dataset import encode, make_folder, make_shards, make_zip, random_image, some_files
from training.data.check import DatasetCheck, format_summary

NAMES = [f"00000/img{i:08d}.png" for i in range(20)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def check(path):
    """Sorted kinds and messages, and the summary."""
    problems = []
    summary = DatasetCheck(path, problems.append, workers=1).run()
    counts = {kind: sum(p.kind == kind for p in problems) for kind in {p.kind for p in problems}}
    assert summary.problems == counts and all("\n" not in p.message for p in problems)
    return problems, summary


def named(problems, kind):
    return sorted(p.message for p in problems if p.kind == kind)


def assert_named(problems, kind, *parts):
    """Exactly these problems of a kind; each part stands in the message at its place."""
    messages = named(problems, kind)
    assert len(messages) == len(parts), messages
    for part in parts:
        assert any(part in message for message in messages), (part, messages)


def damaged_files():
    """20 images of which several are bad, the first one included, and other files."""
    labels = [i % 4 for i in range(20)]
    files = some_files(20, labels)
    files[NAMES[0]] = encode(random_image(0, side=32))
    files[NAMES[3]] = files[NAMES[3]][:200]
    files[NAMES[4]] = encode(random_image(4, channels=1))
    files[NAMES[5]] = b"not an image"
    png = bytearray(files[NAMES[6]])
    png[png.index(b"IEND") - 6] ^= 1  # In the checksum of the pixels.
    files[NAMES[6]] = bytes(png)
    files[NAMES[7]] = encode(Image.new("1", (16384, 16384)))
    files[NAMES[8]] = encode(Image.new("L", (9000, 9000)))
    files[NAMES[9]] = encode(random_image(9)[:, :8])
    files[NAMES[10]] = encode(Image.new("RGBA", (16, 16)))
    exif = Image.Exif()
    exif[0x112] = 6
    files[NAMES[11]] = encode(random_image(11), exif=exif)
    files["readme.txt"] = files["more/data.bin"] = b"x"
    return files


def assert_images_found(problems):
    assert_named(problems, "unreadable", NAMES[3], NAMES[5])
    assert_named(problems, "huge", NAMES[7], f"{NAMES[8]}")
    assert_named(problems, "size", f"{NAMES[0]} in", f"{NAMES[9]} in")
    assert_named(problems, "mode", f"{NAMES[4]} in", f"{NAMES[10]} in")
    assert_named(problems, "turned", f"{NAMES[11]} in")
    assert any("32x32 RGB, expected 16x16 RGB" in message for message in named(problems, "size"))


def test_clean_datasets(tmp_path):
    files = some_files(20, [i % 3 for i in range(20)])
    paths = [make_zip(tmp_path / "a.zip", files), make_folder(tmp_path / "b", files),
             make_shards(tmp_path / "c", files, [i % 3 for i in range(20)], [7, 13])]
    for path in paths:
        problems, summary = check(path)
        assert not problems and (summary.num_images, summary.resolution, summary.num_channels) == (20, 16, 3)
        assert summary.labels.per_class == (6, 7.0, 7) and summary.labels.width == 3 and summary.left_out == "none"
        assert summary.num_bytes == sum(len(data) for name, data in files.items() if name != "dataset.json")
        assert "min 6, median 7, max 7" in format_summary(summary)
    assert check(make_zip(tmp_path / "v.zip", some_files(3, [[0.5, i] for i in range(3)])))[1].labels == (2, None)
    assert check(make_zip(tmp_path / "n.zip", some_files(3)))[1].labels is None


@pytest.mark.parametrize("kind", ["zip", "folder", "shards"])
def test_every_bad_image_is_named(tmp_path, kind):
    files = damaged_files()
    if kind == "folder":
        path = make_folder(tmp_path / "a", files)
    elif kind == "zip":
        path = make_zip(tmp_path / "a.zip", files)
    else:
        path = tmp_path / "a"
        path.mkdir()
        make_zip(path / "1.zip", files)
    problems, summary = check(path)
    assert_images_found(problems)
    assert_named(problems, "checksum", NAMES[6])
    assert set(summary.problems) == {"unreadable", "huge", "size", "mode", "checksum", "turned"}
    assert summary.num_images == 20 and summary.resolution == 16
    text = format_summary(summary)
    assert "2 files (" in text and ".bin: 1, first more/data.bin" in text and ".txt: 1, first " in text
    assert "20, " in text and "16x16, 3 channels" in text and "10: " in text


def test_names_and_checksums_of_a_zip(tmp_path):
    good = encode(random_image(0))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as f:
        for name in ("a.png", "b.png", "a.png", "../c.png", "/d.png", "line\nbreak.png", "x/../../e.png"):
            f.writestr(name, good)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT", content.index(b"b.png")) + 9] ^= 1
    path.write_bytes(content)
    problems, summary = check(path)
    assert_named(problems, "duplicate", "a.png")
    assert_named(problems, "name", "../c.png", "/d.png", "x/../../e.png")
    assert_named(problems, "checksum", "b.png")
    assert summary.num_images == 7 and len(problems) == 5
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert_named(check(path)[0], "unreadable", "x/../../e.png in")


def test_every_bad_label_is_named(tmp_path):
    files = some_files(20)
    labels = [[name, i % 4] for i, name in enumerate(NAMES)]
    labels[0][1] = "cat"
    labels[1][1] = [1.0]
    labels[2][1] = -1
    labels[3][1] = 10**9
    del labels[4]
    labels += [["nowhere.png", 1], [NAMES[5], 2], 7, ["x"], [NAMES[6], None]]
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    problems, summary = check(make_zip(tmp_path / "a.zip", files))
    assert_named(problems, "label", '"cat"', "[1.0]", "is -1", "1000000000", f"no label for {NAMES[4]}", "nowhere.png",
                 f"second label for {NAMES[5]}", "found 7", 'found ["x"]', f"second label for {NAMES[6]}")
    assert summary.labels.width == 4 and summary.labels.per_class == (3, 4.0, 4) and len(problems) == 10
    vectors = [[name, [0.5, i]] for i, name in enumerate(NAMES)]
    vectors[0][1], vectors[1][1], vectors[2][1] = [1.0], 3, [float("nan"), 1]
    files["dataset.json"] = json.dumps({"labels": vectors}).encode()
    problems, summary = check(make_zip(tmp_path / "b.zip", files))
    assert_named(problems, "label", f"{NAMES[0]} is [1.0]", f"{NAMES[1]} is 3", f"{NAMES[2]} is [NaN, 1]")
    assert summary.labels.width == 2
    for broken in (b"{", b'{"labels": 3}'):
        files["dataset.json"] = broken
        assert_named(check(make_folder(tmp_path / "c", files))[0], "label", "dataset.json of")


def test_damaged_archives_are_a_line_each(tmp_path):
    labels = [0] * 8
    path = make_shards(tmp_path / "x", some_files(8, labels), labels, [2, 2, 2, 2])
    (path / "x-00000.zip").write_bytes((path / "x-00000.zip").read_bytes()[:-30])
    content = bytearray((path / "x-00001.zip").read_bytes())
    content[content.index(b"PK\1\2")] = 0
    (path / "x-00001.zip").write_bytes(content)
    make_zip(path / "x-00002.zip", some_files(2))
    (path / "dataset.json").write_text("{}")
    problems, summary = check(path)
    assert_named(problems, "archive", "x-00000.zip is no zip", "x-00001.zip is a damaged zip")
    assert_named(problems, "label", "x-00002.zip has no labels", "stands beside the zips")
    assert summary.num_images == 4
    (tmp_path / "empty").mkdir()
    assert_named(check(tmp_path / "empty")[0], "archive", "no images")


def run(*args):
    return subprocess.run([sys.executable, ROOT / "dataset_tool.py", "check", *args], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_command(tmp_path):
    clean = make_zip(tmp_path / "a.zip", some_files(20))
    done = run(clean, "--workers=1")
    assert done.returncode == 0 and "Problems    none" in done.stdout and "img/s" in done.stderr
    bad = make_zip(tmp_path / "b.zip", damaged_files())
    done = run(bad)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == 10 + 6 and "Traceback" not in done.stderr
    assert sum(f"image {NAMES[3]} in {bad}" in line for line in lines) == 1
    done = run(tmp_path / "nothing")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("Error: dataset") and not done.stdout
    assert run().returncode == 2 and run(clean, "--workers=0").returncode == 2
