"""Converting single images for a dataset: upright, RGB or grayscale, square, all of one size."""

import contextlib
import dataclasses
import io
import warnings
from typing import Iterator, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dnnlib.util import UserError
from training.data.image_files import MAX_RESOLUTION, MIN_RESOLUTION, is_valid_side
from training.data.image_names import DECODING_ERRORS, describe_decoding_error, source_formats

CropTransform = Literal["center-crop", "center-crop-wide", "center-crop-letterbox"]
Remark = Literal["squeezed", "recolored", "dark"]
Color = Literal["auto", "rgb", "gray"]

RESIZE_FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
MAX_PIXELS = 1 << 27   # These take 400 MB in each worker when decoded. Larger images are refused by their header.
PNG_LEVEL = 1          # zlib's fastest level, because training decodes these files again and again.

_WIDE = ("center-crop-wide", "center-crop-letterbox")   # These transforms place images on a black square.
_DEEP = "more than 8 bits per channel"                  # A key of `Image.info`: whether the file has such pixels.
_GRAY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")

# Pillow warns of odd EXIF data and palettes. Such images are converted, or refused with an error of one line.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(UserError):
    """An image that can't be read or decoded, or is too large to be decoded."""


class TooSmall(UserError):
    """An image that the transform leaves out because it is smaller than the size wanted."""


def decode(data: bytes, what: str) -> Image.Image:
    """The first frame of an encoded image, upright as its EXIF data says.

    Args:
        data: A file of one of `source_formats`.
        what: How messages name the image.

    Raises:
        BadImage: The data is damaged, has floating-point pixels, or announces more than `MAX_PIXELS`. In the last case
            nothing is decoded.
    """
    with _decoding_errors(what):
        image = Image.open(io.BytesIO(data), formats=source_formats())
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{what} announces {image.width}x{image.height} pixels, more than the {MAX_PIXELS} that are "
                           "decoded: scale it down or remove it")
        if image.mode == "F":
            raise BadImage(f"{what} has floating-point pixels, whose range nobody knows: convert it to 8 or 16 bits")
        image.info[_DEEP] = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
        return ImageOps.exif_transpose(image)


@contextlib.contextmanager
def _decoding_errors(what: str) -> Iterator[None]:
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as e:
        raise BadImage(f"{what} announces more than the {MAX_PIXELS} pixels that are decoded: scale it down or remove "
                       "it") from e
    except MemoryError as e:
        raise BadImage(f"{what} does not fit in memory when decoded: scale it down or remove it") from e
    except DECODING_ERRORS as e:
        raise BadImage(describe_decoding_error(what, e, source_formats())) from e


def is_gray(image: Image.Image) -> bool:
    return image.mode in _GRAY_MODES


