"""The complete check of a dataset: every image is read and decoded. `ImageFolderDataset.check` is the quick check."""

import os
import sys
import time
from array import array
from collections import Counter
from typing import Callable, Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib.util import UserError, format_time, num_cores
from dnnlib.worker_pool import WorkerPool
from training.data.dataset import NUM_CHANNELS
from training.data.image_files import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    ImageFiles,
    Listed,
    Place,
    check_readable,
    find_shards,
    is_turned,
    is_valid_side,
    list_folder,
)
from training.data.image_names import METADATA_NAME, LeftOut, shown, why_left_out
from training.data.labels import has_stray_metadata, label_width, match_labels, read_entries
from training.data.zip_directory import ChecksumError, Entry, list_zip

MAX_PIXELS = MAX_RESOLUTION**2  # An image that announces more is not decoded.
_GROUP = 32                     # Images that a process reads at a time.

Shape = tuple[int, int, str]    # Width, height, and Pillow's mode.
Kind = Literal["archive", "name", "duplicate", "unreadable", "checksum", "huge", "size", "mode", "label", "turned"]


class Problem(NamedTuple):
    kind: Kind
    message: str    # Names the image or the archive.


class LabelSummary(NamedTuple):
    width: int                                      # Number of classes (largest class + 1), or length of the vectors.
    per_class: tuple[int, float, int] | None        # Minimum, median and maximum number of images; None for vectors.


class CheckSummary(NamedTuple):
    num_images: int
    num_bytes: int                  # Size of all image files that could be read.
    resolution: int | None          # The side of most images; None if training takes none of them.
    num_channels: int | None
    labels: LabelSummary | None
    left_out: str                   # How many files are not images, by reason, with the first name of each.
    problems: dict[str, int]        # Number of problems of each kind.
    seconds: float


class _Look(NamedTuple):
    """What was found about one image."""

    num_bytes: int
    shape: Shape | None     # None if the image can't be read.
    problem: Problem | None


def look_at_images(_state: None, files: ImageFiles) -> list[_Look]:
    """Read and decode images. Runs in worker processes."""
    return [_look(files, index) for index in range(len(files))]


def _look(files: ImageFiles, index: int) -> _Look:
    num_bytes, shape = 0, None
    try:
        data = files.read(index)
        num_bytes = len(data)
        image = files.parse(index, data)
        if image.width * image.height > MAX_PIXELS:
            return _Look(num_bytes, None, Problem("huge", _describe_huge(files, index, image.size)))
        files.pixels(index, image)
        shape = (*image.size, image.mode)
        files.verify(index, data)
        if is_turned(image):
            return _Look(num_bytes, shape, Problem("turned", (
                f"{files.describe(index)} is to be turned as EXIF says, which training ignores: convert with "
                "dataset_tool.py, which turns it upright")))
    except ChecksumError as e:
        return _Look(num_bytes, shape, Problem("checksum", str(e)))
    except UserError as e:
        if isinstance(e.__cause__, Image.DecompressionBombError):
            return _Look(num_bytes, None, Problem("huge", _describe_huge(files, index, None)))
        return _Look(num_bytes, shape, Problem("checksum" if shape else "unreadable", str(e)))
    return _Look(num_bytes, shape, None)


def _describe_huge(files: ImageFiles, index: int, size: tuple[int, int] | None) -> str:
    what = f"is {size[0]}x{size[1]}" if size else "says that it is huge"
    return f"{files.describe(index)} {what}, more than {MAX_PIXELS} pixels: it was not decoded"


