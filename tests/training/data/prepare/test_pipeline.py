import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from dataset_fakes import contents, encoded, huge_png, left_behind, noise, save
from dnnlib.util import UserError
from training.data.dataset import ImageFolderDataset
from training.data.prepare import writer
from training.data.prepare.array_sources import SyntheticSource
from training.data.prepare.conversion import ConversionOptions
from training.data.prepare.pipeline import write_dataset
from training.data.prepare.source import Record, Source, images_at_once
from training.data.prepare.sources import open_source

SMALL = ConversionOptions(width=8, height=8, transform="center-crop")


class Numbers(Source):
    """Grey images of one number each; `trouble` does something at one of them."""

    accepts = "numbers"
    labels = "numbers"

    def __init__(self, count, trouble=lambda key: None):
        self._count, self._trouble = count, trouble

    @classmethod
    def matches(cls, path):
        return False

    @classmethod
    def open(cls, path, options):
        raise NotImplementedError

    def __len__(self):
        return self._count

    def records(self):
        for i in range(self._count):
            yield Record(i, i % 7)

    def load(self, key):
        self._trouble(key)
        return Image.new("L", (8, 8), key % 256)

    def describe(self, key):
        return f"number {key}"


def test_bytes_do_not_depend_on_workers_or_time(tmp_path):
    for i in range(150):
        save(tmp_path / f"in/{'abc'[i % 3]}/{i}.{'png' if i % 2 else 'jpg'}", noise(i, 20 + i % 5, 24))
    for dest in ("1.zip", "2.zip", "3.zip", "2 again.zip"):
        summary = write_dataset(open_source(str(tmp_path / "in")), tmp_path / dest, options=SMALL, workers=int(dest[0]))
        assert summary[:3] == (150, 8, 3)
    data = (tmp_path / "1.zip").read_bytes()
    assert all((tmp_path / name).read_bytes() == data for name in ("2.zip", "3.zip", "2 again.zip"))
    for workers in (1, 2):
        write_dataset(open_source(str(tmp_path / "in")), tmp_path / f"shards{workers}/s", options=SMALL,
                      workers=workers, shard_size=40)
    assert all(ImageFolderDataset(tmp_path / dest).resize_filter == "lanczos" for dest in ("1.zip", "shards1/s"))
    for name in left_behind(tmp_path / "shards1/s"):
        assert (tmp_path / "shards1/s" / name).read_bytes() == (tmp_path / "shards2/s" / name).read_bytes()


def test_order_with_many_portions(tmp_path):
    write_dataset(Numbers(1000), tmp_path / "a", workers=3)
    dataset = ImageFolderDataset(tmp_path / "a", use_labels=True)
    assert [int(dataset[i][0][0, 0, 0]) for i in range(1000)] == [i % 256 for i in range(1000)]
    assert dataset.labels.argmax(axis=1).tolist() == [i % 7 for i in range(1000)]


def test_portions_are_about_a_million_pixels():
    assert [images_at_once(side) for side in (4, 128, 256, 1024, 8192)] == [64, 64, 16, 1, 1]


@pytest.fixture
def some_bad(tmp_path):
    for i in range(40):
        save(tmp_path / f"in/{i:02d}.png", noise(i))
    for i in (0, 1, 5, 30, 31, 32, 33, 34):
        (tmp_path / f"in/{i:02d}.png").write_bytes(encoded(noise(i))[:200])
    (tmp_path / "in/07.png").write_bytes(huge_png())
    labels = [[f"{i:02d}.png", i] for i in range(40)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_stop_or_are_skipped_and_counted(some_bad, capsys, workers):
    source = open_source(str(some_bad / "in"))
    with pytest.raises(UserError, match="image 00.png in .* can't be decoded .*--skip-bad"):
        write_dataset(source, some_bad / "out.zip", workers=workers)
    assert left_behind(some_bad) == ["in"]
    summary = write_dataset(source, some_bad / "out.zip", workers=workers, skip_bad=True)
    assert summary.num_images == 31 and summary.counts["bad"] == 9 == sum(summary.counts.values())
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "img/s" not in line]
    named = [line for line in lines if line.startswith("bad: image ")]
    assert [line[11:17] for line in named] == ["00.png", "01.png", "05.png", "07.png", "30.png"]
    assert "9 of 40 images can't be read, and were skipped" in lines
    good = [i for i in range(40) if i not in (0, 1, 5, 7, 30, 31, 32, 33, 34)]
    dataset = ImageFolderDataset(some_bad / "out.zip", use_labels=True)
    assert dataset.labels.argmax(axis=1).tolist() == good
    for k, i in enumerate(good):
        np.testing.assert_array_equal(dataset[k][0], noise(i).transpose(2, 0, 1))
        assert dataset.get_name(k) == f"00000/img{k:08d}.png"


