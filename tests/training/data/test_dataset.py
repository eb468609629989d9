import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib.util import UserError
from paths import ROOT, SHARED
from training.data.dataset import ImageFolderDataset

GOLDEN = SHARED / "golden/dataset"
golden_only = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers in {GOLDEN}")
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pytest resets our filter.
# Of nine BMP files in a zip, as it always was.
GOLDEN_FINGERPRINT = "e9b1cca4de23f4131ebae678ff2c9598964108a0a6d72017865a35c3ef11f339"
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
    dataset.check(progress=False)


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


def bmp(number):
    """The same bytes whichever version of a library writes them."""
    return encode(np.full([4, 4, 3], number, np.uint8), "BMP")


def test_the_same_images_have_the_same_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    files = {f"00000/{i}.bmp": bmp(i) for i in range(9)}
    files["dataset.json"] = json.dumps({"labels": [[name, i] for i, name in enumerate(files)]}).encode()

    def fingerprint(path):
        return ImageFolderDataset(path, use_labels=True).fingerprint

    in_zip = fingerprint(make_zip(tmp_path / "a.zip", files))
    assert in_zip == GOLDEN_FINGERPRINT  # Runs on zips remember it.
    folder = make_folder(tmp_path / "a", files)
    assert fingerprint(folder) == in_zip
    os.utime(folder / "00000/3.bmp", (1, 1))
    assert fingerprint(folder) == in_zip
    (folder / "00000/3.bmp").write_bytes(bmp(99))
    assert fingerprint(folder) != in_zip
    # A sample of a large folder: files 0, 3 and 6.
    monkeypatch.setattr("training.data.image_files._SAMPLE_FILES", 3)
    sampled = fingerprint(folder)
    (folder / "00000/5.bmp").write_bytes(bmp(99))
    assert fingerprint(folder) == sampled != in_zip
    (folder / "00000/6.bmp").write_bytes(bmp(99))
    assert fingerprint(folder) != sampled
    # What takes long is kept, and read where neither names, sizes nor times have changed.
    monkeypatch.setattr("training.data.image_files._CACHED_SEC", 0)
    kept = fingerprint(folder)
    (cached,) = (tmp_path / "cache/identities").iterdir()
    cached.write_bytes(b"x" * 32)
    assert fingerprint(folder) != kept
    os.utime(folder / "00000/3.bmp", (2, 2))
    assert fingerprint(folder) == kept


def test_vector_labels(tmp_path):
    labels = [[0.5, 1, -2.25], [0, 0, 1e30]]
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files(2, labels)), use_labels=True)
    assert dataset.label_shape == [3] and not dataset.has_onehot_labels
    np.testing.assert_array_equal(dataset.labels, np.float32(labels))


def test_pickled_dataset_reads_the_same(tmp_path):
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files()), max_size=4, xflip=True)
    dataset[0]
    other = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset.images(range(4)))) < 2000
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
from training.data.image_files import open_image_files
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
    assert_user_error(e, "d.zip", "replaced meanwhile")
    path.unlink()
    script = f"import pickle; pickle.loads({pickle.dumps(dataset)!r})[0]"  # Another process opens the file anew.
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "UserError" in done.stderr and "d.zip can't be read: No such file" in done.stderr


def test_zip_replaced_by_another_is_noticed(tmp_path):
    path = make_zip(tmp_path / "d.zip", some_files())
    script = f"import pickle; pickle.loads({pickle.dumps(ImageFolderDataset(path))!r})[0]"
    os.replace(make_zip(tmp_path / "e.zip", {**some_files(), "x.png": b""}), path)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "UserError" in done.stderr and "d.zip has been replaced meanwhile" in done.stderr


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
    ({"labels": [[NAMES[0], 1, 2]]}, ['expected ["name.png", label]', NAMES[0], "4 problems"]),
    ({"labels": [["x.png"]]}, ['expected ["name.png", label], found ["x.png"]']),
    ({"labels": [[n, 0] for n in NAMES[:2]]}, ["no label for", NAMES[2]]),
    ({"labels": [[n, 0] for n in [*NAMES, "extra.png"]]}, ["a label for extra.png, which is not there"]),
    ({"labels": [[n, 0] for n in [*NAMES, NAMES[1]]]}, ["a second label for", NAMES[1]]),
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
    dataset.check(progress=False)
    assert capsys.readouterr().err == ""
    dataset.check(progress=False, budget_sec=0)
    assert "Checked 0 of 50 images" in capsys.readouterr().err
    dataset.check()
    assert "50" in capsys.readouterr().err


