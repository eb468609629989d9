import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.util import UserError
from training.dataset import ImageFolderDataset
from training.loader import BatchLoader, TrainingOrder

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("GLEAD_SHARED", ROOT / "../shared"))
GOLDEN = SHARED / "golden/dataset"
golden_only = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers in {GOLDEN}")
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pytest resets our filter.
VARIANTS = ("plain", "labels", "xflip", "max", "max_seed7_xflip", "max_larger")


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def random_image(seed, side=16, channels=3):
    shape = [side, side, channels] if channels > 1 else [side, side]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as f:
        for name, data in files.items():
            f.writestr(name, data)
    return path


def make_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def some_files(count=6, labels=None, **kwargs):
    files = {f"00000/img{i:08d}.png": encode(random_image(i, **kwargs)) for i in range(count)}
    if labels is not None:
        files["dataset.json"] = json.dumps({"labels": [[name, label] for name, label in zip(files, labels)]}).encode()
    return files


def assert_user_error(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


# --- Golden numbers.


@golden_only
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["rgb_int", "gray_vec", "nolabels"])
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_golden_items(name, variant, kind, tmp_path):
    everything = json.loads((GOLDEN / "expected.json").read_text())[name]
    expected = everything["variants"][variant]
    arrays = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    path = GOLDEN / everything["zip"]
    if kind == "folder":
        path = tmp_path / name
        with zipfile.ZipFile(GOLDEN / everything["zip"]) as f:
            f.extractall(path)
    dataset = ImageFolderDataset(path, **expected["kwargs"])
    for key in ("len", "label_shape", "label_dim", "has_labels", "has_onehot_labels", "image_shape", "resolution",
                "num_channels", "name"):
        assert (len(dataset) if key == "len" else getattr(dataset, key)) == expected[key], key
    details = [dataset.get_details(i) for i in range(len(dataset))]
    assert [d.raw_idx for d in details] == expected["raw_idx"]
    assert [d.xflip for d in details] == expected["xflip"]
    assert [d.raw_label.tolist() for d in details] == expected["raw_labels"]
    assert [dataset.get_name(i) for i in range(len(dataset))] == expected["fnames"]
    for i in range(len(dataset)):
        image, label = dataset[i]
        assert image.dtype == np.uint8 and label.dtype == np.float32
        np.testing.assert_array_equal(image, arrays[f"out/{variant}/images"][i])
        np.testing.assert_array_equal(label, arrays[f"out/{variant}/labels"][i])
        np.testing.assert_array_equal(dataset.get_label(i), label)


# --- The dataset.


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_and_folder_agree(tmp_path, compression):
    files = some_files(labels=[3, 0, 1, 2, 2, 0])
    a = ImageFolderDataset(make_zip(tmp_path / "a.zip", files, compression), use_labels=True)
    b = ImageFolderDataset(make_folder(tmp_path / "b", files), use_labels=True)
    assert len(a) == len(b) == 6 and a.label_dim == 4
    for i in range(6):
        np.testing.assert_array_equal(a[i][0], random_image(i).transpose(2, 0, 1))
        np.testing.assert_array_equal(a[i][0], b[i][0])
        np.testing.assert_array_equal(a[i][1], b[i][1])
        np.testing.assert_array_equal(a.labels[i], a[i][1])


@pytest.mark.parametrize("format, extension, options", [
    ("PNG", ".PNG", {}), ("BMP", ".bmp", {}), ("WEBP", ".webp", {"lossless": True}), ("JPEG", ".JpG", {"quality": 90}),
])
def test_formats(tmp_path, format, extension, options):
    image = random_image(0, side=32)
    data = encode(image, format, **options)
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", {"a" + extension: data}))
    expected = image if format != "JPEG" else np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(dataset[0][0], expected.transpose(2, 0, 1))
    assert dataset.check(progress=False) == (1, 1)


