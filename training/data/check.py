"""Reading all of a dataset to find all that is wrong with it; `ImageFolderDataset.check` is the quick look."""

import dataclasses
import itertools
import json
import os
import sys
import time
from array import array
from collections import Counter
from typing import Any, Callable, Iterator, Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib.util import UserError, format_time, num_cores
from dnnlib.worker_pool import WorkerPool
from training.data.dataset import NUM_CHANNELS
from training.data.image_files import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    ChecksumError,
    FolderFiles,
    ImageFiles,
    ZipFiles,
    beside_shards,
    check_readable,
    find_shards,
    is_label_entry,
    is_turned,
    label_problem,
    limit_labels,
    parse_labels,
    read_record,
)
from training.data.image_names import METADATA_NAME, LeftOut, shown, why_left_out
from training.data.zip_directory import open_directory

MAX_PIXELS = MAX_RESOLUTION**2  # An image that announces more is not decoded.
_GROUP = 32                     # Images that a process reads at a time.

Kind = Literal["archive", "name", "duplicate", "unreadable", "checksum", "huge", "size", "mode", "label", "turned"]


class Problem(NamedTuple):
    kind: Kind
    message: str    # Names the image or the archive.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSummary:
    kind: Literal["classes", "vectors"]
    width: int                                      # Largest class + 1, or length of the vectors.
    per_class: tuple[int, float, int] | None        # Minimum, median and maximum number of images; None for vectors.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    path: str
    num_images: int
    num_bytes: int                  # Of the image files that could be read.
    resolution: int | None          # Of most images; None where not one is as it must be.
    num_channels: int | None
    labels: LabelSummary | None
    left_out: dict[str, int]        # Files that are no images, by reason.
    left_out_text: str              # The same in words, with the first name of each; "" = none.
    problems: dict[str, int]        # By kind.
    seconds: float


class _Look(NamedTuple):
    """What one image turned out to be."""

    num_bytes: int
    shape: tuple[int, int, str] | None  # Width, height, mode; None where that is beyond knowing.
    problem: Problem | None


class _Archive(NamedTuple):
    """A folder or zip whose listing could be read."""

    files: ImageFiles
    where: str                      # Names its dataset.json in messages.
    read_metadata: Callable[[], bytes | None]