def test_none_left(tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(i))
        save(tmp_path / f"bad/{i}.png", noise(i))
        (tmp_path / f"bad/{i}.png").write_bytes(b"no image")
    wide = ConversionOptions(width=32, height=16, transform="center-crop-letterbox")
    with pytest.raises(UserError, match="none of the 3 images can be used: image 0.png .* smaller than the 32x16"):
        write_dataset(open_source(str(tmp_path / "in")), tmp_path / "a.zip", options=wide)
    with pytest.raises(UserError, match="none of the 3 images can be read"):
        write_dataset(open_source(str(tmp_path / "bad")), tmp_path / "a.zip", skip_bad=True)
    assert left_behind(tmp_path) == ["bad", "in"]


def test_small_and_squeezed_images_are_counted(tmp_path, capsys):
    for i, size in enumerate(((20, 20), (16, 30), (8, 30))):
        save(tmp_path / f"in/{i}.png", noise(i, *size))
    source = open_source(str(tmp_path / "in"))
    wide = ConversionOptions(width=16, height=12, transform="center-crop-letterbox")
    counts = write_dataset(source, tmp_path / "a.zip", options=wide).counts
    assert counts["small"] == 1 == sum(counts.values())
    squeezed = write_dataset(source, tmp_path / "b.zip", options=ConversionOptions(width=8, height=8))
    assert (squeezed.num_images, squeezed.counts["squeezed"]) == (3, 2)
    err = capsys.readouterr().err
    assert "1 of 3 images are smaller" in err and "small: image 2.png" in err
    assert "2 of 3 images are not square" in err and "squeezed: image 1.png in" in err and "is 30x16" in err


def test_max_images_are_the_first_of_the_source(some_bad):
    summary = write_dataset(open_source(str(some_bad / "in")), some_bad / "out.zip", max_images=6, skip_bad=True)
    assert summary.num_images == 3 and summary.classes == {2: 1, 3: 1, 4: 1}
    assert ImageFolderDataset(some_bad / "out.zip", use_labels=True).labels.argmax(axis=1).tolist() == [2, 3, 4]


@pytest.mark.parametrize("dest", ["out.zip", "out"])
@pytest.mark.parametrize("at", [0, 700])
def test_killed_worker_gives_one_line(tmp_path, dest, at):
    main = os.getpid()

    def die(key):
        if key == at and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="one of 2 worker processes was killed: .*memory"):
        write_dataset(Numbers(1000, die), tmp_path / dest, workers=2)
    assert left_behind(tmp_path) == []


def test_mistakes_in_the_program_are_not_hidden(tmp_path):
    def fail(key):
        if key == 500:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_dataset(Numbers(1000, fail), tmp_path / "a.zip", workers=2)
    assert left_behind(tmp_path) == []


# --- Where it is written.


