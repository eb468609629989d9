"""Sources that hold encoded images: folders and zips, LSUN's databases."""

import contextlib
import itertools
import os
import re
import zipfile
from typing import Any, Iterator, Sequence

from PIL import Image

from dnnlib.util import UserError
from dnnlib.worker_pool import WorkerPool
from training.data.image_files import MAX_FILE_BYTES, ImageFiles, open_image_files
from training.data.image_names import METADATA_NAME, shown
from training.data.labels import has_metadata, load_labels
from training.data.prepare.conversion import BadImage, decode
from training.data.prepare.source import Label, Labels, LabelSet, Record, Source, SourceOptions, refuse_folders

BUCKET = re.compile(r"\d{5,}")  # Names of sub-folders that only divide a large set, as this tool writes them.
_LMDB_MAGIC = 0xBEEFC0DE.to_bytes(4, "little")


class FilesSource(Source):
    """The images of a folder or zip, in sorted order of their names.

    Every file that begins like an image is taken, except hidden files.

    With labels="auto", labels come from dataset.json if there is one, else sub-folders are classes. Sub-folders that
    only divide a large set are not classes, nor is a folder that holds all others, as in a zip of one folder.
    """

    accepts = "a folder or zip of images"

    def __init__(self, files: ImageFiles, *, labels: Labels = "auto", split: str | None = None):
        self._files = files
        self._indices: range | list[int] = range(len(files))
        self.labels, self._item_labels = _find_labels(files, labels, split)
        inside = [i for i, name in enumerate(files.names()) if _after(name, split) is not None] if split else []
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
    """The kind of the labels, and the label of each image; None and None = there are no labels."""
    if wanted == "none":
        return None, None
    if wanted == "auto" and has_metadata(files):
        array = load_labels(files)
        if array is None:
            return None, None
        is_class = array.ndim == 1
        return LabelSet(f"from {METADATA_NAME}", [str(number) for number in range(array.max() + 1)] if is_class else (),
                        None if is_class else array.shape[1]), array.tolist()
    names: Sequence[str | None] = files.names()
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
    """Strip folders that hold all images: `animals/cat/1.png`, `animals/dog/1.png` => `cat/1.png`, `dog/1.png`."""
    while True:
        outer = next(name for name in names if name is not None).partition("/")[0] + "/"
        if not all(name is None or name.startswith(outer) and name.count("/") > 1 for name in names):
            return names
        names = [None if name is None else name.removeprefix(outer) for name in names]


def _after(name: str, split: str) -> str | None:
    """The part of a name below the folder `split`, as `cat/1.png` of `afhq/train/cat/1.png`; None = it is elsewhere."""
    parts = name.split("/")
    return "/".join(parts[parts.index(split) + 1:]) if split in parts[:-1] else None


class LmdbSource(Source):
    """LSUN's format: a database of encoded images, in the order of their keys.

    Only worker processes read it, because a damaged database may crash the process that reads it.
    """

    accepts = "an LSUN database (*_lmdb folder, or its data.mdb)"

    def __init__(self, path: str):
        self._path = path
        self._file = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
        self.environment: Any = None
        if os.path.lexists(self._file) and not os.path.isfile(self._file):
            raise UserError(f"{self._file} is a folder, device or pipe, expected the database of an LSUN category")
        try:
            size = os.path.getsize(self._file)
        except OSError as e:
            raise UserError(f"can't read {self._file}: {e.strerror or e}; expected the database of an LSUN "
                            "category") from e
        with self._worker() as pool:
            self._count, expected = pool.result(pool.submit(_measure_database))
        if size < expected:  # Reading the missing end would crash a worker.
            raise UserError(f"{self._file} has {size} bytes, but the database takes {expected}: it is truncated; copy "
                            "or download it again")
        if not self._count:
            raise UserError(f"no images in {path}: the database is empty")

    @classmethod
    def matches(cls, path: str) -> bool:
        if os.path.isdir(path):
            return path.rstrip("/").lower().endswith("_lmdb") or os.path.isfile(os.path.join(path, "data.mdb"))
        with open(path, "rb") as f:
            return path.lower().endswith(".mdb") or f.read(20)[16:] == _LMDB_MAGIC

    @classmethod
    def open(cls, path: str, options: SourceOptions) -> "LmdbSource":
        refuse_folders(path, options)
        return cls(path)

    def __len__(self) -> int:
        return self._count

    def _worker(self) -> WorkerPool:
        return WorkerPool(1, self, forked=True, killed=f"{self._path} is damaged: its keys can't be read; copy or "
                                                       "download it again")

    def records(self) -> Iterator[Record]:
        seen = 0
        with self._worker() as pool:
            keys = pool.result(pool.submit(_keys_after, None))
            while keys and seen <= self._count:  # In a damaged database, pages may refer to each other in a circle.
                yield from (Record(key, None) for key in keys)
                seen += len(keys)
                keys = pool.result(pool.submit(_keys_after, keys[-1]))
        if seen != self._count:
            raise UserError(f"{self._path} is damaged: it has not the {self._count} images that it announces; copy or "
                            "download it again")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """A transaction. It is for workers only, because an open database must not be taken to another process."""
        import lmdb  # Here, because other sources don't need it.

        try:
            self.environment = self.environment or lmdb.open(
                self._file, subdir=False, readonly=True, lock=False, readahead=False,
            )
            with self.environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as e:
            raise BadImage(f"{self._path} is damaged ({e}): copy or download it again") from e

    def load(self, key: bytes) -> Image.Image:
        what = self.describe(key)
        with self.reading() as transaction:
            value = transaction.get(key)
            if value is None:
                raise BadImage(f"{what} is missing: the database is damaged; copy or download it again")
            if len(value) > MAX_FILE_BYTES:
                raise BadImage(f"{what} has {len(value)} bytes, more than the {MAX_FILE_BYTES} allowed")
            data = bytes(value)
        return decode(data, what)

    def describe(self, key: bytes) -> str:
        return f"image {shown(key.decode(errors='backslashreplace'))} in {self._path}"


def _measure_database(source: LmdbSource) -> tuple[int, int]:
    """The number of entries, and the number of bytes that the database takes."""
    with source.reading() as transaction:
        entries, page_bytes = transaction.stat()["entries"], transaction.stat()["psize"]
        return entries, (source.environment.info()["last_pgno"] + 1) * page_bytes


def _keys_after(source: LmdbSource, last: bytes | None) -> list[bytes]:
    """The thousand keys after `last`, in order; None = the first thousand."""
    with source.reading() as transaction:
        cursor = transaction.cursor()
        found = cursor.first() if last is None else cursor.set_range(last)
        if found and last is not None and bytes(cursor.key()) == last:
            found = cursor.next()
        keys = cursor.iternext(keys=True, values=False) if found else ()
        return [bytes(key) for key in itertools.islice(keys, 1000)]
