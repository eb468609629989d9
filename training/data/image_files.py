"""Image files of a folder, a zip or a folder of zips: listing, fast reading, decoding, checks for damage.

The rest of the program uses `ImageFiles`.
"""

import array
import contextlib
import copy
import hashlib
import io
import itertools
import os
import stat as file_mode
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, NamedTuple, Sequence

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
    describe_decoding_error,
    scan,
    shown,
    why_left_out,
)
from training.data.zip_directory import Entry, NotAZip, ZipDirectory, list_zip, unusual

MIN_RESOLUTION, MAX_RESOLUTION = 4, 8192
MAX_FILE_BYTES = 1 << 30       # Larger files are mistakes or bombs: no image that fits on a GPU is as large.
_BOMB_BYTES, _BOMB_RATIO = 64 << 20, 100   # If a file in a zip unpacks to more than both, it is not an image.
_SAMPLE_FILES, _SAMPLE_BYTES = 100_000, 2 << 30   # At most this much is read for the identity of a folder.
_CACHED_SEC = 1.0              # An identity that took longer to compute is kept in the cache.

_ORIENTATION = 0x0112          # The EXIF tag, ...
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")   # ... and where Pillow looks for it.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

# Callers check the size of large images themselves, and raise an error of one line. Pillow's warning would be a second.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_valid_side(side: int) -> bool:
    """Whether networks take square images of this side: a power of two within the limits."""
    return not side & (side - 1) and MIN_RESOLUTION <= side <= MAX_RESOLUTION


class ImageHeader(NamedTuple):
    """What is known about an image before its pixels are decoded."""

    width: int
    height: int
    mode: str        # Pillow's name: L, RGB, RGBA, P, ...
    complete: bool   # The file ends as its format demands; False = unknown until it is decoded.
    turned: bool     # EXIF data says that viewers should rotate or mirror the image.


# --- Listing.


class Place(NamedTuple):
    """A folder or a zip. It is small, and can be pickled."""

    path: str
    archive: ZipDirectory | None = None     # None = a folder.
    metadata: Entry | None = None           # The dataset.json in a zip; None = the zip has none, or it is a folder.


class Listed(NamedTuple):
    """The images in one folder or zip."""

    place: Place
    names: list[str]            # Relative to the place, with forward slashes.
    rows: np.ndarray | None     # Their entries in the directory of a zip, dtype `ENTRY` [N]; None = a folder.
    left_out: LeftOut           # The other files, except dataset.json.


def list_folder(path: str, *, by_content: bool = False) -> Listed:
    """The images in a folder and its sub-folders, in sorted order of their names.

    Args:
        by_content: Also take images whose names have other suffixes.

    Raises:
        UserError: A folder can't be read.
    """
    names, left_out = [], LeftOut.none()
    try:
        for name, reason in scan(path):
            if by_content and reason == UNKNOWN:
                try:
                    with open_regular(os.path.join(path, name), shown(name)) as f:
                        reason = None if begins_like_image(name, f.read(HEAD_BYTES)) else UNKNOWN
                except UserError:
                    reason = UNREADABLE
            if reason is None:
                names.append(name)
            else:
                left_out.add(reason, name)
    except OSError as e:
        raise UserError(f"can't read folder {e.filename or path}: {e.strerror or e}") from e
    return Listed(Place(path), names, None, left_out)


def list_archive(path: str, *, by_content: bool = False) -> Listed:
    """The images in a zip, in sorted order of their names. Of those that share a name, the last is taken.

    Args:
        by_content: Also take images whose names have other suffixes.

    Raises:
        UserError: The file can't be read, is no zip, or is damaged; entries overlap or lie outside of the file; an
            image is encrypted or packed by a method other than deflate.
    """
    listing = list_zip(path)
    listing.check_places()
    archive, rows = listing.directory, listing.rows
    left_out, chosen, metadata = LeftOut.none(), {}, None
    with _reading(path):
        for i, name in enumerate(listing.names):
            reason = why_left_out(name) if name[-1:] != "/" else ""
            if name == METADATA_NAME:
                metadata = Entry(*rows[i].item())
            elif reason is None or reason == UNKNOWN and by_content and begins_like_image(
                    name, archive.read_head(name, Entry(*rows[i].item()), HEAD_BYTES)):
                chosen[name] = i
            elif reason:
                left_out.add(reason, name)
    names = sorted(chosen)
    rows = rows[[chosen[name] for name in names]]
    for i in np.flatnonzero((rows["flags"] & 1) | (rows["method"] != 0)).tolist():
        if not Entry(*rows[i].item()).readable:
            raise unusual(f"image {shown(names[i])} in {path}")
    return Listed(Place(path, archive, metadata), names, rows, left_out)


