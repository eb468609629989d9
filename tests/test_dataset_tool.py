import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tool import FilesSource, SyntheticSource, write_dataset
from training.dataset import ImageFolderDataset
from training.image_files import open_image_files
from training.synthetic_scenes import CLASS_NAMES, draw_scenes

ROOT = Path(__file__).resolve().parents[1]


def run(*args, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "dataset_tool.py", *args], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def noise(seed, height=16, width=16, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def convert(source, dest, **options):
    defaults = dict(max_images=None, resolution=None, transform=None, resize_filter="box", labels="auto", color="auto")
    return write_dataset(FilesSource(open_image_files(source), **{**defaults, **options}), dest)


def contents(zip_path):
    with zipfile.ZipFile(zip_path) as f:
        return {name: f.read(name) for name in f.namelist()}


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def test_synthetic_command(tmp_path):
    result = run("--source=synthetic", "--resolution=16", "--max-images=1003", "--dest=sub/a.zip", "--seed=4",
                 cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Wrote 1003 images of 16x16x3 to sub/a.zip; labels: 12 classes: disc, ring")
    assert len(result.stdout.splitlines()) == 1 and "img/s" in result.stderr
    dataset = ImageFolderDataset(tmp_path / "sub/a.zip", use_labels=True)
    images, labels = draw_scenes(np.arange(1003), resolution=16, seed=4)
    assert len(dataset) == 1003 and dataset.label_dim == len(CLASS_NAMES)
    assert dataset.get_name(1002) == "00001/img00001002.png"
    for i in (0, 255, 256, 1002):
        np.testing.assert_array_equal(dataset[i][0], images[i].transpose(2, 0, 1))
        assert dataset[i][1].argmax() == labels[i]
    assert {i.compress_type for i in zipfile.ZipFile(tmp_path / "sub/a.zip").infolist()} == {zipfile.ZIP_STORED}
    assert left_behind(tmp_path / "sub") == ["a.zip"]


def test_synthetic_images_do_not_depend_on_their_number(tmp_path):
    for count, name in ((300, "a.zip"), (20, "b.zip")):
        write_dataset(SyntheticSource(num_images=count, resolution=8, seed=0), tmp_path / name)
    a, b = contents(tmp_path / "a.zip"), contents(tmp_path / "b.zip")
    assert all(a[name] == data for name, data in b.items() if name != "dataset.json")
    write_dataset(SyntheticSource(num_images=20, resolution=8, seed=0), tmp_path / "c.zip")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()


def test_round_trip(tmp_path):
    write_dataset(SyntheticSource(num_images=30, resolution=32, seed=0), tmp_path / "a.zip")
    assert convert(tmp_path / "a.zip", tmp_path / "folder") == (30, 32, 3)
    convert(tmp_path / "folder", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    a = ImageFolderDataset(tmp_path / "a.zip", use_labels=True)
    b = ImageFolderDataset(tmp_path / "folder", use_labels=True)
    np.testing.assert_array_equal(a.labels, b.labels)
    for i in range(30):
        np.testing.assert_array_equal(a[i][0], b[i][0])


def test_vector_labels_and_no_labels_are_carried_over(tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(i, channels=1))
    labels = [[f"{i}.png", [0.5 * i, 1.25]] for i in range(3)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": labels}))
    assert convert(tmp_path / "in", tmp_path / "a.zip") == (3, 16, 1)
    np.testing.assert_array_equal(
        ImageFolderDataset(tmp_path / "a.zip", use_labels=True).labels, np.float32([label for _, label in labels])
    )
    convert(tmp_path / "in", tmp_path / "b.zip", labels="none", max_images=2)
    assert json.loads(contents(tmp_path / "b.zip")["dataset.json"]) == {"labels": None}
    assert len(ImageFolderDataset(tmp_path / "b.zip")) == 2


def test_sub_folders_are_classes_but_divisions_are_not(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "dog/deep/3.png"):
        save(tmp_path / "animals" / name, noise(0))
    source = FilesSource(open_image_files(tmp_path / "animals"), max_images=None, resolution=None, transform=None,
                         resize_filter="box", labels="auto", color="auto")
    assert source.labels == "2 classes from sub-folders: cat, dog"
    write_dataset(source, tmp_path / "a.zip")
    assert [label for _, label in json.loads(contents(tmp_path / "a.zip")["dataset.json"])["labels"]] == [0, 1, 1]
    for name in ("00000/1.png", "01000/2.png"):
        save(tmp_path / "ffhq" / name, noise(0))
    convert(tmp_path / "ffhq", tmp_path / "b.zip")
    assert json.loads(contents(tmp_path / "b.zip")["dataset.json"]) == {"labels": None}
    convert(tmp_path / "ffhq", tmp_path / "c.zip", labels="folders")
    assert ImageFolderDataset(tmp_path / "c.zip", use_labels=True).label_dim == 2


def test_resize_and_crop(tmp_path):
    wide = noise(0, height=32, width=48)
    save(tmp_path / "in/a.png", wide)
    convert(tmp_path / "in", tmp_path / "a.zip", resolution=8, transform="center-crop")
    expected = wide[:, 8:40].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    image, _ = ImageFolderDataset(tmp_path / "a.zip")[0]
    assert np.abs(image.transpose(1, 2, 0) - expected).max() < 1  # The average, rounded after each direction.
    convert(tmp_path / "in", tmp_path / "b.zip", resolution=8, transform="center-crop", resize_filter="lanczos")
    lanczos, _ = ImageFolderDataset(tmp_path / "b.zip")[0]
    cropped = Image.fromarray(wide[:, 8:40]).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(lanczos.transpose(1, 2, 0), np.asarray(cropped))
    assert not np.array_equal(image, lanczos)


def test_kinds_of_pixels(tmp_path):
    gray16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    palette = Image.fromarray(noise(1)).quantize(16)
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    for name, image, expected in (
        ("gray16", gray16, np.arange(256).reshape(1, 16, 16)),
        ("palette", palette, np.asarray(palette.convert("RGB")).transpose(2, 0, 1)),
        ("clear", clear, np.full([3, 16, 16], 255)),
    ):
        save(tmp_path / name / "a.png", image)
        convert(tmp_path / name, tmp_path / f"{name}.zip")
        np.testing.assert_array_equal(ImageFolderDataset(tmp_path / f"{name}.zip")[0][0], expected)
    turned = Image.fromarray(noise(2))
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    save(tmp_path / "turned/a.png", turned, exif=exif)
    convert(tmp_path / "turned", tmp_path / "turned.zip")
    np.testing.assert_array_equal(
        ImageFolderDataset(tmp_path / "turned.zip")[0][0], noise(2)[::-1, ::-1].transpose(2, 0, 1)
    )
    save(tmp_path / "mixed/a.png", noise(0))
    save(tmp_path / "mixed/b.png", noise(0, channels=1))
    for color, channels in (("rgb", 3), ("gray", 1)):
        assert convert(tmp_path / "mixed", tmp_path / f"{color}.zip", color=color) == (2, 16, channels)


@pytest.fixture
def bad(tmp_path):
    """Folders with something wrong in each, below tmp_path."""
    save(tmp_path / "good/a.png", noise(0))
    save(tmp_path / "wide/a.png", noise(0, width=32))
    save(tmp_path / "odd/a.png", noise(0, height=20, width=20))
    for name, second in (("sizes", noise(1, 32, 32)), ("mixed", noise(1, channels=1)), ("broken", None)):
        save(tmp_path / name / "a.png", noise(0))
        if second is None:
            (tmp_path / name / "b.png").write_bytes((tmp_path / name / "a.png").read_bytes()[:400])
        else:
            save(tmp_path / name / "b.png", second)
    save(tmp_path / "labels/a.png", noise(0))
    (tmp_path / "labels/dataset.json").write_text('{"labels": [["b.png", 0]]}')
    (tmp_path / "empty").mkdir()
    save(tmp_path / "precious/a.png", noise(0))
    (tmp_path / "existing.zip").write_bytes(b"precious")
    return tmp_path


@pytest.mark.parametrize("args, parts", [
    (["--source=nothing", "--dest=out.zip"], ["nothing", "does not exist"]),
    (["--source=empty", "--dest=out.zip"], ["no images in empty"]),
    (["--source=wide", "--dest=out.zip"], ["a.png in wide", "32x16", "--transform=center-crop"]),
    (["--source=odd", "--dest=out.zip"], ["a.png in odd", "20x20", "--resolution"]),
    (["--source=sizes", "--dest=out"], ["b.png in sizes", "32x32", "16x16"]),
    (["--source=mixed", "--dest=out"], ["b.png in mixed", "grayscale", "--color"]),
    (["--source=broken", "--dest=out"], ["b.png in broken", "can't be decoded"]),
    (["--source=broken", "--dest=out.zip"], ["b.png in broken", "can't be decoded"]),
    (["--source=labels", "--dest=out.zip"], ["dataset.json of labels", "a.png"]),
    (["--source=good", "--labels=folders", "--dest=out.zip"], ["a.png in good", "no sub-folder"]),
    (["--source=good", "--dest=existing.zip"], ["existing.zip exists", "--overwrite"]),
    (["--source=good", "--dest=precious"], ["precious exists", "not empty"]),
    (["--source=good", "--dest=precious", "--overwrite"], ["a.png", "not made by this tool"]),
    (["--source=good/a.png", "--dest=good"], ["--source=good/a.png inside"]),
    (["--source=good", "--dest=existing.zip/out"], ["existing.zip"]),
    (["--source=good", "--resolution=20", "--dest=out.zip"], ["--resolution=20", "power of two", "16"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5"], ["--resolution and --max-images"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5", "--resolution=512"], ["8, 16, 32"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5", "--resolution=8", "--color=gray"], ["--color"]),
])
def test_bad_input(bad, args, parts):
    before = left_behind(bad)
    result = run(*args, cwd=bad)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip() and "img/s" not in line
             and "img]" not in line]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    for part in parts:
        assert part in lines[0]
    assert left_behind(bad) == before
    assert (bad / "existing.zip").read_bytes() == b"precious" and (bad / "precious/a.png").is_file()


def test_usage_errors(tmp_path):
    for args in (["--dest=a.zip"], ["--source=x"], ["--source=x", "--dest=y", "--max-images=0"],
                 ["--source=x", "--dest=y", "--resize-filter=nearest"]):
        assert run(*args, cwd=tmp_path).returncode == 2
    assert left_behind(tmp_path) == []


def test_overwrite(tmp_path):
    def write(dest, count, **options):
        write_dataset(SyntheticSource(num_images=count, resolution=8, seed=0), dest, **options)

    (tmp_path / "folder").mkdir()  # An empty folder is nobody's work.
    for name in ("folder", "a.zip"):
        write(tmp_path / name, 1005)
        write(tmp_path / name, 3, overwrite=True)
        assert len(ImageFolderDataset(tmp_path / name)) == 3
    assert left_behind(tmp_path) == ["a.zip", "folder"]
    assert left_behind(tmp_path / "folder") == ["00000", "dataset.json"]


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_interrupt_leaves_nothing(tmp_path, dest):
    process = subprocess.Popen(
        [sys.executable, ROOT / "dataset_tool.py", "--source=synthetic", "--resolution=64", "--max-images=1000000",
         f"--dest={dest}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 60
    while not left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Aborted" in err and "Traceback" not in err
    assert left_behind(tmp_path) == []


def test_png_is_plain(tmp_path):
    write_dataset(SyntheticSource(num_images=1, resolution=16, seed=0), tmp_path / "a.zip")
    image = Image.open(io.BytesIO(contents(tmp_path / "a.zip")["00000/img00000000.png"]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