def test_zip_with_long_extra_fields_and_a_prefix(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"#!/bin/sh\n" * 3)  # Self-extracting archives start with a program.
    data = encode(random_image(0))
    with zipfile.ZipFile(path, "a") as f:
        info = zipfile.ZipInfo("a.png")
        info.extra = b"\xfe\xca" + (2000).to_bytes(2, "little") + bytes(2000)
        f.writestr(info, data)
    np.testing.assert_array_equal(ImageFolderDataset(path)[0][0], random_image(0).transpose(2, 0, 1))


def test_last_entry_of_a_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as f, pytest.warns(UserWarning, match="Duplicate"):
        f.writestr("a.png", encode(random_image(0)))
        f.writestr("a.png", encode(random_image(1)))
    dataset = ImageFolderDataset(tmp_path / "a.zip")
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset[0][0], random_image(1).transpose(2, 0, 1))


def test_replace_and_fingerprint(tmp_path):
    files = some_files(labels=[0, 1, 0, 1, 1, 0])
    path = make_zip(tmp_path / "a.zip", files)
    full = ImageFolderDataset(path, use_labels=True)
    small = full.replace(max_size=3, xflip=True)
    assert (len(full), len(small)) == (6, 6)
    assert small.label_dim == 2 and full.replace(use_labels=False).label_dim == 0
    assert small.replace(max_size=None, xflip=False).fingerprint == full.fingerprint
    fingerprints = {d.fingerprint for d in (
        full, small, full.replace(xflip=True), full.replace(max_size=3), full.replace(max_size=3, random_seed=1),
        full.replace(use_labels=False),
    )}
    assert len(fingerprints) == 6
    assert full.replace(max_size=6).fingerprint == full.fingerprint == full.replace(random_seed=5).fingerprint
    moved = ImageFolderDataset(make_zip(tmp_path / "b.zip", files), use_labels=True)
    assert moved.fingerprint == full.fingerprint
    files["00000/img00000002.png"] = encode(random_image(77))
    assert ImageFolderDataset(make_zip(tmp_path / "c.zip", files), use_labels=True).fingerprint != full.fingerprint
    with pytest.raises(TypeError, match="mirror"):
        full.replace(mirror=True)
    with pytest.raises(IndexError):
        full[6]


def test_vector_labels(tmp_path):
    labels = [[0.5, 1, -2.25], [0, 0, 1e30]]
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files(2, labels)), use_labels=True)
    assert dataset.label_shape == [3] and not dataset.has_onehot_labels
    np.testing.assert_array_equal(dataset.labels, np.float32(labels))


def test_pickled_dataset_has_no_open_file(tmp_path):
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files()), max_size=4, xflip=True)
    dataset[0]
    other = pickle.loads(pickle.dumps(dataset))
    assert other._files._fd is None and dataset._files._fd is not None
    for i in range(len(dataset)):
        np.testing.assert_array_equal(dataset[i][0], other[i][0])


# --- Bad input.


