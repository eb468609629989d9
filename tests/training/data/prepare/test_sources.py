import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dataset_fakes import (
    cifar10_members,
    contents,
    encoded,
    huge_png,
    noise,
    python2_batch,
    python3_batch,
    save,
    write_idx,
    write_lmdb,
    write_tar,
)
from dnnlib.util import UserError
from training.data.dataset import ImageFolderDataset
from training.data.prepare.array_sources import CifarSource, MnistSource, SyntheticSource
from training.data.prepare.conversion import BadImage, ConversionOptions
from training.data.prepare.image_sources import FilesSource, LmdbSource
from training.data.prepare.pipeline import write_dataset
from training.data.prepare.source import SourceOptions, count_classes
from training.data.prepare.sources import open_source
from training.data.scenes import LEVELS, draw_scenes


def convert(path, dest, *, width=None, transform=None, color="auto", max_images=None, **options):
    source = open_source(str(path), SourceOptions(**options))
    write_dataset(source, dest, max_images=max_images,
                  options=ConversionOptions(width=width, height=width, transform=transform, color=color))
    return source


def described(source, max_images=None):
    return source.labels.describe(count_classes(source, max_images))


def check(dest, images, labels):
    """A dataset, as training reads it, holds these: uint8 [N, H, W] or [N, H, W, 3]."""
    dataset = ImageFolderDataset(dest, use_labels=labels is not None)
    assert len(dataset) == len(images)
    for i, image in enumerate(images):
        expected = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        np.testing.assert_array_equal(dataset[i][0], expected, err_msg=f"image {i}")
    if labels is not None:
        given = np.stack([dataset[i][1] for i in range(len(images))])
        expected = np.eye(dataset.label_dim)[labels] if np.ndim(labels) == 1 else labels
        np.testing.assert_array_equal(given, expected)
    else:
        assert json.loads(contents(dest)["dataset.json"]) == {"labels": None}


# --- Folders and zips.