def look_at_images(_state: None, _number: int, files: ImageFiles) -> list[_Look]:
    """Read and decode images; runs in reader processes."""
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
        path:     Folder, zip or folder of zips.
        report:   Called with each problem when it is found.
        workers:  Processes that read; None = one for each core.
        progress: Show a progress bar on stderr.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        report: Callable[[Problem], None],
        *,
        workers: int | None = None,
        progress: bool = True,
    ):
        self._path, self._report = str(path), report
        self._workers, self._progress = min(workers or num_cores(), num_cores()), progress
        self._problems: Counter[str] = Counter()
        self._num_bytes = 0
        self._left_out = LeftOut.none()

    def run(self) -> Summary:
        """Look at everything.

        Raises:
            UserError: There is no dataset at the path, or a reader process was killed.
        """
        start = time.monotonic()
        archives = self._open()
        labels = self._check_labels(archives)
        shape = self._check_images(archives)
        num_images = sum(len(archive.files) for archive in archives)
        if not num_images:
            self._found("archive", f"no images in {shown(self._path)}")
        return Summary(
            path=self._path, num_images=num_images, num_bytes=self._num_bytes,
            resolution=shape[0] if shape else None, num_channels=NUM_CHANNELS[shape[2]] if shape else None,
            labels=labels, left_out=dict(self._left_out.counts), problems=dict(self._problems),
            left_out_text=str(self._left_out) if self._left_out else "", seconds=time.monotonic() - start,
        )

    def _found(self, kind: Kind, message: str) -> None:
        self._problems[kind] += 1
        self._report(Problem(kind, message))

    # --- Listing.

    def _open(self) -> list[_Archive]:
        is_folder = os.path.isdir(self._path)
        shards = find_shards(self._path) if is_folder else []
        if not is_folder:
            check_readable(self._path)
        elif not shards:
            files = FolderFiles(self._path)
            self._left_out = files.left_out
            return [_Archive(files, f"{METADATA_NAME} of {self._path}", files.read_metadata)]
        else:
            self._left_out = beside_shards(self._path, shards)
            if os.path.exists(os.path.join(self._path, METADATA_NAME)):
                self._found("label", f"{METADATA_NAME} stands beside the zips in {self._path}, expected one in each")
        archives = []
        for path in [os.path.join(self._path, shard) for shard in shards] or [self._path]:
            try:
                archives.append(self._open_zip(path))
            except UserError as e:
                self._found("archive", str(e))
        return archives

    def _open_zip(self, path: str) -> _Archive:
        directory = open_directory(path)
        places = [(chunk.positions, chunk.begins, chunk.ends) for chunk in directory.chunks()]
        try:
            directory.check_places([begins for _, begins, _ in places], [ends for _, _, ends in places])
        except UserError as e:
            self._found("archive", str(e))
        positions = np.concatenate([np.zeros([0], dtype=np.int64), *(positions for positions, _, _ in places)])
        del places
        images, metadata, seen = array("Q"), None, set()
        for position, record in zip(positions.tolist(), directory.records(positions)):
            name = record.name
            if name.endswith("/"):
                continue
            if name in seen:
                self._found("duplicate", f"{shown(name)} is twice or more in {path}: readers differ in which they take")
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                self._found("name", f"{shown(name)} in {path} leads out of the folder that it is unpacked to")
            seen.add(name)
            if name == METADATA_NAME:
                metadata = record
            elif reason := why_left_out(name):
                self._left_out.add(reason, name)
            else:
                images.append(position)
        where = f"{METADATA_NAME} of {path}"
        files = ZipFiles.from_entries(directory, np.array(images, dtype=np.uint64))

        def read_metadata() -> bytes | None:
            if metadata is None:
                return None
            limit_labels(where, metadata.size, len(files))
            return read_record(directory, metadata, where)

        return _Archive(files, where, read_metadata)

    # --- Labels.

    def _check_labels(self, archives: list[_Archive]) -> LabelSummary | None:
        """Two passes, for the first image or zip may be the bad one: what most labels are like, then all of them."""
        kinds: Counter[int | None] = Counter()
        counts = []
        for archive in archives:
            entries = self._parse(archive, tell=True)
            counts.append(None if entries is None else len(entries))
            labels = [entry[1] for entry in entries or [] if is_label_entry(entry)]
            kinds.update(len(label) if type(label) is list else None for label in labels if type(label) in (int, list))
        if not any(counts):
            return None
        width = kinds.most_common(1)[0][0] if kinds else None
        classes = array("q")
        for archive, count in zip(archives, counts):
            if count == 0:
                self._found("label", f"{archive.where} has no labels, but there are some in other zips")
            elif count:
                classes.extend(self._match(archive, self._parse(archive, tell=False) or [], width))
        if width is not None:
            return LabelSummary(kind="vectors", width=width, per_class=None)
        sizes = np.bincount(np.array(classes, dtype=np.int64))
        per_class = (int(sizes.min()), float(np.median(sizes)), int(sizes.max())) if len(sizes) else (0, 0.0, 0)
        return LabelSummary(kind="classes", width=len(sizes), per_class=per_class)

    def _parse(self, archive: _Archive, *, tell: bool) -> list[Any] | None:
        """All entries of a dataset.json, which are many objects: of one archive at a time."""
        try:
            return parse_labels(archive.read_metadata(), archive.where)
        except UserError as e:
            if tell:
                self._found("label", str(e))
            return None

    def _match(self, archive: _Archive, entries: list[Any], width: int | None) -> Iterator[int]:
        """Reports labels that are not as they must be; gives the good ones if they are classes."""
        missing = set(archive.files.iter_names())
        labelled = set()
        for entry in entries:
            if not is_label_entry(entry):
                self._found("label", f'{archive.where}: expected ["name.png", label], found {json.dumps(entry)[:80]}')
                continue
            name, label = entry
            if name in labelled:
                self._found("label", f"{archive.where}: a second label for {shown(name)}, {json.dumps(label)[:80]}")
                continue
            labelled.add(name)
            if name not in missing:
                self._found("label", f"{archive.where}: a label for {shown(name)}, which is not there")
                continue
            missing.discard(name)
            problem = label_problem(label, width)
            if problem:
                self._found("label", f"{archive.where}: label of {shown(name)} is {json.dumps(label)[:80]}, {problem}")
            elif width is None:
                yield label
        for name in sorted(missing):
            self._found("label", f"{archive.where}: no label for {shown(name)}")

    # --- Images.

    def _check_images(self, archives: list[_Archive]) -> tuple[int, int, str] | None:
        """Width, height and mode of most images that could be used."""
        shapes: dict[tuple[int, int, str] | None, int] = {None: 0}
        codes = [array("I") for _ in archives]
        total = sum(len(archive.files) for archive in archives)
        with tqdm(total=total, desc=f"Checking {shown(os.path.basename(os.path.abspath(self._path)))}", unit="img",
                  disable=not self._progress, leave=False, file=sys.stderr) as bar:
            for number, looks in self._look_at_all(archives):
                for look in looks:
                    self._num_bytes += look.num_bytes
                    codes[number].append(shapes.setdefault(look.shape, len(shapes)))
                    if look.problem:
                        self._found(*look.problem)
                bar.update(len(looks))
        counts: Counter[int] = Counter(itertools.chain.from_iterable(codes))
        usable = [shape for shape in shapes if shape is not None and _is_usable(*shape)]
        most = max(usable, key=lambda shape: counts[shapes[shape]], default=None)
        by_code = list(shapes)
        for archive, archive_codes in zip(archives, codes):
            for index, code in enumerate(archive_codes):
                if by_code[code] not in (None, most):
                    self._found(*_describe_odd(archive.files, index, by_code[code], most))
        return most

    def _look_at_all(self, archives: list[_Archive]) -> Iterator[tuple[int, list[_Look]]]:
        """Number of the archive and what some of its images are, in order."""
        groups = (
            (number, archive.files.select(range(first, min(first + _GROUP, len(archive.files)))))
            for number, archive in enumerate(archives) for first in range(0, len(archive.files), _GROUP)
        )
        with WorkerPool(self._workers) as pool:
            for (number, _), looks in pool.map(look_at_images, groups):
                yield number, looks