def test_missing_and_foreign_paths(tmp_path):
    with pytest.raises(UserError) as e:
        ImageFolderDataset(tmp_path / "nothing.zip")
    assert_user_error(e, "nothing.zip", "does not exist")
    (tmp_path / "text.txt").write_text("no images")
    with pytest.raises(UserError) as e:
        ImageFolderDataset(tmp_path / "text.txt")
    assert_user_error(e, "text.txt", "neither a folder nor a zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as e:
        ImageFolderDataset(tmp_path / "empty")
    assert_user_error(e, "no images", ".png")
    with pytest.raises(UserError) as e:
        ImageFolderDataset(make_zip(tmp_path / "empty.zip", {"readme.txt": b""}))
    assert_user_error(e, "no images")
    (tmp_path / "half.zip").write_bytes(make_zip(tmp_path / "a.zip", some_files()).read_bytes()[:2000])
    with pytest.raises(UserError) as e:
        ImageFolderDataset(tmp_path / "half.zip")
    assert_user_error(e, "half.zip", "no zip, or the end of it is missing")


def test_unreadable_path(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", some_files())
    path.chmod(0)
    if os.geteuid() == 0:  # The superuser may read everything.
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError) as e:
        ImageFolderDataset(path)
    assert_user_error(e, "permission denied")


@pytest.mark.parametrize("image, parts", [
    (Image.new("RGB", (16, 8)), ["16x8", "square", "--transform=center-crop"]),
    (Image.new("RGB", (24, 24)), ["24x24", "power of two", "--resolution"]),
    (Image.new("RGB", (2, 2)), ["2x2", "power of two from 4"]),
    (Image.new("RGBA", (16, 16)), ["RGBA", "dataset_tool.py"]),
    (Image.new("P", (16, 16)), ["kind P", "dataset_tool.py"]),
    (Image.new("I;16", (16, 16)), ["I;16", "dataset_tool.py"]),
    (Image.new("L", (12000, 12000)), ["12000x12000"]),
    (Image.new("1", (16384, 16384)), ["img.png"]),  # 268 million pixels in 33 kB: a decompression bomb.
])
def test_unfit_images(tmp_path, image, parts):
    path = make_zip(tmp_path / "a.zip", {"img.png": encode(image)})
    with pytest.raises(UserError) as e:
        ImageFolderDataset(path)
    assert_user_error(e, "img.png", *parts)
    # The same image among good ones.
    path = make_zip(tmp_path / "b.zip", {"a.png": encode(random_image(0)), "img.png": encode(image)})
    dataset = ImageFolderDataset(path)
    for use in (lambda: dataset[1], lambda: dataset.check(progress=False)):
        with pytest.raises(UserError) as e:
            use()
        assert_user_error(e, "img.png")


def test_large_image_is_one_line_on_stderr(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"img.png": encode(Image.new("L", (12000, 12000)))})
    script = f"""
from training.image_files import open_image_files
raise SystemExit(str(open_image_files({str(path)!r}).probe(0)))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and len(process.stderr.splitlines()) == 1 and "width=12000" in process.stderr


def test_mixed_channels_and_sizes_name_both(tmp_path):
    files = {"a.png": encode(random_image(0)), "b.png": encode(random_image(1, channels=1)),
             "c.png": encode(random_image(2, side=32))}
    dataset = ImageFolderDataset(make_folder(tmp_path / "d", files))
    for index, parts in ((1, ["b.png", "16x16 with 1 channel", "16x16 with 3", "a.png"]), (2, ["c.png", "32x32"])):
        with pytest.raises(UserError) as e:
            dataset[index]
        assert_user_error(e, *parts)
    with pytest.raises(UserError) as e:
        dataset.check(progress=False)
    assert_user_error(e, "b.png", "2 bad images", "c.png")


def test_requested_resolution_and_max_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", some_files())
    assert ImageFolderDataset(path, resolution=16).resolution == 16
    with pytest.raises(UserError) as e:
        ImageFolderDataset(path, resolution=32)
    assert_user_error(e, "16x16", "expected 32x32")
    with pytest.raises(UserError) as e:
        ImageFolderDataset(path, max_size=0)
    assert_user_error(e, "max_size is 0")


@pytest.mark.parametrize("size", [16, 256])  # Probed whole, and from both ends.
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("kind", ["zip", "deflated", "folder"])
def test_truncated_image(tmp_path, size, format, kind):
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    good = [encode(random_image(i, side=size), format, **options) for i in range(3)]
    names = [f"{i}.{format.lower()}" for i in range(3)]
    files = dict(zip(names, [good[0], good[1][: len(good[1]) * 2 // 3], good[2]]))
    if kind == "folder":
        dataset = ImageFolderDataset(make_folder(tmp_path / "d", files))
    else:
        method = zipfile.ZIP_STORED if kind == "zip" else zipfile.ZIP_DEFLATED
        dataset = ImageFolderDataset(make_zip(tmp_path / "d.zip", files, method))
    for use in (lambda: dataset[1], lambda: dataset.check(progress=False)):
        with pytest.raises(UserError) as e:
            use()
        assert_user_error(e, names[1], "can't be decoded")
    dataset[0], dataset[2]


def test_no_damage_makes_anything_but_a_user_error(tmp_path):
    rng = np.random.default_rng(0)
    num_errors = 0
    for format in ("PNG", "JPEG", "WEBP", "BMP"):
        data = encode(random_image(0), format)
        files = {"0.png": encode(random_image(0))}
        for i in range(1, 60):
            broken = bytearray(data)
            for position in rng.integers(0, min(len(data), 120 if i % 2 else len(data)), 4):
                broken[position] = rng.integers(256)
            files[f"{i}.png"] = bytes(broken)
        dataset = ImageFolderDataset(make_zip(tmp_path / f"{format}.zip", files))
        for i in range(len(dataset)):
            try:
                dataset[i]
            except UserError:
                num_errors += 1
    assert num_errors > 60


def test_file_that_vanishes_or_changes_is_named(tmp_path):
    folder = make_folder(tmp_path / "d", some_files())
    dataset = ImageFolderDataset(folder)
    os.unlink(folder / "00000/img00000003.png")
    for use in (lambda: dataset[3], lambda: dataset.check(progress=False), lambda: dataset.fingerprint):
        with pytest.raises(UserError) as e:
            use()
        assert_user_error(e, "img00000003.png", "No such file")
    path = make_zip(tmp_path / "d.zip", some_files())
    dataset = ImageFolderDataset(path)
    data = bytearray(path.read_bytes())
    position = data.index(b"IDAT", data.index(b"img00000002.png")) + 20
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as e:
        dataset[2]
    assert_user_error(e, "img00000002.png", "checksum")
    path.write_bytes(b"x" * len(data))
    with pytest.raises(UserError) as e:
        dataset[4]
    assert_user_error(e, "img00000004.png", "replaced meanwhile")
    path.unlink()
    with pytest.raises(UserError) as e:
        pickle.loads(pickle.dumps(dataset))[0]  # As in a worker process, which opens the file anew.
    assert_user_error(e, "img00000000.png", "d.zip", "No such file")


def test_encrypted_zip(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", some_files(1)).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError) as e:
        ImageFolderDataset(tmp_path / "a.zip")
    assert_user_error(e, "img00000000.png", "encrypted")


NAMES = [f"00000/img{i:08d}.png" for i in range(3)]


@pytest.mark.parametrize("metadata, parts", [
    (b"{", ["not valid JSON"]),
    (b"\xff\xfe", ["not valid JSON"]),
    (b"[" * 100000, ["not valid JSON"]),
    (b"[1]", ["malformed"]),
    ({"labels": {"a": 1}}, ["malformed"]),
    ({"labels": [[NAMES[0], 1, 2]]}, ["malformed", "img00000000.png"]),
    ({"labels": [["x.png"]]}, ["malformed"]),
    ({"labels": [[n, 0] for n in NAMES[:2]]}, ["lacks labels for 1 of 3", NAMES[2]]),
    ({"labels": [[n, 0] for n in [*NAMES, "extra.png"]]}, ["1 images that are not there", "extra.png"]),
    ({"labels": [[n, 0] for n in [*NAMES, NAMES[1]]]}, ["two labels", NAMES[1]]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, "cat", 1])]}, [NAMES[1], '"cat"', "expected a class"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, 1.5, 1])]}, [NAMES[1], "1.5"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, True, 1])]}, [NAMES[1], "true"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, -1, 1])]}, [NAMES[1], "-1"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, 10**30, 1])]}, [NAMES[1], "expected a class from 0"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, None, 1])]}, [NAMES[1], "null"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [0, [1.0], 1])]}, [NAMES[1], "[1.0]"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [[1.0, 2], [1.0], [2, 3]])]}, [NAMES[1], "list of 2 numbers"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [[1.0, 2], [1.0, "x"], [2, 3]])]}, [NAMES[1], "finite numbers"]),
    ({"labels": [[n, x] for n, x in zip(NAMES, [[1.0, 2], 5, [2, 3]])]}, [NAMES[1], "list of 2 numbers"]),
    (f'{{"labels": [["{NAMES[0]}", [NaN]], ["{NAMES[1]}", [1]], ["{NAMES[2]}", [1e400]]]}}'.encode(), ["finite"]),
    ({"labels": [[n, [10**400]] for n in NAMES]}, ["finite"]),
    ({"labels": [[n, []] for n in NAMES]}, ["one or more numbers"]),
])
def test_bad_labels(tmp_path, metadata, parts):
    files = some_files(3)
    if metadata is not None:
        files["dataset.json"] = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    for path in (make_zip(tmp_path / "a.zip", files), make_folder(tmp_path / "a", files)):
        with pytest.raises(UserError) as e:
            ImageFolderDataset(path, use_labels=True)
        assert_user_error(e, path, *parts)
        assert len(ImageFolderDataset(path)) == 3  # Without labels the same files serve.


@pytest.mark.parametrize("metadata", [{"labels": None}, {"labels": []}, {}, None])
def test_labels_that_are_not_there_are_empty(tmp_path, metadata):
    files = some_files(3)
    if metadata is not None:
        files["dataset.json"] = json.dumps(metadata).encode()
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", files), use_labels=True)
    assert not dataset.has_labels and dataset[0][1].shape == (0,)


def test_check_stops_in_time_and_says_so(tmp_path, capsys):
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files(50)))
    assert dataset.check(progress=False) == (50, 50)
    assert capsys.readouterr().err == ""
    assert dataset.check(progress=False, budget_sec=0).num_checked == 0
    assert "Checked 0 of 50 images" in capsys.readouterr().err
    dataset.check()
    assert "50" in capsys.readouterr().err


# --- The training order.


@pytest.mark.parametrize("size", [1, 2, 11, 1000])
def test_order_is_a_permutation_in_every_epoch(size):
    order = TrainingOrder(size, 5)
    epochs = [order.take(e * size, size) for e in range(4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size > 10:
        assert len({e.tobytes() for e in epochs}) == 4
        assert not np.array_equal(epochs[0], TrainingOrder(size, 6).take(0, size))


def test_order_from_anywhere_is_the_same():
    straight = TrainingOrder(37, 3).take(0, 500)
    order = TrainingOrder(37, 3)
    for k in (499, 0, 36, 37, 38, 250, 111):
        assert order[k] == TrainingOrder(37, 3)[k] == straight[k]
        np.testing.assert_array_equal(order.take(k, 100)[: 500 - k], straight[k : k + 100])
    assert order.take(5, 0).shape == (0,)
    with pytest.raises(IndexError):
        order[-1]
    with pytest.raises(ValueError):
        TrainingOrder(0, 0)


def test_order_does_not_change_between_releases():
    assert TrainingOrder(10, 0).take(0, 20).tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4, 7, 3, 5, 0, 1, 4, 6, 8, 9, 2]


def test_order_is_uniform():
    # Each of the 24 permutations of four items equally often: chi-square with 23 degrees of freedom, p = 1e-5 at 66.
    counts = {}
    for seed in range(20):
        order = TrainingOrder(4, seed)
        for e in range(120):
            key = order.epoch(e).tobytes()
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 66


def test_order_of_millions_is_quick():
    start = time.process_time()
    order = TrainingOrder(3_000_000, 0)
    part = order.take(2_999_990, 20)
    assert part.dtype == np.int64 and time.process_time() - start < 5
    assert len(set(part[:10].tolist())) == 10


# --- The loader.


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(
        make_zip(tmp_path / "a.zip", some_files(7, [0, 1, 2, 0, 1, 2, 2])), use_labels=True, xflip=True
    )


def take(loader, count):
    with loader:
        batches = [next(loader) for _ in range(count)]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_follows_the_order(dataset, num_workers):
    order = TrainingOrder(len(dataset), 1)
    images, labels = take(BatchLoader(dataset, order=order, batch_size=4, num_workers=num_workers), 8)
    assert images.dtype == torch.uint8 and images.shape == (32, 3, 16, 16)
    assert labels.dtype == torch.float32 and labels.shape == (32, 3)
    for k in range(32):
        image, label = dataset[order[k]]
        np.testing.assert_array_equal(images[k], image)
        np.testing.assert_array_equal(labels[k], label)


def test_loader_resumes_and_ranks_reassemble(dataset):
    def order():
        return TrainingOrder(len(dataset), 9)

    straight, straight_labels = take(BatchLoader(dataset, order=order(), batch_size=6, num_workers=0), 10)
    resumed, _ = take(BatchLoader(dataset, order=order(), batch_size=6, start_index=24, num_workers=0), 6)
    assert torch.equal(resumed, straight[24:])
    for num_ranks in (2, 3):
        parts = [
            take(BatchLoader(dataset, order=order(), batch_size=6, rank=r, num_ranks=num_ranks, num_workers=0), 10)
            for r in range(num_ranks)
        ]
        for which, whole in enumerate((straight, straight_labels)):
            by_rank = [p[which].reshape(10, 6 // num_ranks, *whole.shape[1:]) for p in parts]
            assert torch.equal(torch.cat(by_rank, dim=1).flatten(0, 1), whole)
    with pytest.raises(ValueError):
        BatchLoader(dataset, order=order(), batch_size=6, num_ranks=4)
    with pytest.raises(ValueError):
        BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=5)


def test_loader_without_labels(dataset):
    plain = dataset.replace(use_labels=False)
    _, labels = take(BatchLoader(plain, order=TrainingOrder(14, 0), batch_size=2, num_workers=0), 1)
    assert labels.shape == (2, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_ends_the_loader_with_its_name(tmp_path, num_workers):
    files = some_files(5)
    files["00000/img00000003.png"] = files["00000/img00000003.png"][:300]
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", files))
    loader = BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=1, num_workers=num_workers)
    with pytest.raises(UserError) as e:
        for _ in range(6):
            next(loader)
    assert_user_error(e, "img00000003.png")
    assert type(e.value) is UserError
    with pytest.raises(StopIteration):
        next(loader)


def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    path = make_zip(tmp_path / "a.zip", some_files(5))
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from training.dataset import ImageFolderDataset
from training.loader import BatchLoader, TrainingOrder
if __name__ == "__main__":
    loader = BatchLoader(ImageFolderDataset({str(path)!r}), order=TrainingOrder(5, 0), batch_size=2, num_workers=1)
    next(loader)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    # Workers and their server hold the pipe open: the end of it is the end of them all.
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_interrupt_shows_no_traceback_of_workers(tmp_path):
    path = make_zip(tmp_path / "a.zip", some_files(5))
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from training.dataset import ImageFolderDataset
from training.loader import BatchLoader, TrainingOrder
if __name__ == "__main__":
    dataset = ImageFolderDataset({str(path)!r})
    loader = BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=2, num_workers=2)
    try:
        if sys.argv[1] == "later":
            next(loader)
        print("ready", flush=True)
        while True:
            next(loader)
    except KeyboardInterrupt:
        loader.close()
        print("interrupted", flush=True)
""")
    for when in ("at once", "later"):
        process = subprocess.Popen([sys.executable, script, when], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C does: to every process of the group.
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "interrupted\n"), err
        assert err == ""