class DatasetCheck:
    """One check of a whole dataset.

    Args:
        path:    Folder, zip or folder of zips.
        report:  Called with each problem when it is found.
        workers: Processes that read; None = one for each core.
    """

    def __init__(
        self, path: str | os.PathLike, report: Callable[[Problem], None], *, workers: int | None = None
    ):
        self._path, self._report = str(path), report
        self._workers = min(workers or num_cores(), num_cores())
        self._problems: Counter[str] = Counter()
        self._num_bytes = 0

    def run(self) -> CheckSummary:
        """Read the whole dataset and report its problems.

        Raises:
            UserError: There is no dataset at the path, or a reader process was killed.
        """
        start = time.monotonic()
        files = self._open()
        labels = self._check_labels(files)
        shape = self._check_images(files)
        if not len(files):
            self._found("archive", f"no images in {shown(self._path)}")
        return CheckSummary(
            num_images=len(files), num_bytes=self._num_bytes, resolution=shape[0] if shape else None,
            num_channels=NUM_CHANNELS[shape[2]] if shape else None, labels=labels,
            left_out=str(files.left_out) if files.left_out else "none", problems=dict(self._problems),
            seconds=time.monotonic() - start,
        )

    def _found(self, kind: Kind, message: str) -> None:
        self._problems[kind] += 1
        self._report(Problem(kind, message))

    # --- Listing.

    def _open(self) -> ImageFiles:
        """The folder, or all zips that can be opened."""
        check_readable(self._path, f"dataset {self._path}")
        paths, left_out = [self._path], LeftOut.none()
        if os.path.isdir(self._path):
            shards, left_out = find_shards(self._path)
            if not shards:
                return ImageFiles(self._path, [list_folder(self._path)])
            paths = [os.path.join(self._path, shard) for shard in shards]
        zips = []
        for path in paths:
            try:
                zips.append(self._open_zip(path))
            except UserError as e:
                self._found("archive", str(e))
        return ImageFiles(self._path, zips, left_out)

    def _open_zip(self, path: str) -> Listed:
        """All images in a zip, good or bad. Raises UserError if the zip can't be read."""
        listing = list_zip(path)
        names, rows = listing.names, listing.rows
        try:
            listing.check_places()
        except UserError as e:
            self._found("archive", str(e))
        images, metadata, left_out, seen = [], None, LeftOut.none(), set()
        for i, name in enumerate(names):
            if name.endswith("/"):
                continue
            if name in seen:
                self._found("duplicate", f"{shown(name)} is twice or more in {path}: readers differ in which they take")
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                self._found("name", f"{shown(name)} in {path} leads out of the folder that it is unpacked to")
            seen.add(name)
            if name == METADATA_NAME:
                metadata = Entry(*rows[i].item())
            elif reason := why_left_out(name):
                left_out.add(reason, name)
            else:
                images.append(i)
        return Listed(Place(path, listing.directory, metadata), [names[i] for i in images], rows[images], left_out)

    # --- Labels.

    def _check_labels(self, files: ImageFiles) -> LabelSummary | None:
        if has_stray_metadata(files):
            self._found("label", f"{METADATA_NAME} stands beside the zips in {self._path}, expected one in each")
        width, any_labels, classes, without = None, False, array("q"), []
        for number, place in enumerate(files.places):
            try:
                entries = read_entries(files, number)
            except UserError as e:
                self._found("label", str(e))
                continue
            if not entries:
                without.append(place.path)
                continue
            if not any_labels:
                width, any_labels = label_width(entries), True
            matched = match_labels(files.names_in(number), entries, width)
            for problem in matched.problems:
                self._found("label", f"{METADATA_NAME} of {place.path}: {problem}")
            if width is None:
                classes.extend(matched.labels)
        if not any_labels:
            return None
        for path in without:
            self._found("label", f"{METADATA_NAME} of {path} has no labels, but there are some in other zips")
        if width is not None:
            return LabelSummary(width, None)
        sizes = np.bincount(np.array(classes, dtype=np.int64))
        per_class = (int(sizes.min()), float(np.median(sizes)), int(sizes.max())) if len(sizes) else (0, 0.0, 0)
        return LabelSummary(len(sizes), per_class)

    # --- Images.

    def _check_images(self, files: ImageFiles) -> Shape | None:
        """Find problems of images. Returns the most frequent shape that training takes; None if there is none."""
        shapes: list[Shape | None] = []
        known: dict[Shape | None, Shape | None] = {}    # Equal shapes become one object, to save memory.
        groups = ((files.select(range(first, min(first + _GROUP, len(files)))),)
                  for first in range(0, len(files), _GROUP))
        name = shown(os.path.basename(os.path.abspath(self._path)))
        with WorkerPool(self._workers) as pool, tqdm(
            total=len(files), desc=f"Checking {name}", unit="img", leave=False, file=sys.stderr,
        ) as bar:
            for _, looks in pool.map(look_at_images, groups):
                for look in looks:
                    self._num_bytes += look.num_bytes
                    shapes.append(known.setdefault(look.shape, look.shape))
                    if look.problem:
                        self._found(*look.problem)
                bar.update(len(looks))
        counts = Counter(shapes)
        usable = [shape for shape in counts if shape is not None and _is_usable(*shape)]
        most = max(usable, key=lambda shape: counts[shape], default=None)
        for index, shape in enumerate(shapes):
            if shape is not None and shape != most:
                self._found(*_describe_odd(files, index, shape, most))
        return most


def _is_usable(width: int, height: int, mode: str) -> bool:
    return width == height and is_valid_side(width) and mode in NUM_CHANNELS


def _describe_odd(files: ImageFiles, index: int, shape: Shape, most: Shape | None) -> Problem:
    """The problem of an image that differs from `most`, or that training doesn't take."""
    width, height, mode = shape
    if most is None:
        expected = f"a square with a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION} as side, RGB or L"
    else:
        expected = f"{most[0]}x{most[1]} {most[2]} like most images"
    same_size = (width, height) == most[:2] if most else _is_usable(width, height, "RGB")
    message = f"{files.describe(index)} is {width}x{height} {mode}, expected {expected}"
    return Problem("mode" if same_size else "size", message)


# --- The report.


def format_summary(summary: CheckSummary) -> str:
    """The last lines of the report."""
    channels = {None: "", 1: ", 1 channel (grayscale)", 3: ", 3 channels (RGB)"}[summary.num_channels]
    side = summary.resolution
    total = sum(summary.problems.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.problems.items()))
    rows = [
        ("Images", f"{summary.num_images}, {summary.num_bytes / 1e6:.1f} MB"),
        ("Resolution", f"{side}x{side}{channels}" if side else "unknown: not one image can be used"),
        ("Labels", _format_labels(summary.labels)),
        ("Left out", summary.left_out),
        ("Problems", f"{total}: {kinds}" if total else "none"),
        ("Time", f"{format_time(summary.seconds)}, {summary.num_images / max(summary.seconds, 1e-9):.0f} img/s"),
    ]
    return "\n".join(f"{name:12s}{text}" for name, text in rows)


def _format_labels(labels: LabelSummary | None) -> str:
    if labels is None:
        return "none"
    if labels.per_class is None:
        return f"vectors of {labels.width} numbers"
    least, median, most = labels.per_class
    return f"{labels.width} classes, images per class: min {least}, median {median:g}, max {most}"
