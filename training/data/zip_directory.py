"""Reading zips of millions of images: files are read by position, and the directory is kept in one array.

Python's zipfile reads the directory. But an open `ZipFile` keeps half a kilobyte for each entry, and its threads share
one file position. Here an entry is a row of 32 bytes, and reading a file takes one system call.
"""

import functools
import os
import stat as file_mode
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from dnnlib.util import UserError
from training.data.image_names import shown

_ENCRYPTED, _UTF8 = 1, 1 << 11              # Bits of the flags.
_MAX_OPEN = 64                              # Zips that a process keeps open. A dataset may have thousands.
_LOCAL_HEADER = struct.Struct("<4s22xHH")   # Signature, and the lengths of the name and the extra field that follow.
_END = struct.Struct("<10xH10x")            # The number of entries, in the last record of a zip.
ENTRY = np.dtype([("offset", "u8"), ("packed_size", "u8"), ("size", "u8"), ("crc", "u4"), ("flags", "u2"),
                  ("method", "u2")])        # The fields of `Entry`.


class NotAZip(UserError):
    """The file is no zip, or its end is missing."""


class ChecksumError(UserError):
    """A file in a zip is damaged: it doesn't fit its checksum."""


class Entry(NamedTuple):
    """The entry of one file in the directory: a row of dtype `ENTRY`."""

    offset: int
    packed_size: int
    size: int
    crc: int
    flags: int
    method: int

    @property
    def readable(self) -> bool:
        """Whether the file is not encrypted, and stored or deflated."""
        return not self.flags & _ENCRYPTED and self.method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

    @property
    def packed(self) -> bool:
        return self.method != zipfile.ZIP_STORED