def flatten(image: Image.Image, *, gray: bool) -> Image.Image:
    """Convert an image to RGB or L. Transparent images are laid on white. 16-bit pixels keep their upper byte."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if gray else "RGB")


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image. If the margins can't be equal, those at the right and at the bottom are larger."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def is_dark(original: Image.Image, image: Image.Image) -> bool:
    """Whether a 16-bit image became nearly black because only its upper 8 bits were kept.

    Cameras and scanners write 12-bit pixels to 16-bit files.

    Args:
        original: From `decode`.
        image:    The same image from `flatten`.
    """
    if not original.info.get(_DEEP):
        return False
    return np.asarray(image).max() < 16 and bool(np.asarray(original).any())


def widest_crop(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size within `size` that has the aspect ratio width:height, rounded to pixels, at least 1x1."""
    if size[0] * height > size[1] * width:
        return max(round(size[1] * width / height), 1), size[1]
    return size[0], max(round(size[0] * height / width), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """The size and kind of the images that the user wants, and how they are made so."""

    width: int | None = None           # None = the size of the first image; then `height` is None as well.
    height: int | None = None
    transform: CropTransform | None = None
    resize_filter: Literal["box", "lanczos"] = "lanczos"
    color: Color = "auto"              # "auto" = RGB or grayscale, like the first image.

    def check(self, *, size_option: str = "--width") -> None:
        """Raise UserError if the results would not be square images of a valid size.

        Args:
            size_option: The option by which the user gave the size, for messages.
        """
        wide = self.transform in _WIDE
        if (self.width is None) != (self.height is None):
            raise UserError("--width and --height go together: give both, or --resolution")
        if self.width is None or self.height is None:
            if wide:
                raise UserError(f"--transform={self.transform}: say how wide and how high with --width and --height")
            return
        if wide and self.height > self.width:
            raise UserError(f"--width={self.width} --height={self.height}: --transform={self.transform} lays wide "
                            "images on a square, so the height is at most the width")
        if not wide and self.width != self.height:
            raise UserError(f"--width={self.width} --height={self.height}: networks take square images; give equal "
                            "numbers, or --transform=center-crop-letterbox")
        if not is_valid_side(self.width):
            below = max(1 << self.width.bit_length() - 1, MIN_RESOLUTION)
            raise UserError(f"{size_option}={self.width}: expected a power of two from {MIN_RESOLUTION} to "
                            f"{MAX_RESOLUTION}, such as {min(below, MAX_RESOLUTION)}")


class Converted(NamedTuple):
    image: Image.Image   # RGB or L, a square of the converter's side.
    remarks: tuple[Remark, ...]


class FirstImage(NamedTuple):
    """The first image of a source that can be decoded. It decides what the options leave open."""

    what: str     # How messages name it.
    width: int
    height: int
    gray: bool


class Converter:
    """Converts all images alike. What the options leave open follows from the first image.

    Args:
        options:  What the user wants; checked.
        first:    Properties of the first image.
        recolors: If `options.color` is "auto", convert images to RGB or grayscale like the first one; False = refuse
                  those that differ.

    Raises:
        UserError: The size of the first image decides, and it is no square, or networks don't take it.

    Attributes:
        side:          Width and height of all results.
        gray:          Whether results are grayscale.
        resize_filter: The filter that scales images; None = the first image has the wanted size.
    """

    def __init__(self, options: ConversionOptions, first: FirstImage, *, recolors: bool = False):
        self._options, self._recolors = options, recolors
        self._filter = RESIZE_FILTERS[options.resize_filter]
        self.gray = first.gray if options.color == "auto" else options.color == "gray"
        self.side = options.width or self._side_like_first(first)
        squeezes = options.transform is None and first.width != first.height
        scales = squeezes or min(first.width, first.height) != self.side
        self.resize_filter = options.resize_filter if scales else None

    def _side_like_first(self, first: FirstImage) -> int:
        self._check_square(first.width, first.height, first.what)
        side = min(first.width, first.height)
        if not is_valid_side(side):
            raise UserError(f"{first.what} gives {side}x{side}, expected a power of two from {MIN_RESOLUTION} to "
                            f"{MAX_RESOLUTION}: resize with --resolution")
        return side

    def _check_square(self, width: int, height: int, what: str) -> None:
        if width != height and self._options.transform is None:
            raise UserError(f"{what} is {width}x{height}, expected a square: crop with --transform=center-crop")

    def __call__(self, image: Image.Image, what: str) -> Converted:
        """Convert one image.

        Raises:
            TooSmall:  The transform leaves it out.
            UserError: It differs from the first image in size or colour, where the first image decides.
        """
        remarks: list[Remark] = []
        if self._options.color == "auto" and is_gray(image) != self.gray:
            if not self._recolors:
                kind, other = ("RGB", "grayscale") if self.gray else ("grayscale", "RGB")
                raise UserError(f"{what} is {kind}, expected {other} like the first image: choose --color=rgb or gray, "
                                "or have such images converted with --skip-bad")
            remarks.append("recolored")
        original, image = image, flatten(image, gray=self.gray)
        if is_dark(original, image):
            remarks.append("dark")
        if self._options.transform in _WIDE:
            return Converted(self._on_square(image, what), tuple(remarks))
        if self._options.width is None:
            self._check_square(image.width, image.height, what)
            if min(image.size) != self.side:
                raise UserError(f"{what} gives {min(image.size)}x{min(image.size)}, expected {self.side}x{self.side} "
                                "like the first image: resize with --resolution")
        if self._options.transform == "center-crop":
            # Crop before scaling, so that the filter doesn't see pixels that are cut off.
            image = center_crop(image, min(image.size), min(image.size))
        if image.width != image.height:  # Not cropped: scaling distorts it.
            remarks.append("squeezed")
        return Converted(self._resized(image, self.side, self.side), tuple(remarks))

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), self._filter)

    def _on_square(self, image: Image.Image, what: str) -> Image.Image:
        """The image, cropped, scaled to width x height, and laid on the middle of a black square."""
        width, height = self._options.width, self._options.height
        assert width is not None and height is not None
        size = widest_crop(image.size, width, height)
        too_small = image.width < width or image.height < height
        if self._options.transform == "center-crop-wide":
            # Like StyleGAN2-ADA, compute how many rows to keep for the image scaled to WIDTH, but cut them from the
            # image before it is scaled. So images that are wider than WIDTH are squeezed.
            size = image.width, round(width * image.height / image.width)
            too_small = image.width < width or size[1] < height
        if too_small:
            raise TooSmall(f"{what} is {image.width}x{image.height}, smaller than the {width}x{height} wanted")
        scaled = self._resized(center_crop(image, *size), width, height)
        canvas = Image.new(image.mode, (width, width))
        canvas.paste(scaled, (0, (width - height) // 2))
        return canvas


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file with nothing but pixels in it."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