def test_folders_and_zips_in_the_order_of_names(tmp_path):
    images = {name: noise(i) for i, name in enumerate(("b.png", "a/z.png", "a/b.webp", "10.bmp", "9.png"))}
    for name, image in images.items():
        save(tmp_path / "in" / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as f:
        for name in images:
            f.write(tmp_path / "in" / name, name)
    for path in ("in", "in.zip"):
        source = convert(tmp_path / path, tmp_path / "out.zip", labels="none")
        assert isinstance(source, FilesSource) and source.labels is None
        check(tmp_path / "out.zip", [images[name] for name in sorted(images)], None)
        (tmp_path / "out.zip").unlink()


def test_a_zip_is_known_by_its_content(tmp_path):
    with zipfile.ZipFile(tmp_path / "images", "w") as f:
        f.writestr("1.png", encoded(noise(0)))
    assert isinstance(open_source(str(tmp_path / "images")), FilesSource)


def test_labels_of_dataset_json(tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(i, channels=1))
    labels = [[f"{i}.png", [0.5 * i, 1.25]] for i in range(3)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    assert convert(tmp_path / "in", tmp_path / "a.zip").labels.describe(Counter()) == "vectors of 2 from dataset.json"
    images = [noise(i, channels=1) for i in range(3)]
    check(tmp_path / "a.zip", images, np.float32([label for _, label in labels]))
    convert(tmp_path / "in", tmp_path / "b.zip", labels="none", max_images=2)
    check(tmp_path / "b.zip", images[:2], None)


def test_sub_folders_are_classes_but_divisions_are_not(tmp_path):
    for i, name in enumerate(("cat/2.png", "dog/1.png", "dog/deep/3.png")):
        save(tmp_path / "animals" / name, noise(i))
    source = convert(tmp_path / "animals", tmp_path / "a.zip")
    assert described(source) == "2 classes from sub-folders: cat (1), dog (2)"
    check(tmp_path / "a.zip", [noise(i) for i in range(3)], [0, 1, 1])
    for name in ("00000/1.png", "01000/2.png"):
        save(tmp_path / "ffhq" / name, noise(0))
    convert(tmp_path / "ffhq", tmp_path / "b.zip")
    check(tmp_path / "b.zip", [noise(0)] * 2, None)
    convert(tmp_path / "ffhq", tmp_path / "c.zip", labels="folders")
    check(tmp_path / "c.zip", [noise(0)] * 2, [0, 1])


def test_split_takes_the_images_below_it(tmp_path):
    """AFHQ: all, one split, or one kind of animal."""
    names = ["train/cat/1.png", "train/dog/2.png", "train/wild/3.png", "test/cat/4.png", "test/dog/5.png"]
    with zipfile.ZipFile(tmp_path / "afhq.zip", "w") as f:
        for i, name in enumerate(names):
            save(tmp_path / "afhq" / name, noise(i))
            f.writestr(f"afhq_v2/{name}", encoded(noise(i)))
    for path in ("afhq", "afhq.zip"):
        source = convert(tmp_path / path, tmp_path / f"{path}-out.zip", split="train")
        assert described(source) == "3 classes from sub-folders: cat (1), dog (1), wild (1)"
        assert source.notes == ("taking the 3 images below train/, and not the 2 others",)
        check(tmp_path / f"{path}-out.zip", [noise(0), noise(1), noise(2)], [0, 1, 2])
    assert len(convert(tmp_path / "afhq/train", tmp_path / "b.zip", split="train").labels.classes) == 3
    assert convert(tmp_path / "afhq/train/dog", tmp_path / "c.zip", split="train").labels is None
    check(tmp_path / "c.zip", [noise(1)], None)


@pytest.mark.parametrize("kind", ["folder", "zip", "deflated"])
def test_files_are_known_by_content_and_what_is_left_out_is_counted(tmp_path, kind):
    files = {"a.JPG": "JPEG", "b.tif": "TIFF", "c.gif": "GIF", "d": "PNG", "e.jpe": "JPEG", "f.dat": "BMP",
             "g.jp2": "JPEG2000", "i.txt": b"BMW and P5 begin like images", "j": b"", "k.heic": b"x", ".l.png": "PNG",
             "__MACOSX/._a.png": b"x", "sub/Thumbs.db": b"x", "sub/dataset.json": b"{}", ".git/m.png": "PNG",
             "n.NEF": "TIFF", "o.ppm": "PPM"}
    files = {name: data if isinstance(data, bytes) else encoded(noise(0), data) for name, data in files.items()}
    if kind == "folder":
        for name, data in files.items():
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)
    else:
        method = zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "in", "w", method) as f:
            for name, data in files.items():
                f.writestr(name, data)
    source = open_source(str(tmp_path / "in"))
    names = [source.describe(record.key).split()[1] for record in source.records()]
    assert names == ["a.JPG", "b.tif", "c.gif", "d", "e.jpe", "f.dat", "g.jp2", "o.ppm"]
    assert all(source.load(record.key).size == (16, 16) for record in source.records())
    (note,) = source.notes
    assert note.startswith(f"left out of {tmp_path}/in: 9 files (")
    for part in ("hidden: 2, first .", "of the operating system: 2, first ", ".txt: 1, first i.txt",
                 "without a suffix: 1, first j", ".heic: 1, first ", ".nef: 1, first ",
                 "dataset.json not at the top: 1, first sub/dataset.json"):
        assert part in note, (part, note)


def test_outer_folders_and_hidden_ones_are_no_classes(tmp_path):
    for name, classes in (
        (["x/y/cat/1.png", "x/y/dog/2.png", "x/.ipynb_checkpoints/3.png", "__MACOSX/x/y/cat/._1.png"], ["cat", "dog"]),
        (["cat/1.png"], ["cat"]),
        (["a/00000/1.png", "a/01000/2.png"], ["00000", "01000"]),
        ([f"{i:02d}/1.png" for i in range(25)], [f"{i:02d}" for i in range(25)]),
    ):
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as f:
            for member in name:
                f.writestr(member, encoded(noise(0)))
        source = open_source(str(tmp_path / "in.zip"), SourceOptions(labels="folders"))
        assert source.labels.classes == classes
    assert described(source).endswith(", 18 (1), 19 (1) and 5 more")
    assert described(source, 1) == "1 of 25 classes from sub-folders: 00 (1)"


ODD_NAMES = ["../up.png", "/root.png", "a\\b.png", "line\nbreak.png", "x/../../y.png"]


