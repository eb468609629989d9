"""Image files of a folder, a zip or a folder of zips: listing, fast reading, decoding, checks for damage.

`ImageFiles` is what the rest of the program sees. It consists of containers: one `ImageFolder` or one or more
`ImageZip`.
"""

import abc
import array
import bisect
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
from typing import BinaryIO, Callable, Iterable, Iterator, NamedTuple, Sequence

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
_SAMPLE_FILES, _SAMPLE_BYTES = 100_000, 2 << 30   # Limits of what is read for the identity of a folder.
_CACHED_SEC = 1.0              # An identity that took longer to compute is kept in the cache.

_ORIENTATION = 0x0112          # The EXIF tag, ...
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")   # ... and where Pillow looks for it.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

# The size of large images is checked here, with an error of one line. Pillow's warning would be a second line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageHeader(NamedTuple):
    """What an image says about itself before its pixels are decoded."""

    width: int
    height: int
    mode: str        # Pillow's name: L, RGB, RGBA, P, ...
    complete: bool   # The file ends as its format demands; False = unknown until it is decoded.
    turned: bool     # EXIF data says that viewers should rotate or mirror the image.


# --- Containers.


class Container(abc.ABC):
    """The image files of one folder or zip. Objects can be pickled, forked and used by several threads.

    Names are kept one after another as bytes, not as objects: datasets may have millions.

    Attributes:
        path:     Where the folder or zip is.
        left_out: The other files in it, except dataset.json.
    """

    def __init__(self, path: str, names: Iterable[str], left_out: LeftOut):
        self.path, self.left_out = path, left_out
        self._set_lines([name.encode(errors="surrogateescape") + b"\n" for name in names])

    def _set_lines(self, lines: list[bytes]) -> None:
        self._text = b"".join(lines)
        self._ends = array.array("Q", itertools.accumulate(map(len, lines), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def get_name(self, index: int) -> str:
        """The name of one file relative to the path, with forward slashes."""
        return self._text[self._ends[index] : self._ends[index + 1] - 1].decode(errors="surrogateescape")

    def names(self) -> list[str]:
        return [self.get_name(index) for index in range(len(self))]

    def describe(self, index: int) -> str:
        """How messages name a file."""
        return f"image {shown(self.get_name(index))} in {self.path}"

    def select(self, indices: Sequence[int]) -> "Container":
        """Some of the files, in the order given."""
        other = copy.copy(self)
        other.left_out = LeftOut.none()
        other._set_lines([self._text[self._ends[i] : self._ends[i + 1]] for i in indices])
        return other

    @abc.abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises UserError, naming it, where it can't be read."""

    @abc.abstractmethod
    def read_metadata(self) -> bytes | None:
        """The bytes of dataset.json; None where there is none."""

    @abc.abstractmethod
    def checksums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and CRC-32 of all files, int64 [N]; a CRC is -1 where the file was not read."""

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed a digest with all names, one in a line."""
        digest.update(memoryview(self._text)[:-1])


class ImageFolder(Container):
    """Images in a folder and its sub-folders.

    Args:
        path:       The folder.
        by_content: Also take images whose names have other suffixes.
    """

    def __init__(self, path: str, *, by_content: bool = False):
        left_out = LeftOut.none()
        try:
            super().__init__(path, self._choose(path, by_content, left_out), left_out)
        except OSError as e:
            raise UserError(f"can't read folder {e.filename or path}: {e.strerror or e}") from e

    @staticmethod
    def _choose(path: str, by_content: bool, left_out: LeftOut) -> Iterator[str]:
        for name, reason in scan(path):
            if by_content and reason == UNKNOWN:
                try:
                    with open_regular(os.path.join(path, name), shown(name)) as f:
                        reason = None if begins_like_image(name, f.read(HEAD_BYTES)) else UNKNOWN
                except UserError:
                    reason = UNREADABLE
            if reason is None:
                yield name
            else:
                left_out.add(reason, name)

    def _file(self, index: int) -> str:
        return os.path.join(self.path, self.get_name(index))

    def read(self, index: int) -> bytes:
        return read_regular(self._file(index), self.describe(index))

    def read_metadata(self) -> bytes | None:
        path = os.path.join(self.path, METADATA_NAME)
        if not os.path.lexists(path):
            return None
        with open_regular(path, path) as f, _reading(path):
            _limit_labels(path, os.fstat(f.fileno()).st_size, len(self))
            return f.read()

    def stats(self) -> np.ndarray:
        """Size and time of each file, int64 [N, 2]."""
        rows = array.array("q")
        for index in range(len(self)):
            with _reading(self.describe(index)):
                stat = os.stat(self._file(index))
            rows.extend((stat.st_size, stat.st_mtime_ns))
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    def checksums(self) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.ascontiguousarray(self.stats()[:, 0])
        step = max(-(-len(self) // _SAMPLE_FILES), -(-int(sizes.sum()) // _SAMPLE_BYTES), 1)
        crcs = np.full(len(self), -1, dtype=np.int64)
        for index in tqdm(range(0, len(self), step), desc=f"Reading {shown(self.path)} for its fingerprint", unit="img",
                          delay=2, leave=False, file=sys.stderr):
            crcs[index] = zlib.crc32(self.read(index))
        return sizes, crcs


class ImageZip(Container):
    """Images in a zip, stored or deflated.

    Args:
        directory: Of the zip.
        names:     Of the images.
        rows:      What the directory says about them, dtype `zip_directory.ENTRY` [N].
        metadata:  What it says about dataset.json; None where there is none.
        left_out:  The other files.
    """

    def __init__(self, directory: ZipDirectory, names: Iterable[str], rows: np.ndarray, metadata: Entry | None,
                 left_out: LeftOut):
        super().__init__(directory.path, names, left_out)
        self._directory, self._rows, self._metadata = directory, rows, metadata

    @classmethod
    def open(cls, path: str, *, by_content: bool = False) -> "ImageZip":
        """The images of a zip in sorted order of their names. Of those that share a name, the last is taken.

        Args:
            path:       The zip.
            by_content: Also take images whose names have other suffixes.

        Raises:
            UserError: The zip can't be read, is none or is damaged; entries lie over each other or outside of the file;
                an image is encrypted or packed by a method other than deflate.
        """
        listing = list_zip(path)
        listing.check_places()
        directory, rows = listing.directory, listing.rows
        left_out, chosen, metadata = LeftOut.none(), {}, None
        with _reading(path):
            for i, name in enumerate(listing.names):
                reason = why_left_out(name) if name[-1:] != "/" else ""
                if name == METADATA_NAME:
                    metadata = Entry(*rows[i].item())
                elif reason is None or reason == UNKNOWN and by_content and begins_like_image(
                        name, directory.read_head(name, Entry(*rows[i].item()), HEAD_BYTES)):
                    chosen[name] = i
                elif reason:
                    left_out.add(reason, name)
        order = sorted(chosen)
        rows = rows[[chosen[name] for name in order]]
        files = cls(directory, order, rows, metadata, left_out)
        for i in np.flatnonzero((rows["flags"] & 1) | (rows["method"] != 0)).tolist():
            if not files._entry(i).readable:
                raise unusual(files.describe(i))
        return files

    def select(self, indices: Sequence[int]) -> "ImageZip":
        other = super().select(indices)
        assert isinstance(other, ImageZip)
        other._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return other

    def _entry(self, index: int) -> Entry:
        return Entry(*self._rows[index].item())

    def read(self, index: int) -> bytes:
        what, entry = self.describe(index), self._entry(index)
        _limit_size(what, max(entry.size, entry.packed_size))
        if entry.packed and entry.size > max(_BOMB_BYTES, _BOMB_RATIO * entry.packed_size):
            raise UserError(f"{what} would unpack from {entry.packed_size} to {entry.size} bytes, as no image does: "
                            "remove it")
        with _reading(what):
            return self._directory.read(self.get_name(index), entry, what)

    def read_metadata(self) -> bytes | None:
        if self._metadata is None:
            return None
        what = f"{METADATA_NAME} of {self.path}"
        _limit_labels(what, self._metadata.size, len(self))
        with _reading(what):
            return self._directory.read(METADATA_NAME, self._metadata, what)

    def checksums(self) -> tuple[np.ndarray, np.ndarray]:
        return self._rows["size"].astype(np.int64), self._rows["crc"].astype(np.int64)


# --- All files of a dataset.


class ImageFiles:
    """The image files below one path, in sorted order of their names; of several zips, one zip after the other.

    Objects can be pickled, forked and used by several threads.

    Args:
        path:       Where the files are.
        containers: The folder, or the zips in the order of their names.
        left_out:   Files outside of the containers that are not used.

    Attributes:
        name:     Last part of the path, without `.zip`.
        left_out: The other files below the path, except dataset.json.
    """

    def __init__(self, path: str, containers: Sequence[Container], left_out: LeftOut = LeftOut.none()):
        self.path, self.containers = path, list(containers)
        name = os.path.basename(os.path.abspath(path))
        self.name = name if os.path.isdir(path) else os.path.splitext(name)[0]
        self.left_out = LeftOut.none()
        for part in (left_out, *(container.left_out for container in containers)):
            self.left_out.include(part)
        self._sharded = len(self.containers) != 1 or self.containers[0].path != path
        self._ends = list(itertools.accumulate(map(len, self.containers)))
        self._selected: list[tuple[int, int]] | None = None
        self._identity: bytes | None = None

    def __len__(self) -> int:
        return (self._ends or [0])[-1] if self._selected is None else len(self._selected)

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the container, and of the file in it."""
        if self._selected is not None:
            return self._selected[index]
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _find(self, index: int) -> tuple[Container, int]:
        number, index = self._locate(index)
        return self.containers[number], index

    def get_name(self, index: int) -> str:
        """The name of one file relative to the path, with forward slashes."""
        container, index = self._find(index)
        name = container.get_name(index)
        return f"{os.path.basename(container.path)}/{name}" if self._sharded else name

    def names(self) -> list[str]:
        return [self.get_name(index) for index in range(len(self))]

    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order given: an object whose size doesn't depend on how many there are in all."""
        other = copy.copy(self)
        other.left_out, other._identity = LeftOut.none(), None
        if len(self.containers) == 1:
            other.containers, other._ends, other._selected = [self.containers[0].select(indices)], [len(indices)], None
            return other
        groups: dict[int, tuple[int, list[int]]] = {}   # By number: the number of the container in the result.
        other._selected = []
        for number, index in map(self._locate, map(int, indices)):
            new_number, group = groups.setdefault(number, (len(groups), []))
            other._selected.append((new_number, len(group)))
            group.append(index)
        other.containers = [self.containers[number].select(group) for number, (_, group) in groups.items()]
        return other

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises UserError, naming it, where it can't be read."""
        container, index = self._find(index)
        return container.read(index)

    def identity(self) -> bytes:
        """A digest of names, sizes and CRC-32 of the files: the same for a zip and a folder with the same files.

        The contents of a zip are not read: its directory has the checksums. In a folder of more than 100,000 files or
        2 GiB, only every k-th file is read, with the smallest k that keeps within both; names and sizes are of all.
        """
        if self._identity is None:
            first = self.containers[0]
            if isinstance(first, ImageFolder):
                listing = hashlib.sha256(os.path.abspath(self.path).encode(errors="surrogateescape"))
                first.update(listing)
                listing.update(first.stats())
                self._identity = _cached(cache_dir("identities", listing.hexdigest()), self._compute_identity)
            else:
                self._identity = self._compute_identity()
        return self._identity

    def _compute_identity(self) -> bytes:
        digest = hashlib.sha256()
        for number, container in enumerate(self.containers):
            digest.update(b"\n" if number else b"")
            container.update(digest)
        for column in zip(*(container.checksums() for container in self.containers)):
            digest.update(np.concatenate(column))
        return digest.digest()

    # --- Images.

    def describe(self, index: int) -> str:
        """How messages name a file."""
        container, index = self._find(index)
        return container.describe(index)

    def open_lazily(self, index: int) -> Image.Image:
        """One image of which only the header is decoded. Its size can be checked before the pixels are decoded."""
        return self.parse(index, self.read(index))

    def parse(self, index: int, data: bytes) -> Image.Image:
        """As `open_lazily`, from the bytes that `read` gave."""
        with self._decoding_errors(index):
            return Image.open(io.BytesIO(data), formats=FORMATS)

    def verify(self, index: int, data: bytes) -> None:
        """Compare the checksums inside an image. Only PNG files have some."""
        image = self.parse(index, data)
        with self._decoding_errors(index):
            image.verify()

    def pixels(self, index: int, image: Image.Image) -> np.ndarray:
        """Pixels of what `open_lazily` gave: uint8 [H, W] or [H, W, C]."""
        with self._decoding_errors(index):
            return np.asarray(image)

    def probe(self, index: int) -> ImageHeader:
        """Header of one image, and whether the file is complete. Pixels are not decoded."""
        data = self.read(index)
        image = self.parse(index, data)
        complete = _looks_complete(image.format, data)
        return ImageHeader(*image.size, image.mode, complete, is_turned(image))

    @contextlib.contextmanager
    def _decoding_errors(self, index: int) -> Iterator[None]:
        try:
            yield
        except DECODING_ERRORS as e:
            raise UserError(describe_decoding_error(self.describe(index), e, FORMATS)) from e


def open_regular(path: str | os.PathLike, what: str) -> BinaryIO:
    """Open a regular file of at most `MAX_FILE_BYTES`. Devices, pipes and sockets may block or never end.

    Raises:
        UserError: It is another kind of file, too large, or can't be opened; `what` names it.
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
        with contextlib.suppress(OSError):  # Without the cache, all works but takes longer.
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as f:
                f.write(digest)
    return digest


def open_image_files(path: str | os.PathLike, *, by_content: bool = False) -> ImageFiles:
    """The image files of a folder (and its sub-folders), a zip, or a folder of zips.

    Args:
        path:       Where they are.
        by_content: Take every file that begins like an image of `image_names.source_formats`; False = take files by
                    their suffix alone.

    Raises:
        UserError: There is nothing at `path`, it is neither a folder nor a zip, can't be read, or has no images.
    """
    path = str(path)
    check_readable(path, f"dataset {path or repr(path)}")
    if os.path.isdir(path):
        shards, left_out = find_shards(path)
        if not shards:
            return ImageFiles(path, [_not_empty(ImageFolder(path, by_content=by_content))])
        zips = (ImageZip.open(os.path.join(path, shard), by_content=by_content) for shard in shards)
        return ImageFiles(path, list(map(_not_empty, zips)), left_out)
    try:
        return ImageFiles(path, [_not_empty(ImageZip.open(path, by_content=by_content))])
    except NotAZip as e:
        if path.lower().endswith(".zip"):
            raise
        raise UserError(f"dataset {path} is neither a folder nor a zip: make one with dataset_tool.py") from e


def check_readable(path: str, what: str, *, expected: str = "the path of a folder or zip of images") -> None:
    """Raises UserError, which names the path by `what`, where there is neither a file nor a folder, or none to read."""
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
    """Names of the zips that a folder directly holds, sorted, and what else is in a folder of zips.

    Raises:
        UserError: The folder can't be read, or has zips and loose images too.
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


def _not_empty(container: Container) -> Container:
    if not len(container):
        left_out = f"; left out are {container.left_out}" if container.left_out else ""
        raise UserError(f"no images in {container.path}{left_out}: expected files that end in "
                        f"{', '.join(IMAGE_EXTENSIONS)}; dataset_tool.py takes other names and formats, too")
    return container


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF data says that viewers should rotate or mirror an image. Pixels are not decoded."""
    try:
        # Not image.getexif(): that of PNG files decodes the image.
        is_said = not image.info.keys().isdisjoint(_ORIENTED)
        return is_said and Image.Image.getexif(image).get(_ORIENTATION, 1) in range(2, 9)
    except DECODING_ERRORS:
        return False


def _limit_labels(what: str, size: int, num_images: int) -> None:
    """Raises UserError where a dataset.json, named by `what`, is too large for the labels of `num_images` images."""
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
    return False  # BMP: its length field is unreliable.
