"""Image files of a folder, a zip or a folder of zips: listing, fast reading, decoding, checks for damage, labels."""

import abc
import array
import bisect
import collections.abc
import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import stat as file_mode
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib.util import UserError, atomic_write, cache_dir
from training.data.image_names import (
    DECODING_ERRORS,
    FORMATS,
    HEAD_BYTES,
    IMAGE_EXTENSIONS,
    METADATA_NAME,
    UNKNOWN,
    UNREADABLE,
    LeftOut,
    begins_like_image,
    scan,
    shown,
    why_left_out,
)
from training.data.zip_directory import (
    DEFLATED,
    LOCAL_HEADER,
    Entries,
    NotAZip,
    Record,
    ZipDirectory,
    open_directory,
    unusual,
)

MIN_RESOLUTION, MAX_RESOLUTION = 4, 8192
MAX_CLASSES = 1_000_000
MAX_FILE_BYTES = 1 << 30       # No image that fits a GPU is larger; a longer entry is a mistake or a bomb.
PROBE_BYTES = 64 << 10         # Shorter files are read whole when they are probed.
_BOMB_BYTES, _BOMB_RATIO = 64 << 20, 100   # An entry of a zip that unpacks to more than both is no image.
_SAMPLE_FILES, _SAMPLE_BYTES = 100_000, 2 << 30   # The contents of so many files of a folder make its identity.
_CACHED_SEC = 1.0              # An identity that took longer to compute is kept in the cache.

_ORIENTATION = 0x0112          # The EXIF tag, ...
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")   # ... and where Pillow looks for it.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

# Large images are errors here by their size, which is said in one line; Pillow's warning would be a second one.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageHeader(NamedTuple):
    """What an image says about itself before its pixels are decoded."""

    width: int
    height: int
    mode: str        # Pillow's name: L, RGB, RGBA, P, ...
    complete: bool   # The end of the file looks as the format demands; False = decode it to be sure.
    turned: bool     # EXIF says that the image is to be turned or mirrored when it is shown.


class ChecksumError(UserError):
    """A file in a zip is not what it was when the zip was made."""


class ImageFiles(abc.ABC):
    """The image files below one path, in sorted order of their names; see `open_image_files`.

    Objects can be pickled, forked and used by several threads. They hold a few bytes for each file, no names.

    Attributes:
        path:     Where they are.
        name:     Last part of the path, without `.zip`.
        left_out: The other files below the path, except dataset.json.
    """

    path: str
    name: str
    left_out: LeftOut

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def get_name(self, index: int) -> str:
        """The name of one file relative to the path, with forward slashes. Raises UserError if it can't be read."""

    @abc.abstractmethod
    def iter_names(self) -> Iterator[str]:
        """All names, in order."""

    @property
    def names(self) -> Sequence[str]:
        """All names, sorted as plain strings; each is looked up when it is asked for."""
        return _Names(self)

    @abc.abstractmethod
    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order given: an object whose size doesn't depend on how many there are in all."""

    @abc.abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises UserError, naming it, where it can't be read."""

    @abc.abstractmethod
    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        """First and last bytes of a file, and its length; of a short file both are the whole."""

    @abc.abstractmethod
    def read_metadata(self) -> bytes | None:
        """The bytes of dataset.json, None where there is none."""

    @abc.abstractmethod
    def identity(self) -> bytes:
        """A digest of names, sizes and CRC-32 of the files: the same for a zip and a folder with the same files.

        The contents of a zip are not read: its directory has the checksums. In a folder of more than 100,000 files or
        2 GiB, only every k-th file is read, with the smallest k that keeps within both; names and sizes are of all.
        """

    def describe(self, index: int) -> str:
        """How messages name a file."""
        return f"image {shown(self.get_name(index))} in {self.path}"

    def open_lazily(self, index: int) -> Image.Image:
        """One image of which only the header has been decoded, so that its size can be checked first."""
        return self.parse(index, self.read(index))

    def parse(self, index: int, data: bytes) -> Image.Image:
        """As `open_lazily`, from what `read` gave."""
        with self._decoding_errors(index):
            return Image.open(io.BytesIO(data), formats=FORMATS)

    def verify(self, index: int, data: bytes) -> None:
        """Compare the checksums that an image itself carries, which is a matter of PNG alone."""
        image = self.parse(index, data)
        with self._decoding_errors(index):
            image.verify()

    def pixels(self, index: int, image: Image.Image) -> np.ndarray:
        """Pixels of what `open_lazily` gave: uint8 [H, W] or [H, W, C]."""
        with self._decoding_errors(index):
            return np.asarray(image)

    def probe(self, index: int) -> ImageHeader:
        """Header of one image and whether the file ends as it should, from its first and last bytes only."""
        head, tail, size = self.read_ends(index)
        try:
            image: Image.Image = Image.open(io.BytesIO(head), formats=FORMATS)
        except DECODING_ERRORS:
            image = self.open_lazily(index)  # A large header (EXIF, colour profile) goes on beyond `head`.
        complete = _looks_complete(image.format, head, tail, size)
        return ImageHeader(*image.size, image.mode, complete, is_turned(image))

    @contextlib.contextmanager
    def _decoding_errors(self, index: int) -> Iterator[None]:
        try:
            yield
        except DECODING_ERRORS as e:
            # Pillow's "cannot identify image file" shows a memory address and tells nothing.
            text = "" if isinstance(e, Image.UnidentifiedImageError) else " ".join(str(e).split())[:100]
            raise UserError(f"{self.describe(index)} can't be decoded{f' ({text})' if text else ''}: replace or remove "
                            f"it; formats are {', '.join(FORMATS)}") from e