def test_odd_names_in_zips_are_accepted_and_never_used(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as f:
        for i, name in enumerate(ODD_NAMES):
            info = zipfile.ZipInfo("x")
            info.filename = name
            f.writestr(info, encoded(noise(i)))
    (tmp_path / "deep").mkdir()
    source = open_source(str(tmp_path / "odd.zip"))
    write_dataset(source, tmp_path / "deep/out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "odd.zip"]
    assert len(list((tmp_path / "deep/out/00000").glob("*.png"))) == 5
    order = sorted(range(5), key=lambda i: ODD_NAMES[i])
    dataset = ImageFolderDataset(tmp_path / "deep/out")
    for i, k in enumerate(order):
        np.testing.assert_array_equal(dataset[i][0], noise(k).transpose(2, 0, 1))
    assert source.describe(order.index(3)) == f"image 'line\\nbreak.png' in {tmp_path}/odd.zip"
    with zipfile.ZipFile(tmp_path / "classes.zip", "w") as f:
        for name in ("../a.png", "cat/b.png"):
            f.writestr(name, encoded(noise(0)))
    with pytest.raises(UserError, match="no name of a class"):
        open_source(str(tmp_path / "classes.zip"))


# --- LSUN.


def test_lmdb(tmp_path):
    pixels = {bytes([key]) * 20: noise(key) for key in (200, 3, 255, 90)}
    write_lmdb(tmp_path / "cat_lmdb", {key: encoded(image, "WEBP", lossless=True) for key, image in pixels.items()})
    for path in ("cat_lmdb", "cat_lmdb/data.mdb"):
        source = convert(tmp_path / path, tmp_path / "out.zip")
        assert isinstance(source, LmdbSource) and len(source) == 4
        check(tmp_path / "out.zip", [pixels[key] for key in sorted(pixels)], None)
        (tmp_path / "out.zip").unlink()
    convert(tmp_path / "cat_lmdb", tmp_path / "two.zip", max_images=2)
    check(tmp_path / "two.zip", [pixels[key] for key in sorted(pixels)[:2]], None)
    assert sorted(p.name for p in (tmp_path / "cat_lmdb").iterdir()) == ["data.mdb"]  # No lock file was made.


def test_lmdb_with_many_keys(tmp_path):
    data = encoded(noise(0, 4, 4))
    write_lmdb(tmp_path / "many_lmdb", {f"{i:05d}".encode(): data for i in range(2500)})
    keys = [record.key for record in LmdbSource(str(tmp_path / "many_lmdb")).records()]
    assert keys == [f"{i:05d}".encode() for i in range(2500)]


def damaged(data, begin, replacement):
    return data[:begin] + replacement + data[begin + len(replacement):]


def test_damaged_databases_give_one_line(tmp_path):
    """Reading in this process would end it by SIGBUS or SIGABRT in some of these cases."""
    write_lmdb(tmp_path / "good_lmdb", {bytes([i]) * 9: encoded(noise(i, 40, 40)) for i in range(60)})
    data = (tmp_path / "good_lmdb/data.mdb").read_bytes()
    path = tmp_path / "bad.mdb"
    for size in (0, 100, 4096, 5000, 8192, 20000, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated|is damaged"):
            LmdbSource(str(path))
    rng = np.random.default_rng(0)
    failed = 0
    for i in range(10):
        spoiled = bytearray(data)
        for position in rng.integers(8192, len(data), 40 if i % 2 else 400):
            spoiled[position] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            convert(path, tmp_path / f"{i}.zip", width=8)
        except UserError as e:
            failed += 1
            assert "\n" not in str(e) and "bad.mdb" in str(e) or "worker processes was killed" in str(e)
    assert failed == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.mdb", "good_lmdb"]


def test_bad_values_in_databases(tmp_path):
    write_lmdb(tmp_path / "a_lmdb", {b"bomb\n": huge_png(), b"text": b"no image"})
    source = LmdbSource(str(tmp_path / "a_lmdb"))
    with pytest.raises(BadImage, match=r"image 'bomb\\n' in .*a_lmdb announces"):
        source.load(b"bomb\n")
    with pytest.raises(BadImage, match="image text in .*a_lmdb can't be decoded"):
        source.load(b"text")
    with pytest.raises(BadImage, match="image other in .* is missing"):
        source.load(b"other")


# --- CIFAR.


@pytest.mark.parametrize("batch", [python2_batch, python3_batch])
def test_cifar10(tmp_path, batch):
    images = np.stack([noise(i, 32, 32) for i in range(23)])
    labels = np.arange(23) % 10
    members, order = cifar10_members(images.transpose(0, 3, 1, 2).reshape(23, 3072), labels, batch)
    write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    source = convert(tmp_path / "cifar-10-python.tar.gz", tmp_path / "out.zip")
    assert isinstance(source, CifarSource) and source.labels.classes[:2] == ("airplane", "automobile")
    check(tmp_path / "out.zip", images[order], labels[order])
    convert(tmp_path / "cifar-10-python.tar.gz", tmp_path / "plain.zip", labels="none", max_images=3)
    check(tmp_path / "plain.zip", images[order[:3]], None)


def test_cifar100_fine_labels(tmp_path):
    images = np.stack([noise(i, 32, 32) for i in range(5)])
    batch = python2_batch(images.transpose(0, 3, 1, 2).reshape(5, 3072), [99, 0, 5, 98, 7], "fine_labels")
    write_tar(tmp_path / "cifar-100-python.tar.gz", {"cifar-100-python/meta": b"", "cifar-100-python/train": batch})
    convert(tmp_path / "cifar-100-python.tar.gz", tmp_path / "out.zip")
    check(tmp_path / "out.zip", images, [99, 0, 5, 98, 7])


def test_python2_batches_are_what_pickle_reads():
    """The fake is as true as this: the ordinary unpickler takes it for the same."""
    images = np.random.default_rng(0).integers(0, 256, [300, 3072], dtype=np.uint8)
    batch = pickle.loads(python2_batch(images, np.arange(300) % 10), encoding="latin1")
    np.testing.assert_array_equal(batch["data"], images)
    assert batch["labels"] == [i % 10 for i in range(300)]


class Evil:
    def __reduce__(self):
        return (open, ("evil-was-here", "w"))


def test_bad_cifar_archives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros([10, 3072], np.uint8)
    good, _ = cifar10_members(images, np.arange(10))
    second = "cifar-10-batches-py/data_batch_2"
    cases = {
        "lacks data_batch_2": {name: data for name, data in good.items() if name != second},
        "data_batch_2 in .* asks for .*open": {**good, second: pickle.dumps({b"data": Evil(), b"labels": []})},
        "data_batch_2 in .* is damaged": {**good, second: good[second][:1000]},
        "2 images and 1 labels": {**good, second: python2_batch(images[:2], [1])},
        "expected one from 0 to 9": {**good, second: python2_batch(images[:2], [1, 10])},
        "no batch of CIFAR": {**good, second: python3_batch(images[:2, :100].copy(), [1, 1])},
        "holds 'imagenet/1.png'": {"imagenet/1.png": b""},
        "holds '../data_batch_1'": {"../data_batch_1": b""},
        "empty archive": {},
    }
    for expected, members in cases.items():
        write_tar(tmp_path / "a.tar.gz", members)
        with pytest.raises(UserError, match=expected) as e:
            open_source("a.tar.gz")
        assert "\n" not in str(e.value)
    write_tar(tmp_path / "a.tar.gz", good)
    data = (tmp_path / "a.tar.gz").read_bytes()
    for bad in (data[: len(data) // 2], damaged(data, len(data) // 2, bytes(50)), data[:15], b"", b"no archive" * 100):
        (tmp_path / "a.tar.gz").write_bytes(bad)
        with pytest.raises(UserError, match="a.tar.gz (can't be unpacked|is an empty|lacks|holds)"):
            open_source("a.tar.gz")
    for position in range(20, len(data) - 8, len(data) // 50):
        bad = damaged(data, position, bytes([data[position] ^ 16]))
        (tmp_path / "a.tar.gz").write_bytes(bad)
        try:
            open_source("a.tar.gz")
        except UserError:
            continue
        assert gzip.decompress(bad) == gzip.decompress(data)  # Gzip says some things in two ways.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]  # Nothing was run.


def test_archives_that_unpack_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.prepare.array_sources._MAX_ARCHIVE_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as f:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = 8 << 20
        f.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UserError, match="data_batch_1' announces 8388608 bytes"):
        open_source(str(tmp_path / "a.tar.gz"))
    members, _ = cifar10_members(np.zeros([10, 3072], np.uint8), np.arange(10))
    write_tar(tmp_path / "a.tar.gz", {**members, **{f"cifar-10-batches-py/{i}": bytes(700_000) for i in range(2)}})
    with pytest.raises(UserError, match="far more than"):
        open_source(str(tmp_path / "a.tar.gz"))


def test_the_real_cifar10_has_as_many_operations_as_are_allowed():
    images = np.zeros([10000, 3072], np.uint8)
    from training.data.prepare.array_sources import _CIFAR_10, _parse_batch

    parsed, labels = _parse_batch(python2_batch(images, [3] * 10000), _CIFAR_10, "it")
    assert parsed.shape == (10000, 3072) and labels == [3] * 10000


# --- MNIST.


def test_mnist(tmp_path):
    digits = np.stack([noise(i, 28, 28, 1) for i in range(12)])
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", digits)
    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz beside it"):
        open_source(str(tmp_path / "train-images-idx3-ubyte.gz"))
    labels = np.arange(12, dtype=np.uint8) % 10
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    source = convert(tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "out.zip")
    assert isinstance(source, MnistSource) and len(source.labels.classes) == 10
    expected = np.zeros([12, 32, 32], np.uint8)
    expected[:, 2:30, 2:30] = digits
    check(tmp_path / "out.zip", expected, labels)
    convert(tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "rgb.zip", color="rgb", labels="none")
    check(tmp_path / "rgb.zip", np.repeat(expected[..., None], 3, axis=3), None)
    (tmp_path / "train-images-idx3-ubyte.gz").rename(tmp_path / "digits.gz")
    assert isinstance(open_source(str(tmp_path / "digits.gz"), SourceOptions(labels="none")), MnistSource)


def test_bad_mnist(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(3, np.uint8))
    for array, expected in (
        (np.zeros([4, 28, 28], np.uint8), "3 labels for the 4 images"),
        (np.zeros([3, 20, 28], np.uint8), "no file of images of 28x28"),
        (np.zeros([0, 28, 28], np.uint8), "announces 0 items"),
    ):
        write_idx(images, array)
        with pytest.raises(UserError, match=expected):
            open_source(str(images))
    write_idx(images, np.zeros([3, 28, 28], np.uint8))
    unpacked, packed = gzip.decompress(images.read_bytes()), images.read_bytes()
    for data, expected in (
        (packed[: len(packed) // 2], "can't be unpacked"),
        (b"nothing", "can't be unpacked"),
        (gzip.compress(unpacked[:-1]), "fewer bytes"),
        (gzip.compress(unpacked + b"x"), "more bytes"),
        (gzip.compress(unpacked[:3]), "no file of images"),
        (gzip.compress(unpacked[:4] + b"\0\1\0\0" + unpacked[8:]), "announces 65536 items of 51380224 bytes"),
    ):
        images.write_bytes(data)
        with pytest.raises(UserError, match=expected):
            open_source(str(images))


# --- Synthetic scenes.


@pytest.mark.parametrize("source, level", [("synthetic", "full"), ("synthetic:simple", "simple")])
def test_synthetic(tmp_path, source, level):
    write_dataset(open_source(source, SourceOptions(num_images=1003, resolution=16, seed=4)), tmp_path / "a.zip")
    images, labels = draw_scenes(np.arange(1003), resolution=16, seed=4, level=level)
    check(tmp_path / "a.zip", images, labels)
    assert labels.max() == len(LEVELS[level].class_names) - 1


def test_synthetic_images_do_not_depend_on_their_number(tmp_path):
    for count, name in ((300, "a.zip"), (20, "b.zip")):
        write_dataset(SyntheticSource(num_images=count, resolution=8, seed=0), tmp_path / name)
    a, b = contents(tmp_path / "a.zip"), contents(tmp_path / "b.zip")
    assert all(a[name] == data for name, data in b.items() if name != "dataset.json")


# --- What a path is.


def test_paths_that_are_no_source(tmp_path):
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "x_lmdb").mkdir()
    for name, parts in (
        ("words.txt", ["no known kind", "folder or zip", "LSUN", "cifar-10-python.tar.gz", "MNIST", "'synthetic'"]),
        ("nothing", ["does not exist", "LSUN"]),
        ("link", ["link to nothing"]),
        ("x_lmdb", ["data.mdb", "No such file"]),
    ):
        with pytest.raises(UserError) as e:
            open_source(str(tmp_path / name))
        assert all(part in str(e.value) for part in [name, *parts]), e.value
    with pytest.raises(UserError, match="is a device or pipe"):
        open_source("/dev/zero")


def test_labels_from_folders_are_for_folders(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros([3, 28, 28], np.uint8))
    write_lmdb(tmp_path / "a_lmdb", {b"a": encoded(Image.new("RGB", (8, 8)))})
    for path in (tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "a_lmdb"):
        with pytest.raises(UserError, match="--labels=folders"):
            open_source(str(path), SourceOptions(labels="folders"))
