"""Users' own images: found in files, folders, zips and by patterns, decoded, and cropped and scaled for a network."""

import glob
import itertools
import os
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np
from PIL import Image

from dnnlib.util import UserError
from training.data.image_files import ImageFiles, open_image_files, read_regular
from training.data.image_names import shown
from training.data.prepare.conversion import center_crop, decode, flatten


class InputImage(NamedTuple):
    name: str           # For output files: the name of the input file without suffix, made unique.
    pixels: np.ndarray  # uint8 [R, R, C].
    changes: str        # How it was changed to fit, such as "cropped, scaled"; "" = unchanged.


class _Source(NamedTuple):
    name: str
    path: str
    files: ImageFiles | None    # None = `path` is the image.
    index: int  # type: ignore[assignment]


class InputImages:
    """The images at some paths, in the order of the paths. Images of folders and zips are sorted by name.

    Args:
        paths:      Image files, folders, zips as datasets, or patterns such as `photos/*.png`.
        resolution: Side of the images that the network takes.
        channels:   1 or 3.
        max_images: Take only the first `max_images`. The attribute `num_found` is the number of all.

    Raises:
        UserError: There is nothing at a path, or no file matches a pattern.
    """

    def __init__(
        self, paths: Sequence[str], *, resolution: int, channels: int, max_images: int | None = None
    ) -> None:
        self.resolution = resolution
        self.channels = channels
        self.num_found = 0
        self._sources: list[_Source] = []
        taken: set[str] = set()
        for path in itertools.chain.from_iterable(map(_expand, paths)):
            is_set = os.path.isdir(path) or path.lower().endswith(".zip")
            files = open_image_files(path, by_content=True) if is_set else None
            names = [path] if files is None else files.names()
            self.num_found += len(names)
            room = None if max_images is None else max_images - len(self)
            for index, name in enumerate(itertools.islice(names, room)):
                self._sources.append(_Source(_unique(Path(name).stem, taken), path, files, index))

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[InputImage]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> InputImage:
        """Decode an image and fit it to the network. A UserError names the file if it can't be decoded."""
        source = self._sources[index]
        if source.files is None:
            image = open_image(source.path)
        else:
            image = decode(source.files.read(source.index), source.files.describe(source.index))
        pixels, changes = fit_image(image, resolution=self.resolution, channels=self.channels)
        return InputImage(source.name, pixels, changes)

    def check(self) -> None:
        """Decode every image, to find damaged ones before anything is written."""
        for _ in self:
            pass


def _expand(path: str) -> list[str]:
    if os.path.exists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    matches = [match for match in matches if not os.path.isdir(match)]
    if not matches:
        what = "no file fits this pattern" if glob.has_magic(path) else "there is no such file or folder"
        raise UserError(f"{shown(path) or repr(path)}: {what}; expected images, folders or zips of images")
    return matches


def _unique(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name.lower() in taken:  # lower: some file systems don't tell A from a
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return name


def open_image(path: str | os.PathLike) -> Image.Image:
    """Decode an image file, and turn it upright as its EXIF data says.

    Raises:
        UserError: The file can't be read or decoded, or the image is too large.
    """
    what = shown(str(path))
    return decode(read_regular(path, what), what)


def fit_image(image: Image.Image, *, resolution: int, channels: int) -> tuple[np.ndarray, str]:
    """Convert an image to what a network takes: crop it to a square, scale it, make it RGB or grayscale.

    Args:
        image:      Image of any size and mode. Transparent images are laid on white, and 16 bits become 8.
        resolution: Side of the result. A box filter scales down, a bicubic one up.
        channels:   1 or 3.

    Returns:
        uint8 [resolution, resolution, channels], and the changes, such as "cropped, scaled"; "" = unchanged.
    """
    changes = []
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        changes.append("grayscale" if channels == 1 else f"{image.mode} to RGB")
        image = flatten(image, gray=channels == 1)
    width, height = image.size
    side = min(width, height)
    if width != height:
        image = center_crop(image, side, side)
        changes.append("cropped")
    if side != resolution:
        wanted = Image.Resampling.BOX if side > resolution else Image.Resampling.BICUBIC
        image = image.resize((resolution, resolution), wanted)
        changes.append("scaled")
    return np.asarray(image).reshape(resolution, resolution, channels), ", ".join(changes)
