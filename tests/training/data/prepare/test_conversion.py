import io

import numpy as np
import pytest
from PIL import Image

from dataset_fakes import encoded, huge_png, noise, sixteen_bit_png
from dnnlib.util import UserError
from training.data.prepare.conversion import (
    MAX_PIXELS,
    BadImage,
    ConversionOptions,
    Converter,
    FirstImage,
    TooSmall,
    decode,
    encode_png,
    flatten,
    is_gray,
    widest_crop,
)


def convert(image, **options):
    """The pixels that come of one image, which is the first of its source."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    options = ConversionOptions(**options)
    options.check()
    return Converter(options, FirstImage("it", *image.size, is_gray(image)))(image, "it")


def test_box_is_the_average_and_lanczos_is_pillows():
    wide = noise(0, height=32, width=48)
    box = np.asarray(convert(wide, width=8, height=8, transform="center-crop", resize_filter="box").image)
    expected = wide[:, 8:40].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(box - expected).max() < 1  # The average, rounded after each direction.
    lanczos = np.asarray(convert(wide, width=8, height=8, transform="center-crop").image)
    cropped = Image.fromarray(wide[:, 8:40]).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(lanczos, np.asarray(cropped))
    assert not np.array_equal(box, lanczos)


def test_lanczos_against_its_formula():
    """A row of 24 pixels to 8: weights sinc(x) sinc(x / 3) within 3 output pixels, normalised."""
    row = noise(1, height=1, width=24, channels=1)
    image = np.repeat(row, 24, axis=0)
    result = np.asarray(convert(image, width=8, height=8).image)
    assert (result == result[0]).all()
    centres = (np.arange(24) + 0.5) / 3 - (np.arange(8)[:, None] + 0.5)
    weights = np.where(np.abs(centres) < 3, np.sinc(centres) * np.sinc(centres / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    assert np.abs(result[0] - np.clip(weights @ row[0].astype(float), 0, 255)).max() <= 1


def test_squeezing_is_remarked():
    image, remarks = convert(noise(0, height=16, width=32), width=8, height=8)
    expected = Image.fromarray(noise(0, height=16, width=32)).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert remarks == ("squeezed",)
    assert not convert(noise(0), width=8, height=8).remarks
    assert not convert(noise(0, width=32), width=8, height=8, transform="center-crop").remarks


@pytest.mark.parametrize("transform, height, width, part", [
    ("letterbox", 60, 60, np.s_[7:52, :]),     # 4:3 of 60x60 is 60x45, of which the odd row is cut at the bottom.
    ("letterbox", 40, 80, np.s_[:, 13:66]),    # Too wide: round(40 * 4 / 3) = 53 columns.
    ("letterbox", 24, 32, np.s_[:, :]),        # As wanted.
    # StyleGAN2-ADA: all columns, and the middle round(32 * height / width) rows.
    ("wide", 60, 60, np.s_[14:46, :]),
    ("wide", 61, 80, np.s_[18:42, :]),         # round(24.4) = 24; of 37 rows, the odd one is cut at the bottom.
    ("wide", 24, 32, np.s_[:, :]),
    ("wide", 40, 32, np.s_[:, :]),             # Nothing is cut: too high images are squeezed.
])
def test_wide_transforms(transform, height, width, part):
    original = noise(2, height, width)
    image = np.asarray(convert(original, width=32, height=24, transform=f"center-crop-{transform}").image)
    scaled = Image.fromarray(original[part]).resize((32, 24), Image.Resampling.LANCZOS)
    assert image.shape == (32, 32, 3)
    np.testing.assert_array_equal(image[4:28], np.asarray(scaled))
    assert not image[:4].any() and not image[28:].any()


def test_wide_transforms_leave_small_images_out():
    for transform, height, width in (("letterbox", 23, 100), ("letterbox", 100, 31), ("wide", 100, 31),
                                     ("wide", 100, 137)):  # round(32 * 100 / 137) = 23 rows are fewer than 24.
        with pytest.raises(TooSmall, match=f"{width}x{height}, smaller than the 32x24"):
            convert(noise(0, height, width), width=32, height=24, transform=f"center-crop-{transform}")


def test_widest_crop_is_within_and_touches():
    for size in ((1, 1), (7, 3), (3, 7), (1000, 1), (333, 334)):
        width, height = widest_crop(size, 512, 384)
        assert 1 <= width <= size[0] and 1 <= height <= size[1] and (width == size[0] or height == size[1])


@pytest.mark.parametrize("options, part", [
    (dict(width=256), "go together"),
    (dict(width=256, height=128), "square"),
    (dict(width=256, height=128, transform="center-crop"), "square"),
    (dict(width=384, height=384), "power of two"),
    (dict(width=2, height=2), "power of two"),
    (dict(width=256, height=512, transform="center-crop-wide"), "at most the width"),
    (dict(width=384, height=256, transform="center-crop-wide"), "power of two"),
    (dict(transform="center-crop-wide"), "--width and --height"),
])
def test_options_that_give_no_squares(options, part):
    with pytest.raises(UserError, match=part):
        ConversionOptions(**options).check()


def test_first_image_decides():
    converter = Converter(ConversionOptions(), FirstImage("the first", 16, 16, False))
    assert (converter.side, converter.gray) == (16, False)
    with pytest.raises(UserError, match="it gives 32x32, expected 16x16 like the first"):
        converter(Image.fromarray(noise(0, 32, 32)), "it")
    gray = Image.fromarray(noise(0, channels=1))
    with pytest.raises(UserError, match="it is grayscale, expected RGB .*--color.*--skip-bad"):
        converter(gray, "it")
    image, remarks = Converter(ConversionOptions(), FirstImage("it", 16, 16, False), recolors=True)(gray, "it")
    assert remarks == ("recolored",) and (np.asarray(image) == noise(0, channels=1)[..., None]).all()
    for size, part in (((16, 32), "16x32, expected a square"), ((20, 20), "power of two")):
        with pytest.raises(UserError, match=f"the first .*{part}"):
            Converter(ConversionOptions(), FirstImage("the first", *size, False))


def rgb(image):
    return np.asarray(image.convert("RGB"))


def premultiplied(rgba):
    """On white, by the formula."""
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def test_kinds_of_pixels():
    gray16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    palette = Image.fromarray(noise(1)).quantize(16)
    clear = noise(3, channels=4)
    two = Image.fromarray((noise(4, channels=1) > 127).astype(np.uint8) * 255).convert("1")
    cmyk = Image.fromarray(noise(5) // 2 + 60).convert("CMYK")
    for image, expected, error in (
        (Image.fromarray(gray16), np.arange(256).reshape(16, 16), 0),
        (palette, rgb(palette), 0),
        (Image.fromarray(clear, "RGBA"), premultiplied(clear), 1),
        (Image.fromarray(noise(6, channels=4)[..., :2], "LA"), None, 0),
        (two, np.asarray(two) * 255, 0),
    ):
        image = decode(encoded(image), "it")
        pixels = np.asarray(flatten(image, gray=is_gray(image)))
        if expected is not None:
            assert pixels.shape == expected.shape and np.abs(pixels - expected.astype(float)).max() <= error, image.mode
        else:
            assert pixels.shape == (16, 16)
    pixels = np.asarray(flatten(decode(encoded(cmyk, "JPEG", quality=100, subsampling=0), "it"), gray=False))
    assert pixels.shape == (16, 16, 3) and np.abs(pixels - (noise(5) // 2 + 60.0)).max() < 12  # JPEG is not exact.


def test_sixteen_bits_of_which_twelve_are_used():
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    rgb16 = sixteen_bit_png(np.stack([pixels * 16] * 3, axis=-1))
    tiff = encoded(Image.fromarray(pixels * 16), "TIFF")
    for data, remarks in (
        (encoded(Image.fromarray(pixels * 16)), ("dark",)), (rgb16, ("dark",)), (tiff, ("dark",)),
        (encoded(Image.fromarray(pixels * 17)), ()), (sixteen_bit_png(np.stack([pixels * 257] * 3, axis=-1)), ()),
        (encoded(Image.fromarray(pixels * 0)), ()), (encoded(Image.fromarray(pixels.astype(np.uint8) // 20)), ()),
    ):
        assert convert(decode(data, "it")).remarks == remarks
    with pytest.raises(BadImage, match="floating-point"):
        decode(encoded(Image.fromarray(pixels.astype(np.float32)), "TIFF"), "it")


def test_palette_with_transparency_is_laid_on_white():
    image = Image.fromarray(noise(1)).quantize(4)
    data = encoded(image, transparency=0)
    pixels = np.asarray(flatten(decode(data, "it"), gray=False))
    index = np.asarray(image)
    assert (pixels[index == 0] == 255).all() and (index == 0).any()
    np.testing.assert_array_equal(pixels[index != 0], rgb(image)[index != 0])


@pytest.mark.parametrize("orientation, turned", [
    (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)),
    (8, lambda a: np.rot90(a)),
])
def test_exif_orientation(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(noise(2, height=8), exif=exif), "it")
    np.testing.assert_array_equal(np.asarray(image), turned(noise(2, height=8)))


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_first_frame_of_animations(kind):
    frames = [Image.fromarray(noise(i)) for i in range(3)]
    options = dict(lossless=True) if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(rgb(decode(data, "it")), noise(0))


def test_decompression_bombs_are_refused_before_decoding():
    for side in (100_000, int(MAX_PIXELS**0.5) + 8):  # Beyond Pillow's own limit, and below it.
        with pytest.raises(BadImage, match=f"it announces .* the {MAX_PIXELS}"):
            decode(huge_png(side, side), "it")


@pytest.mark.parametrize("data", [
    b"", b"no image", encoded(noise(0))[:200], encoded(noise(0))[:-60], encoded(noise(0), "JPEG")[:300],
    encoded(noise(0), "WEBP")[:100], encoded(noise(0), "GIF")[:200], encoded(noise(0), "TIFF")[:100],
    encoded(noise(0), "ICO"),
], ids=["empty", "text", "png", "end of png", "jpeg", "webp", "gif", "tiff", "ico"])
def test_damaged_and_unknown_data(data):
    with pytest.raises(BadImage, match="it can't be decoded.*PNG, JPEG"):
        decode(data, "it")


def test_random_damage_gives_images_or_one_line():
    """Whatever the decoders raise on damaged bytes is known."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    originals = [encoded(noise(0), kind, **options) for kind, options in (
        ("PNG", dict(exif=exif)), ("JPEG", dict(exif=exif)), ("WEBP", dict(exif=exif)), ("BMP", {}), ("GIF", {}),
        ("TIFF", dict(compression="tiff_lzw")), ("JPEG2000", {}), ("PPM", {}))]
    for i in range(800):
        data = bytearray(originals[i % 8])
        for position in rng.integers(0, len(data), 1 + i % 3):
            data[position] = rng.integers(256)
        try:
            image = decode(bytes(data), "it")
            assert min(image.size) > 0
        except BadImage as e:
            assert "\n" not in str(e) and str(e).startswith("it ")


def test_png_is_plain():
    exif = Image.Exif()
    exif[0x010E] = "words"
    image = Image.open(io.BytesIO(encode_png(decode(encoded(noise(0), exif=exif), "it"))))
    assert (image.format, image.mode, image.size, image.info) == ("PNG", "RGB", (16, 16), {})
    np.testing.assert_array_equal(np.asarray(image), noise(0))