def test_turned_images_and_files_left_out_are_told(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    files = {**some_files(3), "x.jpg": encode(random_image(0), "JPEG", exif=exif), "y.webp": encode(
        random_image(0), "WEBP", exif=exif), ".z/a.png": b"", "z.tif": encode(random_image(0), "TIFF"), "z.txt": b""}
    for path in (make_zip(tmp_path / "a.zip", files), make_folder(tmp_path / "b", files)):
        dataset = ImageFolderDataset(path)
        dataset.check(progress=False)
        stored = np.asarray(Image.open(io.BytesIO(files["x.jpg"])))
        np.testing.assert_array_equal(dataset[3][0], stored.transpose(2, 0, 1))
        left_out, turned = capsys.readouterr().err.splitlines()
        for part in (f"Left out of {path}: 3 files (", "hidden: 1, first ", ".tif: 1, first z.tif", ".txt: 1, first "):
            assert part in left_out
        assert turned.startswith(f"2 of 5 images are to be turned as EXIF says, such as image x.jpg in {path}")


def test_only_regular_files_are_read(tmp_path):
    """Pipes wait for a writer, and some devices never end."""
    folder = make_folder(tmp_path / "a", some_files(3))
    (folder / "link.png").symlink_to(folder / "00000/img00000000.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "nothing.png").symlink_to("nowhere")
    (folder / "more").symlink_to(folder / "00000")
    os.mkfifo(folder / "pipe.png")
    dataset = ImageFolderDataset(folder)
    assert [dataset.get_name(i) for i in range(len(dataset))] == [*NAMES, "link.png"]
    assert dataset._files.left_out.counts == {"device or pipe": 2, "link to nothing": 1, "link to a folder": 1}
    os.mkfifo(folder / "dataset.json")
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / "shards/a.zip")
    (folder / "00000/img00000001.png").unlink()
    os.mkfifo(folder / "00000/img00000001.png")
    for use, expected in (
        (lambda: ImageFolderDataset(folder, use_labels=True), "dataset.json is no file, but a folder, device or pipe"),
        (lambda: ImageFolderDataset(tmp_path / "shards"), "a.zip is a device or pipe, not a zip"),
        (lambda: ImageFolderDataset("/dev/zero"), "/dev/zero is a device or pipe"),
        (lambda: dataset[1], "img00000001.png in .* is no file"),
        (lambda: dataset.check(progress=False), "img00000001.png in .* is no file"),
    ):
        with pytest.raises(UserError, match=expected):
            use()


def test_entries_that_unpack_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.image_files._BOMB_BYTES", 1 << 20)
    files = {"a.png": encode(random_image(0)), "b.png": bytes(2 << 20)}
    path = make_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED)
    for use in (lambda: ImageFolderDataset(path)[1], lambda: ImageFolderDataset(path).check(progress=False)):
        with pytest.raises(UserError, match="image b.png in .* would unpack from .* to 2097152 bytes"):
            use()
    files = {"a.png": files["a.png"], "dataset.json": b'{"labels": [' + b"0," * 600_000 + b"0]}"}
    for path in (make_zip(tmp_path / "b.zip", files, zipfile.ZIP_DEFLATED), make_folder(tmp_path / "b", files)):
        with pytest.raises(UserError, match="dataset.json .* 1200015 bytes, more than the 1114112 allowed"):
            ImageFolderDataset(path, use_labels=True)


# --- Folders of zips.


def make_shards(folder, files, labels, sizes):
    """The files, in order, as zips of so many images each."""
    folder.mkdir(exist_ok=True)
    names = [name for name in files if name != "dataset.json"]
    by_name, first = dict(zip(names, labels or names)), 0
    for i, size in enumerate(sizes):
        part = {name: files[name] for name in names[first : first + size]}
        if labels is not None:
            part["dataset.json"] = json.dumps({"labels": [[name, by_name[name]] for name in part]}).encode()
        make_zip(folder / f"x-{i:05d}.zip", part)
        first += size
    return folder


