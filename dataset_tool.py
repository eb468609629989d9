"""Make a dataset for training: square images of one size in a folder or zip, with labels in dataset.json."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Iterator, Literal, NamedTuple, Protocol

import click
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import cli
from dnnlib.util import UserError, atomic_write, check_writable, made_folder
from training import dataset_check
from training.image_files import (
    MAX_RESOLUTION, METADATA_NAME, MIN_RESOLUTION, ImageFiles, load_labels, open_image_files, shown,
)
from training.synthetic_scenes import CLASS_NAMES, RESOLUTIONS, draw_scenes

Label = int | list[float] | None
Transform = Literal["center-crop"]
Labels = Literal["auto", "folders", "none"]
Color = Literal["auto", "rgb", "gray"]

RESIZE_FILTERS = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}
GRAY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
PNG_LEVEL = 1                         # zlib's fastest: training decodes these files again and again.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)     # The earliest that zips know; a fixed time makes equal data equal files.
_BUCKET = re.compile(r"\d{5,}")       # Folders that only divide a large set, as this tool makes them, are not classes.


class Item(NamedTuple):
    image: np.ndarray   # uint8 [H, W] or [H, W, 3].
    label: Label


class Source(Protocol):
    """Where images come from: an iterable of known length. New kinds of sources plug in here.

    Attributes:
        labels: What the labels are, for people; None = the items have none.
    """

    labels: str | None

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


class SyntheticSource:
    """Scenes number 0, 1, 2, ... of a seed; image i does not depend on how many there are."""

    _GROUP = 256

    def __init__(self, *, num_images: int, resolution: int, seed: int, use_labels: bool = True):
        if resolution not in RESOLUTIONS:
            raise UserError(f"--resolution={resolution}: synthetic images come in {', '.join(map(str, RESOLUTIONS))}")
        self.labels = f"{len(CLASS_NAMES)} classes: {', '.join(CLASS_NAMES)}" if use_labels else None
        self._num_images, self._resolution, self._seed = num_images, resolution, seed

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[Item]:
        for begin in range(0, self._num_images, self._GROUP):
            indices = np.arange(begin, min(begin + self._GROUP, self._num_images))
            images, labels = draw_scenes(indices, resolution=self._resolution, seed=self._seed)
            yield from map(Item, images, labels.tolist())


class FilesSource:
    """The images of a folder or zip, in sorted order of their names, converted to one size and kind.

    Args:
        files:         The images.
        max_images:    Stop after so many; None = all.
        resolution:    Side to resize to; None = every image has the size of the first one.
        transform:     "center-crop" cuts images to squares; None = they are squares.
        resize_filter: "box" or "lanczos".
        labels:        "auto" takes dataset.json, else sub-folders as classes unless they look like mere divisions of
                       a large set; "folders" insists on sub-folders; "none" leaves labels out.
        color:         "auto" follows the first image, "rgb" and "gray" convert.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        max_images: int | None,
        resolution: int | None,
        transform: Transform | None,
        resize_filter: str,
        labels: Labels,
        color: Color,
    ):
        self._files = files
        self._count = min(len(files), max_images or len(files))
        self._resolution, self._transform, self._filter = resolution, transform, RESIZE_FILTERS[resize_filter]
        self._color = color
        self.labels, self._item_labels = _find_labels(files, labels)
        self._first_side: int | None = None         # What the first image was like, where that decides.
        self._first_is_gray: bool | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for index in range(self._count):
            label = None if self._item_labels is None else self._item_labels[index]
            yield Item(self._convert(index), label)

    def _convert(self, index: int) -> np.ndarray:
        image = self._files.open(index)
        what = self._files.describe(index)
        image = ImageOps.exif_transpose(image)
        return np.asarray(self._to_size(_flatten(image, self._is_gray(image, what)), what))

    def _is_gray(self, image: Image.Image, what: str) -> bool:
        if self._color != "auto":
            return self._color == "gray"
        is_gray = image.mode in GRAY_MODES
        if self._first_is_gray is None:
            self._first_is_gray = is_gray
        if is_gray != self._first_is_gray:
            kind, other = ("grayscale", "RGB") if is_gray else ("RGB", "grayscale")
            raise UserError(f"{what} is {kind}, expected {other} like the first image: choose --color=rgb or gray")
        return is_gray

    def _to_size(self, image: Image.Image, what: str) -> Image.Image:
        width, height = image.size
        side = min(width, height)
        if width != height and self._transform != "center-crop":
            raise UserError(f"{what} is {width}x{height}, expected a square: crop with --transform=center-crop")
        target = self._resolution or self._same_side(side, what)
        if (width, height) == (target, target):
            return image
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))  # First: filters must not see what is cut off.
        return square.resize((target, target), self._filter)

    def _same_side(self, side: int, what: str) -> int:
        """The side of the first image, which all others must share where none is asked for."""
        if self._first_side is None:
            if side & (side - 1) or not MIN_RESOLUTION <= side <= MAX_RESOLUTION:
                raise UserError(f"{what} gives {side}x{side}, expected a power of two from {MIN_RESOLUTION} to "
                                f"{MAX_RESOLUTION}: resize with --resolution")
            self._first_side = side
        if side != self._first_side:
            raise UserError(f"{what} gives {side}x{side}, expected {self._first_side}x{self._first_side} like the "
                            "first image: resize with --resolution")
        return side