class _Names(collections.abc.Sequence):
    def __init__(self, files: ImageFiles):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return self._files.iter_names()

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        return self._files.get_name(index % len(self))


class FolderFiles(ImageFiles):
    """Images in a folder and its sub-folders. Names are kept one after another as bytes, not as objects.

    Args:
        path:       The folder.
        by_content: Take images whose names have other suffixes, too.
    """

    def __init__(self, path: str | os.PathLike, *, by_content: bool = False):
        self.path = str(path)
        self.name = os.path.basename(os.path.abspath(path))
        self.left_out = LeftOut.none()
        try:
            self._keep(self._choose(by_content))
        except OSError as e:
            raise UserError(f"can't read folder {e.filename or self.path}: {e.strerror or e}") from e

    def _choose(self, by_content: bool) -> Iterator[str]:
        for name, reason in scan(self.path):
            if by_content and reason == UNKNOWN:
                try:
                    with open_regular(os.path.join(self.path, name), shown(name)) as f:
                        reason = None if begins_like_image(name, f.read(HEAD_BYTES)) else UNKNOWN
                except UserError:
                    reason = UNREADABLE
            if reason is None:
                yield name
            else:
                self.left_out.add(reason, name)

    def _keep(self, names: Iterator[str]) -> None:
        text, ends = bytearray(), array.array("Q")
        for name in names:
            text += name.encode(errors="surrogateescape")
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, dtype=np.uint64)
        self._identity: bytes | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def get_name(self, index: int) -> str:
        begin = int(self._ends[index - 1]) if index else 0
        return self._text[begin : int(self._ends[index])].decode(errors="surrogateescape")

    def iter_names(self) -> Iterator[str]:
        return map(self.get_name, range(len(self)))

    def select(self, indices: Sequence[int]) -> "FolderFiles":
        other = copy.copy(self)
        other.left_out = LeftOut.none()
        other._keep(self.get_name(int(i)) for i in indices)
        return other

    def _file(self, index: int) -> str:
        return os.path.join(self.path, self.get_name(index))

    def read(self, index: int) -> bytes:
        return read_regular(self._file(index), self.describe(index))

    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        what = self.describe(index)
        with open_regular(self._file(index), what) as f, _reading(what):
            size = os.fstat(f.fileno()).st_size
            if size <= PROBE_BYTES:
                data = f.read()
                return data, data, size
            head = f.read(PROBE_BYTES)
            f.seek(-1024, os.SEEK_END)
            return head, f.read(), size

    def read_metadata(self) -> bytes | None:
        path = os.path.join(self.path, METADATA_NAME)
        if not os.path.lexists(path):
            return None
        with open_regular(path, path) as f, _reading(path):
            limit_labels(path, os.fstat(f.fileno()).st_size, len(self))
            return f.read()

    def identity(self) -> bytes:
        if self._identity is None:
            stats = np.array([self._stat(index) for index in range(len(self))], dtype=np.int64).reshape(-1, 2)
            listing = hashlib.sha256(os.path.abspath(self.path).encode(errors="surrogateescape"))
            for part in (self._text, self._ends, stats):
                listing.update(part)
            self._identity = _cached(cache_dir("identities", listing.hexdigest()),
                                     lambda: _identity([self._entries(stats[:, 0])], len(self)))
        return self._identity

    def _stat(self, index: int) -> tuple[int, int]:
        with _reading(self.describe(index)):
            stat = os.stat(self._file(index))
        return stat.st_size, stat.st_mtime_ns

    def _entries(self, sizes: np.ndarray) -> Entries:
        step = max(-(-len(self) // _SAMPLE_FILES), -(-int(sizes.sum()) // _SAMPLE_BYTES), 1)
        crcs = np.full(len(self), -1, dtype=np.int64)
        for index in tqdm(range(0, len(self), step), desc=f"Reading {shown(self.name)} for its fingerprint", unit="img",
                          delay=2, leave=False, file=sys.stderr):
            crcs[index] = zlib.crc32(self.read(index))
        return Entries([name.encode(errors="surrogateescape") for name in self.names], sizes, crcs)


def open_regular(path: str | os.PathLike, what: str) -> BinaryIO:
    """Open a file, but no device, pipe or socket, some of which wait or never end, and none that is too large.

    Raises:
        UserError: That can't be done; `what` names the file.
    """
    with _reading(what):
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        stat = os.fstat(fd)
        if not file_mode.S_ISREG(stat.st_mode):
            raise UserError(f"{what} is no file, but a folder, device or pipe: remove it")
        _limit_size(what, stat.st_size)
    except BaseException:
        os.close(fd)
        raise
    return open(fd, "rb", buffering=0)


def read_regular(path: str | os.PathLike, what: str) -> bytes:
    """As `open_regular`: all of the file."""
    with open_regular(path, what) as f, _reading(what):
        return f.read()


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} can't be read: {e.strerror or e}") from e


def _cached(path: Path, compute: Callable[[], bytes]) -> bytes:
    """A SHA-256 digest that is in a file, or will be if it takes long to compute."""
    with contextlib.suppress(OSError):
        digest = path.read_bytes()
        if len(digest) == hashlib.sha256().digest_size:
            return digest
    start = time.monotonic()
    digest = compute()
    if time.monotonic() - start > _CACHED_SEC:
        with contextlib.suppress(OSError):  # The cache saves time, no more.
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as f:
                f.write(digest)
    return digest


def _identity(parts: Iterable[Entries], count: int) -> bytes:
    """Digest of all names, sizes and checksums (-1 = not read)."""
    digest, separator, done = hashlib.sha256(), b"", 0
    sizes, crcs = np.empty([2, count], dtype=np.int64)
    for part in parts:
        if part.names:
            digest.update(separator + b"\n".join(part.names))
            separator = b"\n"
        end = done + len(part.names)
        sizes[done:end], crcs[done:end], done = part.sizes, part.crcs, end
    digest.update(sizes)
    digest.update(crcs)
    return digest.digest()


class _Zipped(ImageFiles):
    """What one zip and several have in common."""

    _identity: bytes | None = None

    @abc.abstractmethod
    def iter_entries(self) -> Iterator[Entries]:
        """What the zip says about all images, in order."""

    def identity(self) -> bytes:
        if self._identity is None:
            self._identity = _identity(self.iter_entries(), len(self))
        return self._identity


class ZipFiles(_Zipped):
    """Images in a zip, stored or deflated: four bytes in memory for each, which say where the zip describes it.

    Reading is by position (`pread`) from one descriptor per process, opened when it is first needed, so that objects
    can be pickled, forked and used by several threads without sharing a file position.

    Args:
        path:       The zip.
        by_content: Take images whose names have other suffixes, too.
    """

    def __init__(self, path: str | os.PathLike, *, by_content: bool = False):
        self.path = str(path)
        self.name = os.path.splitext(os.path.basename(self.path))[0]
        self.left_out = LeftOut.none()
        self._directory = open_directory(self.path)
        self._positions, others, self._metadata = self._directory.index()
        if also := list(self._sort_out(others, by_content)):
            self._positions, _, self._metadata = self._directory.index(also)

    def _sort_out(self, positions: np.ndarray, by_content: bool) -> Iterator[int]:
        """Positions of images among the files with other names; counts the rest as left out."""
        try:
            for position, record in zip(positions.tolist(), self._directory.records(positions)):
                reason = why_left_out(record.name) or UNKNOWN
                if by_content and reason == UNKNOWN and begins_like_image(record.name, _head(self._directory, record)):
                    yield position
                else:
                    self.left_out.add(reason, record.name)
        except OSError as e:
            raise UserError(f"{self.path} can't be read: {e.strerror or e}") from e

    @classmethod
    def from_entries(cls, directory: ZipDirectory, positions: np.ndarray) -> "ZipFiles":
        """Entries of a zip, good or bad, by the positions of their records."""
        files = object.__new__(cls)
        files.path, files._directory, files._positions, files._metadata = directory.path, directory, positions, None
        files.left_out = LeftOut.none()
        return files

    def __len__(self) -> int:
        return len(self._positions)

    def _record(self, index: int) -> Record:
        try:
            return self._directory.record(int(self._positions[index]))
        except OSError as e:
            raise UserError(f"{self.path} can't be read: {e.strerror or e}") from e

    def get_name(self, index: int) -> str:
        return self._record(index).name

    def iter_entries(self) -> Iterator[Entries]:
        try:
            yield from self._directory.entries(self._positions)
        except OSError as e:
            raise UserError(f"{self.path} can't be read: {e.strerror or e}") from e

    def iter_names(self) -> Iterator[str]:
        return (name.decode(errors="surrogateescape") for part in self.iter_entries() for name in part.names)

    def select(self, indices: Sequence[int]) -> "ZipFiles":
        other = copy.copy(self)
        other.left_out = LeftOut.none()
        other._positions, other._identity = self._positions[np.asarray(indices, dtype=np.int64)], None
        return other

    def _image(self, index: int) -> tuple[Record, str]:
        """One entry, and how messages name it. Raises UserError where it would fill the memory."""
        record = self._record(index)
        what = f"image {shown(record.name)} in {self.path}"
        if record.method == DEFLATED and record.size > max(_BOMB_BYTES, _BOMB_RATIO * record.packed_size):
            raise UserError(f"{what} would unpack from {record.packed_size} to {record.size} bytes, as no image does: "
                            "remove it")
        return record, what

    def read(self, index: int) -> bytes:
        record, what = self._image(index)
        return read_record(self._directory, record, what)

    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        record, what = self._image(index)
        size = record.size
        if record.method == DEFLATED or size <= PROBE_BYTES:
            data = read_record(self._directory, record, what)
            return data, data, size
        _limit_size(what, size)
        try:
            chunk = self._directory.pread(PROBE_BYTES, record.offset)
            begin = _data_begin(record, chunk, what)
            return chunk[begin:], self._directory.pread(1024, record.offset + begin + size - 1024), size
        except OSError as e:
            raise UserError(f"{what} can't be read: {e.strerror or e}") from e

    def read_metadata(self) -> bytes | None:
        if self._metadata is None:
            return None
        what = f"{METADATA_NAME} of {self.path}"
        try:
            record = self._directory.record(self._metadata)
        except OSError as e:
            raise UserError(f"{what} can't be read: {e.strerror or e}") from e
        limit_labels(what, record.size, len(self))
        return read_record(self._directory, record, what)


def read_record(directory: ZipDirectory, record: Record, what: str) -> bytes:
    """The bytes of one file of a zip, whose checksum is right. Raises UserError; `what` names the file in it."""
    if not record.readable:
        raise unusual(what)
    _limit_size(what, max(record.size, record.packed_size))
    offset, packed_size = record.offset, record.packed_size
    try:
        # One system call for header and data in nearly all cases; extra fields are rarely this long.
        chunk = directory.pread(LOCAL_HEADER.size + len(record.raw_name) + 64 + packed_size, offset)
        begin = _data_begin(record, chunk, what)
        data = chunk[begin : begin + packed_size]
        if len(data) < packed_size:
            data = directory.pread(packed_size, offset + begin)
    except OSError as e:
        raise UserError(f"{what} can't be read: {e.strerror or e}") from e
    return _verified(record, data, what)


def _head(directory: ZipDirectory, record: Record) -> bytes:
    """The first bytes of one file of a zip; none where it can't be unpacked. Raises OSError."""
    if not record.readable:
        return b""
    what = shown(record.name)
    try:
        begin = record.offset + _data_begin(record, directory.pread(LOCAL_HEADER.size + len(record.raw_name),
                                                                    record.offset), what)
        data = directory.pread(min(record.packed_size, HEAD_BYTES), begin)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, HEAD_BYTES) if record.method == DEFLATED else data
    except (UserError, zlib.error):
        return b""