def _is_usable(width: int, height: int, mode: str) -> bool:
    power_of_two = not width & (width - 1) and MIN_RESOLUTION <= width <= MAX_RESOLUTION
    return width == height and power_of_two and mode in NUM_CHANNELS


def _describe_odd(
    files: ImageFiles, index: int, shape: tuple[int, int, str], most: tuple[int, int, str] | None
) -> Problem:
    width, height, mode = shape
    if most is None:
        expected = f"a square with a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION} as side, RGB or L"
    else:
        expected = f"{most[0]}x{most[1]} {most[2]} like most images"
    same_size = (width, height) == most[:2] if most else _is_usable(width, height, "RGB")
    message = f"{files.describe(index)} is {width}x{height} {mode}, expected {expected}"
    return Problem("mode" if same_size else "size", message)


# --- What people and programs see.


def format_summary(summary: Summary) -> str:
    """The last lines of the report."""
    channels = {None: "", 1: ", 1 channel (grayscale)", 3: ", 3 channels (RGB)"}[summary.num_channels]
    side = summary.resolution
    total = sum(summary.problems.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.problems.items()))
    rows = [
        ("Images", f"{summary.num_images}, {summary.num_bytes / 1e6:.1f} MB"),
        ("Resolution", f"{side}x{side}{channels}" if side else "unknown: not one image can be used"),
        ("Labels", _format_labels(summary.labels)),
        ("Left out", summary.left_out_text or "none"),
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


def to_json(summary: Summary, problems: list[Problem]) -> str:
    """The whole report as one JSON object."""
    found = [problem._asdict() for problem in problems]
    return json.dumps({**dataclasses.asdict(summary), "seconds": round(summary.seconds, 3), "found": found}, indent=1)
