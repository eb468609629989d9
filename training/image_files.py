"""Image files of a folder or a zip: listing, fast reading by position, decoding, cheap checks for damage, labels."""

import abc
import contextlib
import hashlib
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
from PIL import Image

from dnnlib.util import UserError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA_NAME = "dataset.json"
MIN_RESOLUTION, MAX_RESOLUTION = 4, 8192
MAX_CLASSES = 1_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow's other decoders are not let near the data.
MAX_FILE_BYTES = 1 << 30                  # No image that fits a GPU is larger; a longer entry is a mistake or a bomb.
PROBE_BYTES = 64 << 10                    # Shorter files are read whole when they are probed.

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

# What Pillow's decoders are known to raise on damaged data.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    OverflowError, Image.DecompressionBombError,
)

# Large images are errors here by their size, which is said in one line; Pillow's warning would be a second one.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageHeader(NamedTuple):
    """What an image says about itself before its pixels are decoded."""

    width: int
    height: int
    mode: str        # Pillow's name: L, RGB, RGBA, P, ...
    complete: bool   # The end of the file looks as the format demands; False = decode it to be sure.


def shown(name: str) -> str:
    """`name` fit for a message of one line."""
    return name if name.isprintable() else ascii(name)


class ImageFiles(abc.ABC):
    """The image files below one path, in sorted order of their names; see `open_image_files`.

    Attributes:
        path:  Where they are.
        name:  Last part of the path, without `.zip`.
        names: Names relative to the path, with forward slashes, sorted as plain strings.
    """

    path: str
    name: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

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
        """A digest that changes when names, or contents, of the files change; contents are not read for it."""

    def describe(self, index: int) -> str:
        """How messages name a file."""
        return f"image {shown(self.names[index])} in {self.path}"

    def open(self, index: int) -> Image.Image:
        """One image, decoded. Raises UserError, naming it, where that fails."""
        data = self.read(index)
        with self._decoding_errors(index):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
        return image

    def open_lazily(self, index: int) -> Image.Image:
        """One image of which only the header has been decoded, so that its size can be checked first."""
        data = self.read(index)
        with self._decoding_errors(index):
            return Image.open(io.BytesIO(data), formats=FORMATS)

    def pixels(self, index: int, image: Image.Image) -> np.ndarray:
        """Pixels of what `open_lazily` gave: uint8 [H, W] or [H, W, C]."""
        with self._decoding_errors(index):
            return np.asarray(image)

    def probe(self, index: int) -> ImageHeader:
        """Header of one image and whether the file ends as it should, from its first and last bytes only."""
        head, tail, size = self.read_ends(index)
        try:
            image = Image.open(io.BytesIO(head), formats=FORMATS)
        except _DECODING_ERRORS:
            image = self.open_lazily(index)  # A large header (EXIF, colour profile) goes on beyond `head`.
        return ImageHeader(*image.size, image.mode, _looks_complete(image.format, head, tail, size))

    @contextlib.contextmanager
    def _decoding_errors(self, index: int) -> Iterator[None]:
        try:
            yield
        except _DECODING_ERRORS as e:
            # Pillow's "cannot identify image file" shows a memory address and tells nothing.
            text = "" if isinstance(e, Image.UnidentifiedImageError) else " ".join(str(e).split())[:100]
            raise UserError(f"{self.describe(index)} can't be decoded{f' ({text})' if text else ''}: replace or remove "
                            f"it; formats are {', '.join(FORMATS)}") from e


class FolderFiles(ImageFiles):
    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        self.name = os.path.basename(os.path.abspath(path))
        try:
            found = list(_walk(self.path))
        except OSError as e:
            raise UserError(f"can't read folder {e.filename or self.path}: {e.strerror or e}") from e
        self.names = sorted(found)

    def _file(self, index: int) -> str:
        return os.path.join(self.path, self.names[index])

    def read(self, index: int) -> bytes:
        try:
            with open(self._file(index), "rb") as f:
                _limit_size(self, index, os.fstat(f.fileno()).st_size)
                return f.read()
        except OSError as e:
            raise UserError(f"{self.describe(index)} can't be read: {e.strerror or e}") from e

    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        try:
            with open(self._file(index), "rb", buffering=0) as f:
                size = os.fstat(f.fileno()).st_size
                _limit_size(self, index, size)
                if size <= PROBE_BYTES:
                    data = f.read()
                    return data, data, size
                head = f.read(PROBE_BYTES)
                f.seek(-1024, os.SEEK_END)
                return head, f.read(), size
        except OSError as e:
            raise UserError(f"{self.describe(index)} can't be read: {e.strerror or e}") from e

    def read_metadata(self) -> bytes | None:
        path = Path(self.path, METADATA_NAME)
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as e:
            raise UserError(f"can't read {path}: {e.strerror or e}") from e

    def identity(self) -> bytes:
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            try:
                stat = os.stat(self._file(index))
            except OSError as e:
                raise UserError(f"{self.describe(index)} can't be read: {e.strerror or e}") from e
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.digest()


