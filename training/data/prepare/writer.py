"""Writing datasets: a zip, a folder, or a folder of zips. Nothing appears at its place before it is complete."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

from dnnlib.util import UserError, atomic_write, check_writable, made_folder, make_public
from training.data.image_names import METADATA_NAME, shown
from training.data.prepare.image_sources import BUCKET
from training.data.prepare.source import Label

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # A fixed time, so that equal data give equal files. Zips know no earlier one.
_SHARD = re.compile(r".*-\d{5,}\.zip")


def image_name(number: int) -> str:
    """`00012/img00012345.png` for 12345. A folder holds at most 1000 images, and sorted names are in order."""
    digits = f"{number:08d}"
    return f"{digits[:-3]}/img{digits}.png"


class Writer:
    """Takes the images of a dataset in order.

    Args:
        write:    Called with the name of a file, relative to the dataset, and its content.
        labelled: Whether labels are kept; False = dataset.json says that there are none.
        first:    Number of the first image.

    Attributes:
        resize_filter: The filter that scaled the images, for dataset.json; None = they were not scaled.
    """

    def __init__(self, write: Callable[[str, bytes], object], *, labelled: bool, first: int = 0):
        self._write, self._labelled, self._first = write, labelled, first
        self.resize_filter: str | None = None
        self._labels: list[Label] = []
        self.num_images = 0

    def add(self, png: bytes, label: Label) -> None:
        self._write(image_name(self._first + self.num_images), png)
        self.num_images += 1
        if self._labelled:
            self._labels.append(label)

    def finish(self) -> None:
        """Write dataset.json. No image can be added afterwards."""
        labels = [[image_name(number), label] for number, label in enumerate(self._labels, self._first)]
        # The filter comes first, so that it is found without parsing the labels.
        scaled = {"resize_filter": self.resize_filter} if self.resize_filter else {}
        self._write(METADATA_NAME, json.dumps({**scaled, "labels": labels if self._labelled else None}).encode())


@contextlib.contextmanager
def _zip_writer(f: BinaryIO, *, labelled: bool, first: int = 0) -> Iterator[Writer]:
    def write(name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
        info.external_attr = 0o644 << 16
        archive.writestr(info, data)

    with zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:
        writer = Writer(write, labelled=labelled, first=first)
        yield writer
        writer.finish()


@contextlib.contextmanager
def _folder_writer(folder: Path, *, labelled: bool) -> Iterator[Writer]:
    def write(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    writer = Writer(write, labelled=labelled)
    yield writer
    writer.finish()


def _to_disk(f: BinaryIO) -> None:
    f.flush()
    os.fsync(f.fileno())


class ShardWriter:
    """Writes zips `NAME-00000.zip`, `NAME-00001.zip`, ... of `shard_size` images each. Use it in `with`.

    Each zip has its own dataset.json. The numbers of images continue from zip to zip, so that their names are unique.
    Names of zips have enough digits for `most_images`, so that sorted names are in order.
    """

    def __init__(self, folder: Path, *, name: str, shard_size: int, most_images: int, labelled: bool):
        self._folder, self._name, self._shard_size, self._labelled = folder, name, shard_size, labelled
        self._digits = max(len(str((most_images - 1) // shard_size)), 5)
        self._stack = contextlib.ExitStack()    # The contexts of the zip that is being written.
        self._shard: Writer | None = None
        self.resize_filter: str | None = None
        self.num_images = 0

    def add(self, png: bytes, label: Label) -> None:
        if self._shard is None:
            number = self.num_images // self._shard_size
            f = self._stack.enter_context(open(self._folder / f"{self._name}-{number:0{self._digits}d}.zip", "wb"))
            self._stack.callback(_to_disk, f)
            self._shard = self._stack.enter_context(_zip_writer(f, labelled=self._labelled, first=self.num_images))
            self._shard.resize_filter = self.resize_filter
        self._shard.add(png, label)
        self.num_images += 1
        if self._shard.num_images == self._shard_size:
            self._stack.close()
            self._shard = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.__exit__(*exc_info)


@contextlib.contextmanager
def open_writer(
    dest: str | os.PathLike,
    *,
    labelled: bool,
    most_images: int,
    shard_size: int | None = None,
    overwrite: bool = False,
) -> Iterator[Writer | ShardWriter]:
    """A context that writes a dataset. It appears at `dest` when the block ends, and not at all if the block raises.

    Args:
        dest:        A path that ends in .zip, or a folder.
        labelled:    Whether images have labels.
        most_images: Upper limit of the number of images.
        shard_size:  Write zips of `shard_size` images into the folder `dest`; None = one dataset.
        overwrite:   Replace the dataset that is there.

    Raises:
        UserError: There is something else at `dest`, or it can't be written.
    """
    dest = Path(dest)
    is_zip = dest.suffix.lower() == ".zip"
    if is_zip and shard_size is not None:
        raise UserError(f"--dest={dest} is one zip, but --shard-size writes several: give a folder")
    check_writable(dest)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(made_folder(dest.parent))
            if is_zip:
                _check_zip_dest(dest, overwrite)
                writer: Any = _zip_writer(stack.enter_context(atomic_write(dest)), labelled=labelled)
            else:
                dest = dest.resolve()
                folder = stack.enter_context(_folder_beside(dest, overwrite))
                writer = _folder_writer(folder, labelled=labelled) if shard_size is None else ShardWriter(
                    folder, name=dest.name, shard_size=shard_size, most_images=most_images, labelled=labelled)
            yield stack.enter_context(writer)
    except OSError as e:
        raise UserError(f"can't write {dest}: {e.strerror or e}") from e


def _check_zip_dest(dest: Path, overwrite: bool) -> None:
    if dest.is_dir() or (dest.exists() and not overwrite):
        raise UserError(f"{dest} exists: choose another --dest" + ("" if dest.is_dir() else " or give --overwrite"))


@contextlib.contextmanager
def _folder_beside(dest: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `dest` that takes its place at the end."""
    _check_folder_dest(dest, overwrite)
    temporary = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}.", suffix=".tmp"))
    try:
        yield temporary
        make_public(temporary)
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
    foreign = [n for n in entries if n != METADATA_NAME and not BUCKET.fullmatch(n) and not _SHARD.fullmatch(n)]
    if foreign:
        raise UserError(f"{dest} has {shown(foreign[0])} in it, so it was not made by this tool and is not "
                        "overwritten: choose another --dest")