def test_shards(tmp_path):
    for i in range(10):
        save(tmp_path / f"in/{i // 4}/{i}.png", noise(i))
    source = open_source(str(tmp_path / "in"))
    write_dataset(source, tmp_path / "set", shard_size=4)
    assert left_behind(tmp_path / "set") == ["set-00000.zip", "set-00001.zip", "set-00002.zip"]
    assert left_behind(tmp_path) == ["in", "set"]
    seen = []
    for shard, numbers in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])):
        files = contents(tmp_path / f"set/set-0000{shard}.zip")
        names = [f"00000/img{n:08d}.png" for n in numbers]
        assert list(files) == [*names, "dataset.json"]
        assert json.loads(files["dataset.json"]) == {"labels": [[name, n // 4] for name, n in zip(names, numbers)]}
        dataset = ImageFolderDataset(tmp_path / f"set/set-0000{shard}.zip")
        seen += [dataset[i][0] for i in range(len(dataset))]
    np.testing.assert_array_equal(np.stack(seen), np.stack([noise(i).transpose(2, 0, 1) for i in range(10)]))
    write_dataset(source, tmp_path / "set", shard_size=5, overwrite=True)
    assert left_behind(tmp_path / "set") == ["set-00000.zip", "set-00001.zip"]
    unlabelled = open_source(str(tmp_path / "in/0"))
    write_dataset(unlabelled, tmp_path / "set", shard_size=9, overwrite=True)
    assert json.loads(contents(tmp_path / "set/set-00000.zip")["dataset.json"]) == {"labels": None}
    with pytest.raises(UserError, match="--shard-size writes several"):
        write_dataset(unlabelled, tmp_path / "x.zip", shard_size=9)


def test_names_of_shards_sort_in_order(tmp_path):
    for most_images, digits in ((10, 5), (100_000, 5), (100_001, 6)):
        with writer.open_writer(tmp_path / str(most_images), labelled=False, most_images=most_images,
                                shard_size=1) as shards:
            shards.add(encoded(noise(0)), None)
        assert left_behind(tmp_path / str(most_images)) == [f"{most_images}-{'0' * digits}.zip"]


def test_overwrite(tmp_path):
    (tmp_path / "folder").mkdir()  # An empty folder is nobody's work.
    for name in ("folder", "a.zip"):
        write_dataset(SyntheticSource(num_images=1005, resolution=8), tmp_path / name)
        write_dataset(SyntheticSource(num_images=3, resolution=8), tmp_path / name, overwrite=True)
        assert len(ImageFolderDataset(tmp_path / name)) == 3
    write_dataset(SyntheticSource(num_images=3, resolution=8), tmp_path / "folder", overwrite=True, shard_size=2)
    write_dataset(SyntheticSource(num_images=3, resolution=8), tmp_path / "folder", overwrite=True)
    assert left_behind(tmp_path) == ["a.zip", "folder"]
    assert left_behind(tmp_path / "folder") == ["00000", "dataset.json"]


@pytest.mark.parametrize("shard_size", [None, 2])
def test_the_old_dataset_stays_where_the_new_one_fails(tmp_path, shard_size, monkeypatch):
    def fail(key):
        if key == 100:
            raise UserError("image 100 is bad")

    write_dataset(Numbers(5), tmp_path / "a", shard_size=shard_size)
    write_dataset(Numbers(5), tmp_path / "a.zip")
    before = left_behind(tmp_path / "a"), (tmp_path / "a.zip").read_bytes()
    for dest, size in (("a", shard_size), ("a.zip", None)):
        with pytest.raises(UserError, match="image 100 is bad"):
            write_dataset(Numbers(300, fail), tmp_path / dest, shard_size=size, overwrite=True)
    moves = []
    replace = os.replace

    def fail_once(source, target):
        moves.append(target)
        if len(moves) == 2:  # The old folder has been moved aside by now.
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(UserError, match="can't write .*/a: No space left"):
        write_dataset(Numbers(5), tmp_path / "a", shard_size=shard_size, overwrite=True)
    assert len(moves) == 3
    assert (left_behind(tmp_path / "a"), (tmp_path / "a.zip").read_bytes()) == before
    assert left_behind(tmp_path) == ["a", "a.zip"]