class ZipFiles(ImageFiles):
    """Images in a zip, stored or deflated.

    Reading is by position (`pread`) from one descriptor per process, opened when it is first needed, so that objects
    can be pickled, forked and used by several threads without sharing a file position.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        self.name = os.path.splitext(os.path.basename(self.path))[0]
        self._fd: int | None = None
        try:
            with zipfile.ZipFile(self.path) as f:
                entries = {info.filename: info for info in f.infolist()}
                self._metadata = f.read(METADATA_NAME) if METADATA_NAME in entries else None
        except OSError as e:
            raise UserError(f"can't open {self.path}: {e.strerror or e}") from e
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
            raise UserError(f"{self.path} is a damaged zip ({e}): copy or download it again") from e
        self.names = sorted(name for name in entries if _is_image(name))
        infos = [entries[name] for name in self.names]
        for info in infos:
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"image {shown(info.filename)} in {self.path} is encrypted or packed by an unusual "
                                f"method: make a zip that stores its files (zip -0)")
        self._offsets = np.array([info.header_offset for info in infos], dtype=np.int64)
        self._packed_sizes = np.array([info.compress_size for info in infos], dtype=np.int64)
        self._sizes = np.array([info.file_size for info in infos], dtype=np.int64)
        self._crcs = np.array([info.CRC for info in infos], dtype=np.int64)
        self._deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in infos], dtype=bool)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_fd": None}

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)

    def _pread(self, length: int, offset: int) -> bytes:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._fd, length, offset)

    def _begin(self, index: int, header: bytes) -> int:
        """Length of the local header in front of an entry's data."""
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise UserError(f"{self.describe(index)} is not where the zip's directory says: the zip is damaged or has "
                            "been replaced meanwhile")
        _, name_length, extra_length = _LOCAL_HEADER.unpack_from(header)
        return _LOCAL_HEADER.size + name_length + extra_length

    def read(self, index: int) -> bytes:
        _limit_size(self, index, int(self._sizes[index]))
        offset, packed_size = int(self._offsets[index]), int(self._packed_sizes[index])
        try:
            # One system call for header and data in nearly all cases; extra fields are rarely this long.
            chunk = self._pread(_LOCAL_HEADER.size + 4 * len(self.names[index]) + 64 + packed_size, offset)
            begin = self._begin(index, chunk)
            data = chunk[begin : begin + packed_size]
            if len(data) < packed_size:
                data = self._pread(packed_size, offset + begin)
        except OSError as e:
            raise UserError(f"{self.describe(index)} can't be read: {e.strerror or e}") from e
        return self._verified(index, data)

    def _verified(self, index: int, data: bytes) -> bytes:
        size = int(self._sizes[index])
        if self._deflated[index]:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # Never more than was announced.
            except zlib.error as e:
                raise UserError(f"{self.describe(index)} can't be unpacked ({e}): the zip is damaged") from e
        if len(data) != size or zlib.crc32(data) != self._crcs[index]:
            raise UserError(f"{self.describe(index)} is damaged: its checksum is not the one in the zip's directory; "
                            "copy or download the zip again")
        return data

    def read_ends(self, index: int) -> tuple[bytes, bytes, int]:
        size = int(self._sizes[index])
        if self._deflated[index] or size <= PROBE_BYTES:
            data = self.read(index)
            return data, data, size
        _limit_size(self, index, size)
        offset = int(self._offsets[index])
        try:
            chunk = self._pread(PROBE_BYTES, offset)
            begin = self._begin(index, chunk)
            return chunk[begin:], self._pread(1024, offset + begin + size - 1024), size
        except OSError as e:
            raise UserError(f"{self.describe(index)} can't be read: {e.strerror or e}") from e

    def read_metadata(self) -> bytes | None:
        return self._metadata

    def identity(self) -> bytes:
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        digest.update(self._sizes.tobytes() + self._crcs.tobytes())
        return digest.digest()