def _flatten(image: Image.Image, gray: bool) -> Image.Image:
    """As RGB or L; transparent images are laid on white, 16-bit ones keep their upper byte."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if gray else "RGB")


def _find_labels(files: ImageFiles, wanted: Labels) -> tuple[str | None, list[Label] | None]:
    """What the labels are, in words, and the label of each image."""
    if wanted == "none":
        return None, None
    if wanted == "auto" and files.read_metadata() is not None:
        array = load_labels(files)
        if array is None:
            return None, None
        kind = f"{array.max() + 1} classes" if array.ndim == 1 else f"vectors of {array.shape[1]}"
        return f"{kind} from {METADATA_NAME}", array.tolist()
    folders = [name.partition("/")[0] if "/" in name else None for name in files.names]
    if wanted == "auto" and (None in folders or len(set(folders)) < 2 or all(map(_BUCKET.fullmatch, folders))):
        return None, None
    if None in folders:
        raise UserError(f"{files.describe(folders.index(None))} is in no sub-folder, but --labels=folders takes them "
                        "as classes")
    classes = {name: number for number, name in enumerate(sorted(set(folders)))}
    words = ", ".join(shown(name) for name in classes) if len(classes) <= 20 else "in the order of their names"
    return f"{len(classes)} classes from sub-folders: {words}", [classes[name] for name in folders]


class Writer(Protocol):
    """Takes files by their name relative to the dataset."""

    def __call__(self, name: str, data: bytes) -> None: ...


@contextlib.contextmanager
def _zip_writer(dest: Path, overwrite: bool) -> Iterator[Writer]:
    if dest.is_dir() or (dest.exists() and not overwrite):
        raise UserError(f"{dest} exists: choose another --dest" + ("" if dest.is_dir() else " or give --overwrite"))
    with atomic_write(dest) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def _folder_writer(dest: Path, overwrite: bool) -> Iterator[Writer]:
    """Writes to a folder beside `dest` that takes its place at the end."""
    dest = dest.resolve()
    _check_folder_dest(dest, overwrite)
    temporary = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}.", suffix=".tmp"))
    made: set[Path] = set()

    def write(name: str, data: bytes) -> None:
        path = temporary / name
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(data)

    try:
        yield write
        temporary.chmod(0o777 & ~_umask())
        _take_place(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, dest: Path) -> None:
    if not dest.exists():
        os.replace(new, dest)
        return
    old = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}.", suffix=".old"))
    os.replace(dest, old)
    try:
        os.replace(new, dest)
    except OSError:
        os.replace(old, dest)
        raise
    shutil.rmtree(old)


def _check_folder_dest(dest: Path, overwrite: bool) -> None:
    if not dest.exists():
        return
    if not dest.is_dir():
        raise UserError(f"{dest} exists and is no folder: choose another --dest")
    entries = [entry.name for entry in dest.iterdir()]
    if entries and not overwrite:
        raise UserError(f"{dest} exists and is not empty: choose another --dest or give --overwrite")
    foreign = [name for name in entries if name != METADATA_NAME and not _BUCKET.fullmatch(name)]
    if foreign:
        raise UserError(f"{dest} has {shown(foreign[0])} in it, so it was not made by this tool and is not "
                        "overwritten: choose another --dest")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_dataset(source: Source, dest: str | os.PathLike, *, overwrite: bool = False) -> tuple[int, int, int]:
    """Write a dataset; nothing appears at `dest` before all of it is there.

    Args:
        source:    What to write.
        dest:      A path that ends in .zip, or a folder.
        overwrite: Replace what is there.

    Returns:
        Number of images, resolution, channels.

    Raises:
        UserError: An image is not as it must be, or `dest` can't be written.
    """
    dest = Path(dest)
    make: Callable = _zip_writer if dest.suffix.lower() == ".zip" else _folder_writer
    check_writable(dest)
    try:
        with made_folder(dest.parent), make(dest, overwrite) as write:
            return _write_items(source, write)
    except OSError as e:
        raise UserError(f"can't write {dest}: {e.strerror or e}") from e


def _write_items(source: Source, write: Writer) -> tuple[int, int, int]:
    labels = []
    shape: tuple[int, ...] = ()
    bar = tqdm(source, desc="Writing", unit="img", file=sys.stderr, leave=False)
    for index, item in enumerate(bar):
        number = f"{index:08d}"
        name = f"{number[:-3]}/img{number}.png"
        shape = item.image.shape
        write(name, _encode_png(item.image))
        labels.append([name, item.label])
    metadata = {"labels": labels if source.labels is not None else None}
    write(METADATA_NAME, json.dumps(metadata).encode())
    return len(labels), shape[0], shape[2] if len(shape) == 3 else 1


def _encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


@click.command(cls=cli.Command)
@click.option("--source", metavar="PATH|synthetic", required=True, help="Folder or zip of images, or 'synthetic'.")
@click.option("--dest", metavar="PATH", required=True, help="Folder, or path that ends in .zip, to write.")
@click.option("--resolution", type=click.IntRange(MIN_RESOLUTION, MAX_RESOLUTION), metavar="INT",
              help="Side of the images, a power of two; default: that of the source.")
@click.option("--max-images", type=click.IntRange(min=1), metavar="INT", help="Stop after so many images.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="INT",
              help="Draws the synthetic images.")
@click.option("--transform", type=click.Choice(["center-crop"]), help="Make squares of images that are not.")
@click.option("--resize-filter", type=click.Choice(list(RESIZE_FILTERS)), default="box", show_default=True,
              help="How images are resized; published scores of FFHQ at 256x256 hold for box.")
@click.option("--labels", type=click.Choice(["auto", "folders", "none"]), default="auto", show_default=True,
              help="auto: from dataset.json, else sub-folders as classes; folders: always the latter; none: no labels.")
@click.option("--color", type=click.Choice(["auto", "rgb", "gray"]), default="auto", show_default=True,
              help="Convert to RGB or grayscale; auto: as the first image.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset at --dest.")
def main(
    source: str, dest: str, resolution: int | None, max_images: int | None, seed: int, transform: Transform | None,
    resize_filter: str, labels: Labels, color: Color, overwrite: bool,
) -> None:
    """Make a dataset for training from a folder or zip of images, or draw a synthetic one.

    Synthetic scenes show one of twelve shapes each, and need nothing downloaded:

    \b
        python dataset_tool.py --source=synthetic --resolution=32 --max-images=20000 \\
            --dest=scenes.zip
    """
    if not dest:
        raise UserError("--dest is empty: give a folder, or a name that ends in .zip")
    if resolution is not None and resolution & (resolution - 1):
        raise UserError(f"--resolution={resolution}: expected a power of two, such as "
                        f"{1 << resolution.bit_length() - 1}")
    if source == "synthetic":
        if resolution is None or max_images is None:
            raise UserError("--source=synthetic: say how large and how many with --resolution and --max-images")
        if transform or color != "auto" or labels == "folders":
            raise UserError("--transform, --color and --labels=folders are for folders and zips, not for synthetic "
                            "images")
        items: Source = SyntheticSource(
            num_images=max_images, resolution=resolution, seed=seed, use_labels=labels != "none"
        )
    else:
        _check_not_inside(source, dest)
        items = FilesSource(
            open_image_files(source),
            max_images=max_images, resolution=resolution, transform=transform, resize_filter=resize_filter,
            labels=labels, color=color,
        )
    num_images, side, channels = write_dataset(items, dest, overwrite=overwrite)
    print(f"Wrote {num_images} images of {side}x{side}x{channels} to {dest}; labels: {items.labels or 'none'}")


def _check_not_inside(source: str, dest: str) -> None:
    if Path(dest).resolve() in Path(source).resolve().parents:
        raise UserError(f"--dest={dest} has --source={source} inside: choose another --dest")


@click.command(cls=cli.Command)
@click.argument("path", metavar="PATH")
@click.option("--workers", type=click.IntRange(min=1), metavar="INT", help="Processes that read; default: as cores.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of lines.")
def check(path: str, workers: int | None, as_json: bool) -> None:
    """Read all of a dataset and name whatever is wrong with it.

    PATH is a folder, a zip or a folder of zips. Each problem is a line that names the image, and a summary follows.
    The exit status is 1 if there are problems.
    """
    found: list[dataset_check.Problem] = []

    def report(problem: dataset_check.Problem) -> None:
        found.append(problem)
        if not as_json:
            tqdm.write(f"{problem.kind}: {problem.message}", file=sys.stdout)

    summary = dataset_check.DatasetCheck(path, report, workers=workers).run()
    print(dataset_check.to_json(summary, found) if as_json else dataset_check.format_summary(summary))
    if found:
        sys.exit(1)


if __name__ == "__main__":
    cli.DefaultGroup(main, check)()
