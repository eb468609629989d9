"""Sources that hold encoded images: folders and zips, LSUN's databases."""

import contextlib
import itertools
import os
import re
import struct
import zipfile
from typing import Any, Iterator, NamedTuple, Sequence

from PIL import Image

from dnnlib.util import UserError
from training.data.image_files import MAX_FILE_BYTES, ImageFiles, has_metadata, load_labels, open_image_files
from training.data.image_names import METADATA_NAME, shown
from training.data.prepare.conversion import BadImage, decode
from training.data.prepare.processes import from_child
from training.data.prepare.source import Label, Labels, LabelSet, Record, Source, SourceOptions, refuse_folders

BUCKET = re.compile(r"\d{5,}")  # Folders that only divide a large set, as this tool makes them, are not classes.


class FilesSource(Source):
    """The images of a folder or zip, in sorted order of their names.

    Every file that begins like an image is taken, whatever it is called; hidden files are not.

    Labels: "auto" takes dataset.json, else sub-folders as classes unless they look like mere divisions of a large set.
    A folder that holds all the others, as in a zip of one folder, is no class.
    """

    accepts = "a folder or zip of images"

    def __init__(self, files: ImageFiles, *, labels: Labels = "auto", split: str | None = None):
        self._files = files
        self._indices: range | list[int] = range(len(files))
        self.labels, self._item_labels = _find_labels(files, labels, split)
        inside = [i for i, name in enumerate(files.names) if _after(name, split) is not None] if split else []
        if inside:
            self._indices = inside
            left = len(files) - len(inside)
            self.notes = (f"taking the {len(inside)} images below {split}/, and not the {left} others",) if left else ()
        if files.left_out:
            self.notes += (f"left out of {files.path}: {files.left_out}",)

    @classmethod
    def matches(cls, path: str) -> bool:
        return os.path.isdir(path) or path.lower().endswith(".zip") or zipfile.is_zipfile(path)

    @classmethod
    def open(cls, path: str, options: SourceOptions) -> "FilesSource":
        return cls(open_image_files(path, by_content=True), labels=options.labels, split=options.split)

    def __len__(self) -> int:
        return len(self._indices)

    def records(self) -> Iterator[Record]:
        for index in self._indices:
            yield Record(index, None if self._item_labels is None else self._item_labels[index])

    def load(self, key: int) -> Image.Image:
        try:
            data = self._files.read(key)
        except UserError as e:
            raise BadImage(str(e)) from e
        return decode(data, self.describe(key))

    def describe(self, key: int) -> str:
        return self._files.describe(key)


def _find_labels(files: ImageFiles, wanted: Labels, split: str | None) -> tuple[LabelSet | None, list[Label] | None]:
    """What the labels are, and the label of each image."""
    if wanted == "none":
        return None, None
    if wanted == "auto" and has_metadata(files):
        array = load_labels(files)
        if array is None:
            return None, None
        is_class = array.ndim == 1
        return LabelSet(f"from {METADATA_NAME}", [str(number) for number in range(array.max() + 1)] if is_class else (),
                        None if is_class else array.shape[1]), array.tolist()
    names: Sequence[str | None] = files.names
    if split and any(_after(name, split) is not None for name in names):
        names = [_after(name, split) for name in names]
    names = _below_outer_folders(names)
    folders = [name.partition("/")[0] if name and "/" in name else None for name in names]
    taken = {folder for folder, name in zip(folders, names) if name is not None}
    if wanted == "auto" and (None in taken or len(taken) < 2 or all(map(BUCKET.fullmatch, taken))):
        return None, None
    for index, (folder, name) in enumerate(zip(folders, names)):
        if name is not None and folder is None:
            raise UserError(f"{files.describe(index)} is in no sub-folder, but --labels=folders takes them as classes")
        if folder in ("", ".", "..") or folder and ("\\" in folder or not folder.isprintable()):
            raise UserError(f"{files.describe(index)} is in a sub-folder that is no name of a class: mend the names, "
                            "or give --labels=none")
    classes = {name: number for number, name in enumerate(sorted(taken))}
    return (LabelSet("from sub-folders", list(classes)),
            [None if folder is None else classes[folder] for folder in folders])


def _below_outer_folders(names: Sequence[str | None]) -> Sequence[str | None]:
    """Names below the folder that holds all others, as `animals` of `animals/cat/1.png` and `animals/dog/1.png`."""
    while True:
        outer = next(name for name in names if name is not None).partition("/")[0] + "/"
        if not all(name is None or name.startswith(outer) and name.count("/") > 1 for name in names):
            return names
        names = [None if name is None else name.removeprefix(outer) for name in names]