class ZipDirectory(NamedTuple):
    """A zip, which each process opens when it needs it. The object is small, and can be pickled."""

    path: str               # The path that the user gave, for messages.
    location: str           # Absolute.
    stamp: tuple[int, int]  # Size and time of the file.

    def _pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset` on. Raises OSError, or UserError if the zip has been replaced."""
        return os.pread(_open(self.location, self.path, self.stamp).fd, length, offset)

    def read(self, name: str, entry: Entry, what: str) -> bytes:
        """The bytes of one file, after checking its checksum.

        Raises:
            UserError: The file is damaged, encrypted or packed by another method. The message names it by `what`.
            OSError:   The zip can't be read.
        """
        if not entry.readable:
            raise unusual(what)
        begin, data = self._open_file(name, entry, entry.packed_size, what)
        if len(data) < entry.packed_size:
            data = self._pread(entry.packed_size, begin)
        if entry.packed:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, entry.size + 1)  # Never much more.
            except zlib.error as e:
                raise ChecksumError(f"{what} can't be unpacked ({e}): the zip is damaged") from e
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise ChecksumError(f"{what} is damaged: its checksum is not the one in the zip's directory; copy or "
                                "download the zip again")
        return data

    def read_head(self, name: str, entry: Entry, count: int) -> bytes:
        """The first `count` bytes of one file; none if it can't be unpacked. Raises OSError if it can't be read."""
        try:
            _, data = self._open_file(name, entry, min(entry.packed_size, count), shown(name))
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count) if entry.packed else data
        except (UserError, zlib.error):
            return b""

    def _open_file(self, name: str, entry: Entry, count: int, what: str) -> tuple[int, bytes]:
        """Offset of the data of a file, and up to `count` bytes of them."""
        # Read header and data in one system call. If the extra field is long, a part of the data is missing.
        chunk = self._pread(_LOCAL_HEADER.size + len(name) + 64 + count, entry.offset)
        if chunk.startswith(b"PK\3\4") and len(chunk) >= _LOCAL_HEADER.size:
            _, name_length, extra_length = _LOCAL_HEADER.unpack_from(chunk)
            if _decode(chunk[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_length], entry.flags) == name:
                begin = _LOCAL_HEADER.size + name_length + extra_length
                return entry.offset + begin, chunk[begin : begin + count]
        raise UserError(f"{what} is not where the zip's directory says: the zip is damaged or has been replaced "
                        "meanwhile")


class Listing(NamedTuple):
    """The entries of a zip, in the order of its directory."""

    directory: ZipDirectory
    names: list[str]
    rows: np.ndarray    # dtype `ENTRY` [N].
    end: int            # Offset of the directory. All files lie before it.

    def check_places(self) -> None:
        """Raise UserError if an entry lies outside of the zip, or shares bytes with another, as in some zip bombs."""
        if not len(self.rows):
            return
        # A name takes at least one byte for each character.
        lengths = np.fromiter(map(len, self.names), np.uint64, len(self.names))
        begins = self.rows["offset"]
        ends = begins + self.rows["packed_size"] + lengths + np.uint64(_LOCAL_HEADER.size)
        if begins.max() > self.end or ends.max() > self.end:
            raise _damaged(self.directory.path, "an entry is said to be where the file has no room for it")
        order = np.argsort(begins, kind="stable")
        if not (ends[order[:-1]] <= begins[order[1:]]).all():
            raise _damaged(self.directory.path, "entries lie over each other")


def list_zip(path: str) -> Listing:
    """Read the directory of a zip.

    Raises:
        UserError: The file can't be read, is no zip, or is damaged.
    """
    location = os.path.abspath(path)
    try:
        stat = os.stat(location)
        if not file_mode.S_ISREG(stat.st_mode):  # Pipes wait, and some devices never end.
            raise UserError(f"{path} is a {'folder' if os.path.isdir(location) else 'device or pipe'}, not a zip")
        if not zipfile.is_zipfile(location):
            raise NotAZip(f"{path} is no zip, or the end of it is missing: copy or download it again")
        with zipfile.ZipFile(location) as archive:
            infos, end = archive.infolist(), archive.start_dir
            archive.fp.seek(-_END.size - len(archive.comment), os.SEEK_END)
            num_entries = _END.unpack(archive.fp.read(_END.size))[0]
            rows = np.array([(info.header_offset, info.compress_size, info.file_size, info.CRC, info.flag_bits,
                              info.compress_type) for info in infos], dtype=ENTRY)
    except OSError as e:
        raise UserError(f"can't open {path}: {e.strerror or e}") from e
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as e:
        if isinstance(e, UserError):
            raise
        raise _damaged(path, str(e) or type(e).__name__) from e
    # zipfile does not check the number of entries. 0xFFFF stands for a larger one, in another record.
    if num_entries not in (len(infos) % 65536, 0xFFFF):
        raise _damaged(path, f"{len(infos)} entries, but its end says {num_entries}")
    return Listing(ZipDirectory(path, location, (stat.st_size, stat.st_mtime_ns)), [info.filename for info in infos],
                   rows, end)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is a damaged zip ({reason}): copy or download it again")


def unusual(what: str) -> UserError:
    """The error for a file, named by `what`, that is not `Entry.readable`."""
    return UserError(f"{what} is encrypted or packed by an unusual method: make a zip that stores its files (zip -0)")


def _decode(raw_name: bytes, flags: int) -> str:
    """Decode as zipfile does: UTF-8 or code page 437, as the flag says, and nothing after a zero byte."""
    return raw_name.decode("utf-8" if flags & _UTF8 else "cp437", errors="replace").partition("\0")[0]


class _Handle:
    """An open file. It is closed when the last thread has finished with it."""

    def __init__(self, location: str):
        self.fd = os.open(location, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open(location: str, path: str, stamp: tuple[int, int]) -> _Handle:
    handle = _Handle(location)
    stat = os.fstat(handle.fd)
    if (stat.st_size, stat.st_mtime_ns) != stamp:
        raise UserError(f"{path} has been replaced meanwhile: start again")
    return handle
