"""Users' images, of all modes and sizes, as networks take them."""

import os

import numpy as np
import PIL.Image
import pytest

from dataset_fakes import huge_png
from dnnlib.util import UserError
from sampling.input_images import InputImages, fit_image, open_image


def image(mode, shape, *, seed=0):
    return PIL.Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)).convert(mode)


def test_fitting_images_stay_as_they_are():
    for mode, channels in (("RGB", 3), ("L", 1)):
        source = image(mode, [16, 16, 3])
        pixels, changes = fit_image(source, resolution=16, channels=channels)
        assert changes == "" and np.array_equal(pixels, np.asarray(source).reshape(16, 16, channels))


def test_the_middle_is_scaled_by_area():
    source = image("RGB", [32, 40, 3])
    pixels, changes = fit_image(source, resolution=16, channels=3)
    expected = np.asarray(source)[:, 4:36].reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert changes == "cropped, scaled" and np.abs(pixels - expected).max() <= 1
    larger, changes = fit_image(PIL.Image.new("RGB", (8, 8), (10, 20, 30)), resolution=16, channels=3)
    assert changes == "scaled" and (larger == [10, 20, 30]).all()


def test_modes():
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (fit_image(clear, resolution=8, channels=3)[0] == 255).all(), "transparency is laid on white"
    deep = PIL.Image.fromarray(np.full([8, 8], 0x4321, np.uint16))
    assert (fit_image(deep, resolution=8, channels=3)[0] == 0x43).all()
    palette = image("RGB", [8, 8, 3]).quantize(4)
    pixels, changes = fit_image(palette, resolution=8, channels=3)
    assert changes == "P to RGB" and np.array_equal(pixels, np.asarray(palette.convert("RGB")))
    gray, changes = fit_image(image("RGB", [8, 8, 3]), resolution=8, channels=1)
    assert changes == "grayscale" and gray.shape == (8, 8, 1)


def test_photos_stand_upright(tmp_path):
    source = image("RGB", [16, 16, 3])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    source.save(tmp_path / "a.png", exif=exif)
    pixels, _ = fit_image(open_image(tmp_path / "a.png"), resolution=16, channels=3)
    assert np.array_equal(pixels, np.rot90(np.asarray(source), -1))


def test_names_are_unique_and_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for index, name in enumerate(["b/x.png", "b/y.png", "x.png", "X.bmp"]):
        image("RGB", [8, 8, 3], seed=index).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("x.png", "b", "*.bmp", "b/x.png")]
    images = InputImages(paths, resolution=8, channels=3)
    assert [found.name for found in images] == ["x", "x-2", "y", "X-3", "x-4"] and len(images) == 5
    seeds = [2, 0, 1, 3, 0]
    for found, seed in zip(images, seeds):
        assert np.array_equal(found.pixels, np.asarray(image("RGB", [8, 8, 3], seed=seed)))


def test_what_is_no_image_or_too_large_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("words")
    (tmp_path / "b.png").write_bytes(huge_png(15000, 11000))  # Below Pillow's own limit.
    os.mkfifo(tmp_path / "c.png")
    for name, expected in (("a.png", "a.png can't be decoded: .*PNG"), ("b.png", "announces 15000x11000"),
                           ("c.png", "no file, but a folder, device or pipe")):
        with pytest.raises(UserError, match=expected):
            open_image(tmp_path / name)
    (tmp_path / "c.png").unlink()
    with pytest.raises(UserError, match="image b.png in .* announces 15000x11000"):
        InputImages([str(tmp_path)], resolution=8, channels=3)[1]
