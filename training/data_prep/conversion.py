"""One image, as it comes, made into one of a dataset: upright, RGB or grayscale, square, of the size of all others."""

import contextlib
import dataclasses
import io
import warnings
from typing import Iterator, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dnnlib.util import UserError
from training.image_files import DECODING_ERRORS, FORMATS, MAX_RESOLUTION, MIN_RESOLUTION

Transform = Literal["center-crop", "center-crop-wide"]
Color = Literal["auto", "rgb", "gray"]

RESIZE_FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
MAX_PIXELS = 1 << 27   # 400 MB once decoded, in every worker; a header that announces more is refused.
PNG_LEVEL = 1          # zlib's fastest: training decodes these files again and again.

_GRAY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")

# Remarks about odd EXIF data and palettes: such images are converted by our rules, or refused in one line.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(UserError):
    """An image that can't be read or decoded, or is too large to try."""


class TooSmall(UserError):
    """An image below the size wanted, where the transform leaves such images out."""


def decode(data: bytes, what: str) -> Image.Image:
    """The first frame of an encoded image, upright as its EXIF data says.

    Args:
        data: A PNG, JPEG, WebP or BMP file.
        what: How messages name the image.

    Raises:
        BadImage: The data is damaged, or announces more than `MAX_PIXELS`; in the latter case nothing is decoded.
    """
    with _decoding_errors(what):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{what} announces {image.width}x{image.height} pixels, more than the {MAX_PIXELS} that are "
                           "decoded: scale it down or remove it")
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
        # Pillow's "cannot identify image file" shows a memory address and tells nothing.
        text = "" if isinstance(e, Image.UnidentifiedImageError) else " ".join(str(e).split())[:100]
        raise BadImage(f"{what} can't be decoded{f' ({text})' if text else ''}: replace or remove it; formats are "
                       f"{', '.join(FORMATS)}") from e


def is_gray(image: Image.Image) -> bool:
    return image.mode in _GRAY_MODES


def flatten(image: Image.Image, *, gray: bool) -> Image.Image:
    """As RGB or L; transparent images are laid on white, 16-bit ones keep their upper byte."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if gray else "RGB")


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image; the odd pixel is cut off at the right and at the bottom."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def widest_crop(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size within `size` that has the aspect ratio width:height, rounded to pixels, at least 1x1."""
    if size[0] * height > size[1] * width:
        return max(round(size[1] * width / height), 1), size[1]
    return size[0], max(round(size[0] * height / width), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """What the user wants of every image."""

    width: int | None = None           # None = all images have the size of the first; `height` then is None, too.
    height: int | None = None
    transform: Transform | None = None
    resize_filter: Literal["box", "lanczos"] = "lanczos"
    color: Color = "auto"              # "auto" = RGB or grayscale, like the first image.

    def check(self, *, size_option: str = "--width") -> None:
        """Raises UserError where no square images of a usable size can come of it; `size_option` said the size."""
        wide = self.transform == "center-crop-wide"
        if (self.width is None) != (self.height is None):
            raise UserError("--width and --height go together: give both, or --resolution")
        if self.width is None or self.height is None:
            if wide:
                raise UserError("--transform=center-crop-wide: say how wide and how high with --width and --height")
            return
        if wide and self.height > self.width:
            raise UserError(f"--width={self.width} --height={self.height}: --transform=center-crop-wide lays wide "
                            "images on a square, so the height is at most the width")
        if not wide and self.width != self.height:
            raise UserError(f"--width={self.width} --height={self.height}: networks take square images; give equal "
                            "numbers, or --transform=center-crop-wide")
        if self.width & (self.width - 1) or not MIN_RESOLUTION <= self.width <= MAX_RESOLUTION:
            below = max(1 << self.width.bit_length() - 1, MIN_RESOLUTION)
            raise UserError(f"{size_option}={self.width}: expected a power of two from {MIN_RESOLUTION} to "
                            f"{MAX_RESOLUTION}, such as {min(below, MAX_RESOLUTION)}")


class Converted(NamedTuple):
    image: Image.Image   # RGB or L, a square of the converter's side.
    squeezed: bool       # The image was not square, and no transform made it so: its shape is distorted.


class FirstImage(NamedTuple):
    """The first image of a source that can be decoded, which may decide for all."""

    what: str     # How messages name it.
    width: int
    height: int
    gray: bool


class Converter:
    """Converts all images alike; what the options leave open follows from the first image.

    Args:
        options: What the user wants; checked.
        first:   What the first image is like.

    Raises:
        UserError: The first image is no square, or of a size that networks don't take, where its size decides.

    Attributes:
        side: Width and height of all results.
        gray: Whether results are grayscale.
    """

    def __init__(self, options: ConversionOptions, first: FirstImage):
        self._options = options
        self._filter = RESIZE_FILTERS[options.resize_filter]
        self.gray = first.gray if options.color == "auto" else options.color == "gray"
        self.side = options.width or self._side_like_first(first)

    def _side_like_first(self, first: FirstImage) -> int:
        self._check_square(first.width, first.height, first.what)
        side = min(first.width, first.height)
        if side & (side - 1) or not MIN_RESOLUTION <= side <= MAX_RESOLUTION:
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
            UserError: It is of another size or kind than the first image, where that one decides.
        """
        if self._options.color == "auto" and is_gray(image) != self.gray:
            kind, other = ("RGB", "grayscale") if self.gray else ("grayscale", "RGB")
            raise UserError(f"{what} is {kind}, expected {other} like the first image: choose --color=rgb or gray")
        if self._options.transform == "center-crop-wide":
            return Converted(self._letterboxed(flatten(image, gray=self.gray), what), False)
        if self._options.width is None:
            self._check_square(image.width, image.height, what)
            if min(image.size) != self.side:
                raise UserError(f"{what} gives {min(image.size)}x{min(image.size)}, expected {self.side}x{self.side} "
                                "like the first image: resize with --resolution")
        image = flatten(image, gray=self.gray)
        if self._options.transform == "center-crop":
            image = center_crop(image, min(image.size), min(image.size))  # First: filters must not see the rest.
        return Converted(self._resized(image, self.side, self.side), image.width != image.height)

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), self._filter)

    def _letterboxed(self, image: Image.Image, what: str) -> Image.Image:
        """Cut to the aspect ratio, scaled, and laid on the middle of a black square."""
        width, height = self._options.width, self._options.height
        assert width is not None and height is not None
        if image.width < width or image.height < height:
            raise TooSmall(f"{what} is {image.width}x{image.height}, smaller than the {width}x{height} wanted")
        scaled = self._resized(center_crop(image, *widest_crop(image.size, width, height)), width, height)
        canvas = Image.new(image.mode, (width, width))
        canvas.paste(scaled, (0, (width - height) // 2))
        return canvas


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file with nothing but pixels in it."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