def open_image_files(path: str | os.PathLike) -> ImageFiles:
    """The image files of a folder (and its sub-folders) or a zip.

    Raises:
        UserError: There is nothing at `path`, it is neither a folder nor a zip, can't be read, or has no images.
    """
    path = str(path)
    if os.path.isdir(path):
        files: ImageFiles = FolderFiles(path)
    elif not os.path.exists(path):
        kind = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise UserError(f"dataset {path or repr(path)} {kind}: give the path of a folder or zip of images")
    elif not os.path.isfile(path):  # devices and pipes, some of which never end
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py")
    elif not os.access(path, os.R_OK):
        raise UserError(f"dataset {path} can't be read: permission denied")
    elif zipfile.is_zipfile(path):
        files = ZipFiles(path)
    elif path.lower().endswith(".zip"):
        raise UserError(f"{path} is no zip, or the end of it is missing: copy or download it again")
    else:
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py")
    if not files.names:
        raise UserError(f"no images in {path}: expected files that end in {', '.join(IMAGE_EXTENSIONS)}")
    return files


def load_labels(files: ImageFiles) -> np.ndarray | None:
    """Labels from dataset.json in the order of `files.names`: int64 [N] or float32 [N, D]; None where it has none.

    Raises:
        UserError: The file is malformed, or its labels don't fit the images.
    """
    raw = files.read_metadata()
    if raw is None:
        return None
    where = f"{METADATA_NAME} of {files.path}"
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not valid JSON: {e}") from e
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list | None):
        raise UserError(f'{where} is malformed: expected {{"labels": [["name.png", label], ...]}}, or null as labels')
    entries = metadata.get("labels")
    if not entries:
        return None
    by_name = {}
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise UserError(f'{where} is malformed: expected ["name.png", label], found {json.dumps(entry)[:80]}')
        if entry[0] in by_name:
            raise UserError(f"{where} has two labels for {shown(entry[0])}")
        by_name[entry[0]] = entry[1]
    return _match_labels(files.names, by_name, where)


def _match_labels(names: list[str], by_name: dict[str, Any], where: str) -> np.ndarray:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"{where} lacks labels for {len(missing)} of {len(names)} images, the first is "
                        f"{shown(missing[0])}")
    if len(by_name) > len(names):
        known = set(names)
        extra = [name for name in by_name if name not in known]
        raise UserError(f"{where} has labels for {len(extra)} images that are not there, the first is "
                        f"{shown(extra[0])}")
    labels = [by_name[name] for name in names]
    if type(labels[0]) is list:
        return _vector_labels(names, labels, where)
    for name, label in zip(names, labels):
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise UserError(f"{where}: label of {shown(name)} is {json.dumps(label)[:80]}, expected a class from 0 to "
                            f"{MAX_CLASSES - 1} like the other labels")
    return np.array(labels, dtype=np.int64)


def _vector_labels(names: list[str], labels: list[Any], where: str) -> np.ndarray:
    width = len(labels[0])
    for name, label in zip(names, labels):
        if type(label) is not list or len(label) != width or not width:
            raise UserError(f"{where}: label of {shown(name)} is {json.dumps(label)[:80]}, expected a list of "
                            f"{width or 'one or more'} numbers like the other labels")
        # The largest float32; comparing is false for NaN, and exact for integers of any size.
        if not all(type(x) in (int, float) and abs(x) <= 3.4028234e38 for x in label):
            raise UserError(f"{where}: label of {shown(name)} is {json.dumps(label)[:80]}, expected finite numbers")
    return np.array(labels, dtype=np.float32)


def _walk(root: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(root, onerror=fail):
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        yield from (prefix.removeprefix("./") + name for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _limit_size(files: ImageFiles, index: int, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{files.describe(index)} has {size} bytes, more than the {MAX_FILE_BYTES} allowed: remove it")


def _looks_complete(image_format: str | None, head: bytes, tail: bytes, size: int) -> bool:
    if image_format == "PNG":
        return tail.endswith(_PNG_END)
    if image_format == "JPEG":
        return tail.endswith(b"\xff\xd9")
    if image_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size  # RIFF: length of all that follows.
    return False  # BMP: its length field is unreliable.