# --- All files of a dataset.


class ImageFiles:
    """The image files below one path, in sorted order of their names. Several zips come one after another.

    Objects can be pickled, forked and used by several threads. All names are kept in one bytes object, because datasets
    may have millions of them.

    Args:
        path:     The folder, zip or folder of zips.
        parts:    The images of the folder, or of each zip, sorted by the name of the zip.
        left_out: Files of a folder of zips that are not used, beside those of the parts.

    Attributes:
        name:     Last part of the path, without `.zip`.
        places:   The folder, or the zips.
        left_out: The files below the path that are not used, except dataset.json.
    """

    def __init__(self, path: str, parts: Sequence[Listed], left_out: LeftOut = LeftOut.none()):
        self.path, self.places = path, [part.place for part in parts]
        name = os.path.basename(os.path.abspath(path))
        self.name = name if os.path.isdir(path) else os.path.splitext(name)[0]
        self.left_out = LeftOut.none()
        for more in (left_out, *(part.left_out for part in parts)):
            self.left_out.include(more)
        self._sharded = len(parts) != 1 or parts[0].place.path != path
        counts = np.array([len(part.names) for part in parts], dtype=np.int64)
        self._place_of: np.ndarray = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
        rows = [part.rows for part in parts if part.rows is not None]
        self._rows = np.concatenate(rows) if rows else None
        self._set_lines([name.encode(errors="surrogateescape") + b"\n" for part in parts for name in part.names])
        self._identity: bytes | None = None

    def _set_lines(self, lines: list[bytes]) -> None:
        self._text = b"".join(lines)
        self._ends = array.array("Q", itertools.accumulate(map(len, lines), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _line(self, index: int) -> bytes:
        return self._text[self._ends[index] : self._ends[index + 1]]

    def _place(self, index: int) -> Place:
        return self.places[self._place_of[index]]

    def _name_there(self, index: int) -> str:
        """The name of one file relative to its place."""
        return self._line(index)[:-1].decode(errors="surrogateescape")

    def get_name(self, index: int) -> str:
        """The name of one file relative to the path, with forward slashes."""
        name = self._name_there(index)
        return f"{os.path.basename(self._place(index).path)}/{name}" if self._sharded else name

    def names(self) -> list[str]:
        return [self.get_name(index) for index in range(len(self))]

    def names_in(self, number: int) -> list[str]:
        """The names of the files in place `number`, relative to it."""
        return [self._name_there(index) for index in np.flatnonzero(self._place_of == number).tolist()]

    def describe(self, index: int) -> str:
        """The name of a file in messages."""
        return f"image {shown(self._name_there(index))} in {self._place(index).path}"

    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order given. The result's size doesn't depend on how many there are in all."""
        other = copy.copy(self)
        other.left_out, other._identity = LeftOut.none(), None
        which = np.asarray(indices, dtype=np.int64)
        used, other._place_of = np.unique(self._place_of[which], return_inverse=True)
        other.places = [self.places[number] for number in used]
        other._rows = None if self._rows is None else self._rows[which]
        other._set_lines([self._line(index) for index in which.tolist()])
        return other

    # --- Bytes.

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises UserError, naming it, if it can't be read."""
        place, what = self._place(index), self.describe(index)
        if place.archive is None:
            return read_regular(os.path.join(place.path, self._name_there(index)), what)
        entry = Entry(*self._rows[index].item())
        _limit_size(what, max(entry.size, entry.packed_size))
        if entry.packed and entry.size > max(_BOMB_BYTES, _BOMB_RATIO * entry.packed_size):
            raise UserError(f"{what} would unpack from {entry.packed_size} to {entry.size} bytes, as no image does: "
                            "remove it")
        with _reading(what):
            return place.archive.read(self._name_there(index), entry, what)

    def read_metadata(self, number: int) -> bytes | None:
        """The bytes of dataset.json in place `number`; None if there is none. Raises UserError if it can't be read."""
        place, most = self.places[number], int(np.count_nonzero(self._place_of == number))
        if place.archive is None:
            path = os.path.join(place.path, METADATA_NAME)
            if not os.path.lexists(path):
                return None
            with open_regular(path, path) as f, _reading(path):
                _limit_labels(path, os.fstat(f.fileno()).st_size, most)
                return f.read()
        if place.metadata is None:
            return None
        what = f"{METADATA_NAME} of {place.path}"
        _limit_labels(what, place.metadata.size, most)
        with _reading(what):
            return place.archive.read(METADATA_NAME, place.metadata, what)

    # --- Identity.

    def identity(self) -> bytes:
        """SHA-256 of names, sizes and CRC-32 of the files: the same for a zip and a folder with the same files.

        The contents of a zip are not read, because its directory has the checksums. In a folder of more than 100,000
        files or 2 GiB, only every k-th file is read, where k is the smallest number that keeps within both limits. The
        names and sizes of all files count.
        """
        if self._identity is None:
            if self._rows is None:
                listing = hashlib.sha256(os.path.abspath(self.path).encode(errors="surrogateescape"))
                listing.update(self._text[:-1])
                listing.update(self._stats())
                self._identity = _cached(cache_dir("identities", listing.hexdigest()), self._compute_identity)
            else:
                self._identity = self._compute_identity()
        return self._identity

    def _compute_identity(self) -> bytes:
        digest = hashlib.sha256(self._text[:-1])
        for column in self.checksums():
            digest.update(column)
        return digest.digest()

    def checksums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes in bytes and CRC-32 of all files, each int64 [N]. The CRC of a file that was not read is -1."""
        if self._rows is not None:
            return self._rows["size"].astype(np.int64), self._rows["crc"].astype(np.int64)
        sizes = np.ascontiguousarray(self._stats()[:, 0])
        step = max(-(-len(self) // _SAMPLE_FILES), -(-int(sizes.sum()) // _SAMPLE_BYTES), 1)
        crcs = np.full(len(self), -1, dtype=np.int64)
        for index in tqdm(range(0, len(self), step), desc=f"Reading {shown(self.path)} for its fingerprint", unit="img",
                          delay=2, leave=False, file=sys.stderr):
            crcs[index] = zlib.crc32(self.read(index))
        return sizes, crcs

    def _stats(self) -> np.ndarray:
        """Size in bytes and time of change in nanoseconds of each file in a folder, int64 [N, 2]."""
        rows = array.array("q")
        for index in range(len(self)):
            with _reading(self.describe(index)):
                stat = os.stat(os.path.join(self.path, self._name_there(index)))
            rows.extend((stat.st_size, stat.st_mtime_ns))
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    # --- Images.

    def open_lazily(self, index: int) -> Image.Image:
        """Read one image, and decode only its header, so that its size can be checked before its pixels are decoded."""
        return self.parse(index, self.read(index))

    def parse(self, index: int, data: bytes) -> Image.Image:
        """As `open_lazily`, from the bytes that `read` gave. Raises UserError, naming it, if they are no image."""
        with self._decoding_errors(index):
            return Image.open(io.BytesIO(data), formats=FORMATS)

    def verify(self, index: int, data: bytes) -> None:
        """Compare the checksums inside an image, which only PNG files have. Raises UserError if one is wrong."""
        image = self.parse(index, data)
        with self._decoding_errors(index):
            image.verify()

    def pixels(self, index: int, image: Image.Image) -> np.ndarray:
        """Decode what `open_lazily` or `parse` gave: uint8 [H, W] or [H, W, C]. Raises UserError if it is damaged."""
        with self._decoding_errors(index):
            return np.asarray(image)

    def probe(self, index: int) -> ImageHeader:
        """The header of one image, and whether its file is complete. Pixels are not decoded."""
        data = self.read(index)
        image = self.parse(index, data)
        return ImageHeader(*image.size, image.mode, _looks_complete(image.format, data), is_turned(image))

    @contextlib.contextmanager
    def _decoding_errors(self, index: int) -> Iterator[None]:
        try:
            yield
        except DECODING_ERRORS as e:
            raise UserError(describe_decoding_error(self.describe(index), e, FORMATS)) from e


def open_regular(path: str | os.PathLike, what: str) -> BinaryIO:
    """Open a regular file of at most `MAX_FILE_BYTES`. Devices, pipes and sockets may block or never end.

    Raises:
        UserError: It is no regular file, is too large, or can't be opened. The message names it by `what`.
    """
    with _reading(what):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
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
    """The content of a file; otherwise as `open_regular`."""
    with open_regular(path, what) as f, _reading(what):
        return f.read()


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} can't be read: {e.strerror or e}") from e


def _cached(path: Path, compute: Callable[[], bytes]) -> bytes:
    """A SHA-256 digest from the file at `path`, or computed. What took long to compute is kept in the file."""
    with contextlib.suppress(OSError):
        digest = path.read_bytes()
        if len(digest) == hashlib.sha256().digest_size:
            return digest
    start = time.monotonic()
    digest = compute()
    if time.monotonic() - start > _CACHED_SEC:
        with contextlib.suppress(OSError):  # Without the file, the next start takes as long again.
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as f:
                f.write(digest)
    return digest


def open_image_files(path: str | os.PathLike, *, by_content: bool = False) -> ImageFiles:
    """The image files of a folder (and its sub-folders), a zip, or a folder of zips.

    Args:
        path:       Where they are.
        by_content: Also take files with other suffixes that begin like an image of `image_names.source_formats`.

    Raises:
        UserError: `path` does not exist, is neither a folder nor a zip, can't be read, or has no images.
    """
    path = str(path)
    check_readable(path, f"dataset {path or repr(path)}")
    if os.path.isdir(path):
        shards, left_out = find_shards(path)
        if not shards:
            return ImageFiles(path, [_not_empty(list_folder(path, by_content=by_content))])
        zips = (list_archive(os.path.join(path, shard), by_content=by_content) for shard in shards)
        return ImageFiles(path, list(map(_not_empty, zips)), left_out)
    try:
        return ImageFiles(path, [_not_empty(list_archive(path, by_content=by_content))])
    except NotAZip as e:
        if path.lower().endswith(".zip"):
            raise
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py") from e


def check_readable(path: str, what: str, *, expected: str = "the path of a folder or zip of images") -> None:
    """Raise UserError, which names the path by `what`, where there is no readable file or folder."""
    if not os.path.exists(path):
        problem = "is a link to nothing" if os.path.islink(path) else "does not exist"
    elif not os.path.isfile(path) and not os.path.isdir(path):  # Devices and pipes, some of which never end.
        problem = "is a device or pipe"
    elif not os.access(path, os.R_OK):
        problem = "can't be read (permission denied)"
    else:
        return
    raise UserError(f"{what} {problem}: expected {expected}")


def find_shards(path: str) -> tuple[list[str], LeftOut]:
    """The sorted names of the zips that lie directly in a folder, and the folder's other files if it has zips.

    Raises:
        UserError: The folder can't be read, or has both zips and loose images.
    """
    left_out = LeftOut.none()
    try:
        shards = sorted(name for name in os.listdir(path) if name.lower().endswith(".zip") and name[0] != ".")
        for name, reason in scan(path) if shards else ():
            if reason is None:
                raise UserError(f"{path} has zips ({shown(shards[0])}) and loose images ({shown(name)}), expected one "
                                "or the other: move one of them away")
            if name not in shards:
                left_out.add(reason, name)
    except OSError as e:
        raise UserError(f"can't read folder {e.filename or path}: {e.strerror or e}") from e
    return shards, left_out


def _not_empty(part: Listed) -> Listed:
    if not part.names:
        left_out = f"; left out are {part.left_out}" if part.left_out else ""
        raise UserError(f"no images in {part.place.path}{left_out}: expected files that end in "
                        f"{', '.join(IMAGE_EXTENSIONS)}; dataset_tool.py takes other names and formats, too")
    return part


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF data says that viewers should rotate or mirror an image. Pixels are not decoded."""
    try:
        # Don't call image.getexif(): for PNG files it decodes the image.
        is_said = not image.info.keys().isdisjoint(_ORIENTED)
        return is_said and Image.Image.getexif(image).get(_ORIENTATION, 1) in range(2, 9)
    except DECODING_ERRORS:
        return False


def _limit_labels(what: str, size: int, num_images: int) -> None:
    """Raise UserError if a dataset.json, named by `what`, is too large for the labels of `num_images` images."""
    most = (1 << 20) + (64 << 10) * num_images  # Vectors of thousands of numbers fit.
    if size > most:
        raise UserError(f"{what} has {size} bytes, more than the {most} allowed for {num_images} images: replace it")


def _limit_size(what: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{what} has {size} bytes, more than the {MAX_FILE_BYTES} allowed: remove it")


def _looks_complete(image_format: str | None, data: bytes) -> bool:
    if image_format == "PNG":
        return data.endswith(_PNG_END)
    if image_format == "JPEG":
        return data.endswith(b"\xff\xd9")
    if image_format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)  # RIFF: length of all that follows.
    return False  # The length field of BMP files is unreliable.