def _after(name: str, split: str) -> str | None:
    """The part of a name below the folder `split`: `cat/1.png` of `afhq/train/cat/1.png`."""
    parts = name.split("/")
    return "/".join(parts[parts.index(split) + 1:]) if split in parts[:-1] else None


class LmdbSource(Source):
    """LSUN's format: a database of encoded images, in the order of their keys."""

    accepts = "an LSUN database (*_lmdb folder, or its data.mdb)"

    def __init__(self, path: str):
        self._path = path
        self._file = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
        self._count = check_lmdb(self._file)
        self._environment: Any = None
        if not self._count:
            raise UserError(f"no images in {path}: the database is empty")

    @classmethod
    def matches(cls, path: str) -> bool:
        if os.path.isdir(path):
            return path.rstrip("/").lower().endswith("_lmdb") or os.path.isfile(os.path.join(path, "data.mdb"))
        return path.lower().endswith(".mdb") or _meta_page(path, 0) is not None

    @classmethod
    def open(cls, path: str, options: SourceOptions) -> "LmdbSource":
        refuse_folders(path, options)
        return cls(path)

    def __len__(self) -> int:
        return self._count

    def records(self) -> Iterator[Record]:
        damaged = f"{self._path} is damaged: its keys can't be read; copy or download it again"
        for key in from_child(self._keys, died=damaged):
            yield Record(key, None)

    def _keys(self) -> Iterator[list[bytes]]:
        """All keys in order, a thousand at a time."""
        seen = 0
        with self._reading() as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            while group := [bytes(key) for key in itertools.islice(keys, 1000)]:
                seen += len(group)
                if seen > self._count:
                    break  # A page that refers to one above it would go on for ever.
                yield group
        if seen != self._count:
            raise UserError(f"{self._path} is damaged: it has not the {self._count} images that it announces; copy or "
                            "download it again")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            import lmdb  # Here, so that other sources don't need it.
        except ImportError as e:
            raise UserError(f"{self._path} is read with the package lmdb: pip install lmdb") from e
        try:
            # Only opened in the processes that read: a database must not be carried over to another process.
            self._environment = self._environment or lmdb.open(
                self._file, subdir=False, readonly=True, lock=False, readahead=False,
            )
            with self._environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as e:
            raise BadImage(f"{self._path} is damaged ({e}): copy or download it again") from e

    def load(self, key: bytes) -> Image.Image:
        what = self.describe(key)
        with self._reading() as transaction:
            value = transaction.get(key)
            if value is None:
                raise BadImage(f"{what} is missing: the database is damaged; copy or download it again")
            if len(value) > MAX_FILE_BYTES:
                raise BadImage(f"{what} has {len(value)} bytes, more than the {MAX_FILE_BYTES} allowed")
            data = bytes(value)
        return decode(data, what)

    def describe(self, key: bytes) -> str:
        return f"image {shown(key.decode(errors='backslashreplace'))} in {self._path}"


class _MetaPage(NamedTuple):
    page_size: int
    entries: int
    last_page: int
    transaction: int


_META = struct.Struct("<16xII8xQIHH5QIHH5QQQ")  # Page header; magic, version, address, map size, two trees; the end.
_MAGIC, _VERSION = 0xBEEFC0DE, 1


def _meta_page(path: str, offset: int) -> _MetaPage | None:
    """One of the two pages at the beginning of a database that say how large it is; None where it is none."""
    with open(path, "rb") as f:
        f.seek(offset)
        data = f.read(_META.size)
    if len(data) < _META.size:
        return None
    magic, version, _, page_size, *_, entries, _, last_page, transaction = _META.unpack(data)
    if magic != _MAGIC or version != _VERSION or page_size & (page_size - 1) or not 512 <= page_size <= 1 << 16:
        return None
    return _MetaPage(page_size, entries, last_page, transaction)


def check_lmdb(path: str) -> int:
    """See to it that a database is as long as it says: reading the end that is missing would kill the process.

    Returns:
        Number of entries.

    Raises:
        UserError: The file is missing, no database, or shorter than that.
    """
    try:
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is a folder, device or pipe, expected the database of an LSUN category")
        first = _meta_page(path, 0)
        second = _meta_page(path, first.page_size) if first else None
        size = os.path.getsize(path)
    except OSError as e:
        raise UserError(f"can't read {path}: {e.strerror or e}; expected the database of an LSUN category") from e
    if first is None or second is None:
        raise UserError(f"{path} is no LMDB database, or damaged at its beginning: copy or download it again")
    newest = max(first, second, key=lambda page: page.transaction)
    expected = (newest.last_page + 1) * newest.page_size
    if size < expected:
        raise UserError(f"{path} has {size} bytes, but the database takes {expected}: it is truncated; copy or "
                        "download it again")
    return newest.entries