def _data_begin(record: Record, header: bytes, what: str) -> int:
    """Length of the local header in front of an entry's data."""
    if header.startswith(b"PK\3\4") and len(header) >= LOCAL_HEADER.size:
        _, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
        if header[LOCAL_HEADER.size : LOCAL_HEADER.size + name_length] == record.raw_name:
            return LOCAL_HEADER.size + name_length + extra_length
    raise UserError(f"{what} is not where the zip's directory says: the zip is damaged or has been replaced meanwhile")


def _verified(record: Record, data: bytes, what: str) -> bytes:
    if record.method == DEFLATED:
        try:
            # Never more than was announced.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.size + 1)
        except zlib.error as e:
            raise ChecksumError(f"{what} can't be unpacked ({e}): the zip is damaged") from e
    if len(data) != record.size or zlib.crc32(data) != record.crc:
        raise ChecksumError(f"{what} is damaged: its checksum is not the one in the zip's directory; copy or download "
                            "the zip again")
    return data


class ShardFiles(_Zipped):
    """Images in the zips of one folder, in sorted order of the zips' names, and of names within each.

    Args:
        path:       The folder.
        shards:     Names of the zips.
        by_content: As of `ZipFiles`.
    """

    def __init__(self, path: str | os.PathLike, shards: Sequence[str], *, by_content: bool = False):
        self.path = str(path)
        self.name = os.path.basename(os.path.abspath(path))
        self.shards = [_not_empty(ZipFiles(os.path.join(self.path, shard), by_content=by_content))
                       for shard in sorted(shards)]
        self.left_out = beside_shards(self.path, shards)
        for shard in self.shards:
            self.left_out.include(shard.left_out)
        self._ends = list(itertools.accumulate(map(len, self.shards)))
        self._selected: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._selected is None else len(self._selected)

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the zip, and of the file in it."""
        if self._selected is not None:
            return self._selected[index]
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _shard(self, index: int) -> tuple[ZipFiles, int]:
        number, index = self._locate(index)
        return self.shards[number], index

    def get_name(self, index: int) -> str:
        shard, index = self._shard(index)
        return f"{os.path.basename(shard.path)}/{shard.get_name(index)}"

    def iter_names(self) -> Iterator[str]:
        if self._selected is not None:
            return map(self.get_name, range(len(self)))
        return (f"{os.path.basename(shard.path)}/{name}" for shard in self.shards for name in shard.iter_names())

    def iter_entries(self) -> Iterator[Entries]:
        return itertools.chain.from_iterable(shard.iter_entries() for shard in self.shards)

    def select(self, indices: Sequence[int]) -> "ShardFiles":
        located = [self._locate(int(index)) for index in indices]
        groups: dict[int, list[int]] = {}
        other = copy.copy(self)
        other.left_out, other._selected = LeftOut.none(), []
        for number, index in located:
            group = groups.setdefault(number, [])
            other._selected.append((list(groups).index(number), len(group)))
            group.append(index)
        other.shards = [self.shards[number].select(group) for number, group in groups.items()]
        other._ends, other._identity = [], None
        return other

    def describe(self, index: int) -> str:
        shard, index = self._shard(index)
        return shard.describe(index)

    def read(self, index: int) -> bytes:
        shard, index = self._shard(index)
        return shard.read(index)

    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        shard, index = self._shard(index)
        return shard.read_ends(index)

    def read_metadata(self) -> bytes | None:
        raise NotImplementedError("each zip has its own: see `shards`, `load_labels`")


def open_image_files(path: str | os.PathLike, *, by_content: bool = False) -> ImageFiles:
    """The image files of a folder (and its sub-folders), a zip, or a folder of zips.

    Args:
        path:       Where they are.
        by_content: Take every file that begins like an image, as far as `image_names.source_formats` are concerned;
                    False = go by the suffix alone.

    Raises:
        UserError: There is nothing at `path`, it is neither a folder nor a zip, can't be read, or has no images.
    """
    path = str(path)
    if os.path.isdir(path):
        shards = find_shards(path)
        if shards:
            return ShardFiles(path, shards, by_content=by_content)
        return _not_empty(FolderFiles(path, by_content=by_content))
    check_readable(path)
    try:
        return _not_empty(ZipFiles(path, by_content=by_content))
    except NotAZip as e:
        if path.lower().endswith(".zip"):
            raise
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py") from e


def check_readable(path: str) -> None:
    """Raises UserError where there is nothing, or nothing that could be a zip."""
    if not os.path.exists(path):
        kind = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise UserError(f"dataset {path or repr(path)} {kind}: give the path of a folder or zip of images")
    if not os.path.isfile(path):  # devices and pipes, some of which never end
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py")
    if not os.access(path, os.R_OK):
        raise UserError(f"dataset {path} can't be read: permission denied")


def find_shards(path: str) -> list[str]:
    """Names of the zips that a folder directly holds, sorted; hidden ones are passed over.

    Raises:
        UserError: The folder can't be read, or has zips and loose images too.
    """
    try:
        shards = sorted(name for name in os.listdir(path) if name.lower().endswith(".zip") and name[0] != ".")
        loose = next((name for name, reason in scan(path) if reason is None), None) if shards else None
    except OSError as e:
        raise UserError(f"can't read folder {e.filename or path}: {e.strerror or e}") from e
    if loose is not None:
        raise UserError(f"{path} has zips ({shown(shards[0])}) and loose images ({shown(loose)}), expected one or the "
                        "other: move one of them away")
    return shards


def beside_shards(path: str, shards: Sequence[str]) -> LeftOut:
    """What else is in a folder of zips."""
    left_out = LeftOut.none()
    for name, reason in scan(path):
        if reason is not None and name not in shards:
            left_out.add(reason, name)
    return left_out


def _not_empty(files: Any) -> Any:
    if not len(files):
        left_out = f"; left out are {files.left_out}" if files.left_out else ""
        raise UserError(f"no images in {files.path}{left_out}: expected files that end in "
                        f"{', '.join(IMAGE_EXTENSIONS)}; dataset_tool.py takes other names and formats, too")
    return files


def has_metadata(files: ImageFiles) -> bool:
    """Is there a dataset.json, in one of the zips at least?"""
    if isinstance(files, ShardFiles):
        return any(has_metadata(shard) for shard in files.shards)
    return files.read_metadata() is not None


def load_labels(files: ImageFiles) -> np.ndarray | None:
    """Labels from dataset.json in the order of `files.names`: int32 [N] or float32 [N, D]; None where it has none.

    Each zip of several has a dataset.json of its own; the kind of labels must be the same in all.

    Raises:
        UserError: The file is malformed, or its labels don't fit the images.
    """
    if not isinstance(files, ShardFiles):
        where = f"{METADATA_NAME} of {files.path}"
        entries = parse_labels(files.read_metadata(), where)
        return _match_labels(files, _by_name(entries, where), where) if entries else None
    if os.path.exists(os.path.join(files.path, METADATA_NAME)):
        raise UserError(f"{METADATA_NAME} stands beside the zips in {files.path}, expected one in each: move it away")
    parts = [load_labels(shard) for shard in files.shards]
    for shard, part in zip(files.shards, parts):
        kinds = [describe_labels(labels) for labels in (parts[0], part)]
        if kinds[0] != kinds[1]:
            raise UserError(f"{shard.path} has {kinds[1]}, but {files.shards[0].path} has {kinds[0]}: expected the "
                            "same kind of labels in all zips")
    return None if parts[0] is None else np.concatenate(parts)


def describe_labels(labels: np.ndarray | None) -> str:
    if labels is None:
        return "no labels"
    return "classes as labels" if labels.ndim == 1 else f"vectors of {labels.shape[1]} as labels"


def parse_labels(raw: bytes | None, where: str) -> list[Any]:
    """The list of `[name, label]` in a dataset.json, empty where there is none; what is in the list is not checked.

    Raises:
        UserError: The file is not as it must be; `where` names it.
    """
    if raw is None:
        return []
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not valid JSON: {e}") from e
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list | None):
        raise UserError(f'{where} is malformed: expected {{"labels": [["name.png", label], ...]}}, or null as labels')
    return metadata.get("labels") or []


def _by_name(entries: list[Any], where: str) -> dict[str, Any]:
    # A few passes in C over what is nearly always good; the slow one only finds the words for what is not.
    pairs = set(map(type, entries)) == {list} and set(map(len, entries)) == {2}
    if pairs and {type(name) for name, _ in entries} == {str}:
        by_name = dict(entries)
        if len(by_name) == len(entries):
            return by_name
    seen = set()
    for entry in entries:
        if not is_label_entry(entry):
            raise UserError(f'{where} is malformed: expected ["name.png", label], found {json.dumps(entry)[:80]}')
        if entry[0] in seen:
            raise UserError(f"{where} has two labels for {shown(entry[0])}")
        seen.add(entry[0])
    raise AssertionError("entries are good or not")


def is_label_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _match_labels(files: ImageFiles, by_name: dict[str, Any], where: str) -> np.ndarray:
    labels, num_missing, first_missing = [], 0, ""
    for name in files.iter_names():
        if name in by_name:
            labels.append(by_name[name])
            continue
        first_missing = first_missing or name
        num_missing += 1
    if num_missing:
        raise UserError(f"{where} lacks labels for {num_missing} of {len(files)} images, the first is "
                        f"{shown(first_missing)}")
    if len(by_name) > len(labels):
        known = set(files.iter_names())
        extra = [name for name in by_name if name not in known]
        raise UserError(f"{where} has labels for {len(extra)} images that are not there, the first is "
                        f"{shown(extra[0])}")
    if set(map(type, labels)) == {int} and min(labels) >= 0 and max(labels) < MAX_CLASSES:
        return np.array(labels, dtype=np.int32)
    width = len(labels[0]) if type(labels[0]) is list else None
    for index, label in enumerate(labels):
        problem = label_problem(label, width)
        if problem:
            raise UserError(f"{where}: label of {shown(files.get_name(index))} is {json.dumps(label)[:80]}, {problem}")
    return np.array(labels, dtype=np.float32)


def label_problem(label: Any, width: int | None) -> str | None:
    """What was expected instead of this label; None where it is good.

    Args:
        label: As it was in the JSON file.
        width: Of the other labels if they are lists of numbers; None if they are classes.
    """
    if width is None:
        good = type(label) is int and 0 <= label < MAX_CLASSES
        return None if good else f"expected a class from 0 to {MAX_CLASSES - 1} like the other labels"
    if type(label) is not list or len(label) != width or not width:
        return f"expected a list of {width or 'one or more'} numbers like the other labels"
    # The largest float32; comparing is false for NaN, and exact for integers of any size.
    good = all(type(x) in (int, float) and abs(x) <= 3.4028234e38 for x in label)
    return None if good else "expected finite numbers"


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that an image is to be turned or mirrored when it is shown; nothing is decoded for it."""
    try:
        # Not image.getexif(): that of PNG files decodes the image.
        is_said = not image.info.keys().isdisjoint(_ORIENTED)
        return is_said and Image.Image.getexif(image).get(_ORIENTATION, 1) in range(2, 9)
    except DECODING_ERRORS:
        return False


def limit_labels(what: str, size: int, num_images: int) -> None:
    """Raises UserError where a dataset.json, named by `what`, is far larger than the labels of so many images."""
    most = (1 << 20) + (64 << 10) * num_images  # Vectors of thousands of numbers fit.
    if size > most:
        raise UserError(f"{what} has {size} bytes, more than the {most} allowed for {num_images} images: replace it")


def _limit_size(what: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{what} has {size} bytes, more than the {MAX_FILE_BYTES} allowed: remove it")


def _looks_complete(image_format: str | None, head: bytes, tail: bytes, size: int) -> bool:
    if image_format == "PNG":
        return tail.endswith(_PNG_END)
    if image_format == "JPEG":
        return tail.endswith(b"\xff\xd9")
    if image_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size  # RIFF: length of all that follows.
    return False  # BMP: its length field is unreliable.