@pytest.mark.parametrize("labels", [[3, 0, 1, 2, 2, 0, 5, 1], [[i / 2, -1.0] for i in range(8)], None])
def test_shards_are_one_dataset(tmp_path, labels):
    files = some_files(8, labels)
    whole = ImageFolderDataset(make_zip(tmp_path / "a.zip", files), use_labels=True)
    shards = ImageFolderDataset(make_shards(tmp_path / "x", files, labels, [3, 1, 4]), use_labels=True)
    (tmp_path / "x/.hidden.zip").write_bytes(b"")
    assert shards.name == "x" and shards.label_dim == whole.label_dim
    for options in ({}, {"xflip": True}, {"max_size": 5}, {"max_size": 5, "random_seed": 3, "xflip": True},
                    {"use_labels": False}):
        a, b = whole.replace(**options), ImageFolderDataset(tmp_path / "x", **{"use_labels": True, **options})
        assert len(a) == len(b) and a.fingerprint == b.fingerprint == shards.replace(**options).fingerprint
        for i in range(len(a)):
            for x, y in zip(a[i], b[i]):
                np.testing.assert_array_equal(x, y)
            assert str(a.get_details(i)) == str(b.get_details(i))
            assert b.get_name(i).partition("/")[2] == a.get_name(i)
        picked = [len(b) - 1, 0, 3, 0]
        part = pickle.loads(pickle.dumps(b.images(picked)))
        for position, index in enumerate(picked):
            np.testing.assert_array_equal(part.read(position), a[index][0])
        np.testing.assert_array_equal(b.get_labels(picked), np.stack([a.get_label(i) for i in picked]))
    shards.check(progress=False)
    assert shards._files.names() == [shards.get_name(i) for i in range(8)]


def test_shards_name_bad_images(tmp_path):
    files = some_files(8)
    files["00000/img00000005.png"] = files["00000/img00000005.png"][:300]
    dataset = ImageFolderDataset(make_shards(tmp_path / "x", files, None, [4, 4]))
    for use in (lambda: dataset[5], lambda: dataset.check(progress=False), lambda: dataset.images([0, 5]).read(1)):
        with pytest.raises(UserError) as e:
            use()
        assert_user_error(e, f"image 00000/img00000005.png in {tmp_path / 'x' / 'x-00001.zip'}")


def test_bad_shards(tmp_path):
    def fails(*parts):
        with pytest.raises(UserError) as e:
            ImageFolderDataset(tmp_path / "x", use_labels=True)
        assert_user_error(e, *parts)

    def shards(*labels):
        (tmp_path / "x").mkdir(exist_ok=True)
        for i, some in enumerate(labels):
            make_zip(tmp_path / f"x/{i}.zip", some_files(2, some))

    shards([0, 1], None)
    fails("1.zip has no labels", "0.zip has classes")
    shards([0, 1], [[0.5], [1]])
    fails("1.zip has vectors of 1", "0.zip has classes")
    shards([[1, 2], [3, 4]], [[0.5], [1]])
    fails("1.zip has vectors of 1", "0.zip has vectors of 2")
    shards([0, 1], [0, "x"])
    fails("dataset.json", "1.zip", '"x"')
    shards([0, 1], [0, 7])
    assert ImageFolderDataset(tmp_path / "x", use_labels=True).label_dim == 8
    (tmp_path / "x/dataset.json").write_text("{}")
    fails("dataset.json stands beside the zips")
    (tmp_path / "x/dataset.json").unlink()
    make_zip(tmp_path / "x/2.zip", {"readme.txt": b""})
    fails("no images in", "2.zip")
    (tmp_path / "x/2.zip").write_bytes(b"PK")
    fails("2.zip is no zip")
    make_folder(tmp_path / "x/sub", {"a.png": encode(random_image(0))})
    fails("0.zip", "loose images (sub/a.png)", "one or the other")


def test_folder_is_sorted_as_plain_strings(tmp_path):
    names = ["b.png", "a/x.png", "a-b.png", "a.png", "a/b/c.png", "a.d/z.png", "B.png", "a0.png", "\u00e9.png"]
    dataset = ImageFolderDataset(make_folder(tmp_path, dict.fromkeys(names, encode(random_image(0)))))
    assert [dataset.get_name(i) for i in range(len(dataset))] == sorted(names)
    assert [dataset._files.select([4, 1]).get_name(i) for i in range(2)] == [sorted(names)[4], sorted(names)[1]]


def test_import_is_small():
    script = "import sys, training.dataset, dnnlib.worker_pool, training.data.check; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
