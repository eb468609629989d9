"""Reading zips of millions of images: the directory at the end becomes a few arrays, and files are read by position.

Python's zipfile keeps an object of half a kilobyte for each entry, and shares one file position among threads. Here an
entry is a row of 32 bytes, and reading needs one system call. The format is PKWARE's APPNOTE.
"""

import functools
import os
import stat as file_mode
import struct
import zlib
from typing import NamedTuple

import numpy as np

from dnnlib.util import UserError
from training.data.image_names import shown

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 1 << 11              # Bits of the flags.
_MAX_OPEN = 64                              # Files of one process that stay open; a dataset may have thousands.
_MAX_DIRECTORY_BYTES = 1 << 30              # Ten million entries take less.
_SATURATED = 0xFFFFFFFF                     # "See the zip64 field."

_END = struct.Struct("<4sHHHHIIH")          # Signature, disks, entries here, in all, directory's size, offset, comment.
_LOCATOR = struct.Struct("<4sIQI")          # Of the zip64 end record: signature, disk, offset, disks.
_END64 = struct.Struct("<4sQHHIIQQQQ")      # ..., entries here, in all, directory's size, offset.
_LENGTHS = struct.Struct("<HHH")            # Of name, extra field and comment, in a record.
_LOCAL_HEADER = struct.Struct("<4s22xHH")   # Signature; lengths of name and extra field, which follow.
_RECORD = np.dtype({                        # Of the directory; name, extra field and comment follow.
    "names": ["flags", "method", "crc", "packed_size", "size", "name", "extra", "offset"],
    "formats": ["<u2", "<u2", "<u4", "<u4", "<u4", "<u2", "<u2", "<u4"],
    "offsets": [8, 10, 16, 20, 24, 28, 30, 42],
    "itemsize": 46,
})
ENTRY = np.dtype([("offset", "u8"), ("packed_size", "u8"), ("size", "u8"), ("crc", "u4"), ("flags", "u2"),
                  ("method", "u2")])    # An array of these is an `Entry` for each file.


class NotAZip(UserError):
    """The file has no end record."""


class ChecksumError(UserError):
    """A file in a zip is not what it was when the zip was made."""


class Entry(NamedTuple):
    """What the directory says about one file: a row of dtype `ENTRY`."""

    offset: int
    packed_size: int
    size: int
    crc: int
    flags: int
    method: int

    @property
    def readable(self) -> bool:
        """Whether it is neither encrypted nor packed by a method that is not known here."""
        return not self.flags & _ENCRYPTED and self.method in (_STORED, _DEFLATED)

    @property
    def packed(self) -> bool:
        return self.method != _STORED


class ZipDirectory(NamedTuple):
    """Where the directory of a zip is. Small, and can be pickled; each process opens the file when it needs it."""

    path: str               # As the user gave it.
    location: str           # Absolute.
    stamp: tuple[int, int]  # Size and time of the file.
    prefix: int             # Bytes in front of the archive, as in self-extracting ones.
    begin: int              # First and last byte + 1 of the directory.
    end: int
    num_entries: int

    def _pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes. Raises OSError, or UserError where the file is another one by now."""
        return os.pread(_open(self.location, self.path, self.stamp).fd, length, offset)

    def _damaged(self, reason: str) -> UserError:
        return _damaged(self.path, reason)

    # --- The directory.

    def entries(self) -> tuple[list[str], np.ndarray]:
        """Names and rows (dtype `ENTRY`) of all entries, in the order of the directory.

        Raises:
            UserError: The directory is damaged.
            OSError:   The file can't be read.
        """
        data = self._pread(self.end - self.begin, self.begin)
        starts, at = [], 0
        while at < len(data):
            if data[at : at + 4] != b"PK\1\2" or at + _RECORD.itemsize > len(data):
                raise self._damaged("its directory is broken")
            starts.append(at)
            at += _RECORD.itemsize + sum(_LENGTHS.unpack_from(data, at + 28))
        if at > len(data):
            raise self._damaged("its directory is broken")
        if (len(starts) - self.num_entries) % 65536:  # Old writers count modulo 2 ** 16.
            raise self._damaged(f"{len(starts)} entries, but its end says {self.num_entries}")
        if not starts:
            return [], np.zeros(0, ENTRY)
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), _RECORD.itemsize)
        records = windows[starts].view(_RECORD)[:, 0]
        rows = np.empty(len(starts), ENTRY)
        for field in ENTRY.fields or ():
            rows[field] = records[field]
        name_begins = np.array(starts) + _RECORD.itemsize
        name_ends = name_begins + records["name"]
        large = (rows["offset"] == _SATURATED) | (rows["packed_size"] == _SATURATED) | (rows["size"] == _SATURATED)
        for i in np.flatnonzero(large).tolist():
            self._add_zip64(rows[i], data[name_ends[i] : name_ends[i] + records["extra"][i]])
        rows["offset"] += self.prefix
        places = zip(name_begins.tolist(), name_ends.tolist(), records["flags"].tolist())
        return [_decode(data[begin:end], flags) for begin, end, flags in places], rows

    def _add_zip64(self, row: np.void, extra: bytes) -> None:
        """Numbers that don't fit 32 bits stand, in this order, in the extra field number 1."""
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<HH", extra)
            field, extra = extra[4 : 4 + length], extra[4 + length :]
            if kind == 1:
                for key in ("size", "packed_size", "offset"):
                    if row[key] == _SATURATED and len(field) >= 8:
                        row[key], field = int.from_bytes(field[:8], "little"), field[8:]
                        if row[key] >= 1 << 61:
                            raise self._damaged("an entry claims to be larger than any disk")
                return

    def check_places(self, names: list[str], rows: np.ndarray) -> None:
        """No entry may be in the directory or outside of the file; none shares bytes with another, as in some bombs."""
        if not len(rows):
            return
        lengths = np.fromiter(map(len, names), np.uint64, len(names))  # Names take as many bytes or more.
        begins, ends = rows["offset"], rows["offset"] + rows["packed_size"] + lengths + np.uint64(_LOCAL_HEADER.size)
        if begins.min() < self.prefix or ends.max() > self.begin:
            raise self._damaged("an entry is said to be where the file has no room for it")
        order = np.argsort(begins, kind="stable")
        if not (ends[order[:-1]] <= begins[order[1:]]).all():
            raise self._damaged("entries lie over each other")

    # --- Files.

    def read(self, name: str, entry: Entry, what: str) -> bytes:
        """The bytes of one file, whose checksum is right. Raises UserError, OSError; `what` names the file."""
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
        """The first bytes of one file; none where it can't be unpacked. Raises OSError."""
        try:
            _, data = self._open_file(name, entry, min(entry.packed_size, count), shown(name))
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count) if entry.packed else data
        except (UserError, zlib.error):
            return b""

    def _open_file(self, name: str, entry: Entry, count: int, what: str) -> tuple[int, bytes]:
        """Where the data of a file begin, and up to `count` bytes of them; fewer where its extra field is long."""
        # Header and data in one system call, unless the extra field is long.
        chunk = self._pread(_LOCAL_HEADER.size + len(name) + 64 + count, entry.offset)
        if chunk.startswith(b"PK\3\4") and len(chunk) >= _LOCAL_HEADER.size:
            _, name_length, extra_length = _LOCAL_HEADER.unpack_from(chunk)
            if _decode(chunk[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_length], entry.flags) == name:
                begin = _LOCAL_HEADER.size + name_length + extra_length
                return entry.offset + begin, chunk[begin : begin + count]
        raise UserError(f"{what} is not where the zip's directory says: the zip is damaged or has been replaced "
                        "meanwhile")


def open_directory(path: str) -> ZipDirectory:
    """Find the directory of a zip.

    Raises:
        UserError: The file can't be read, is no zip, is damaged or a part of a split zip.
    """
    location = os.path.abspath(path)
    try:
        stat = os.stat(location)
        if not file_mode.S_ISREG(stat.st_mode):  # Pipes wait, and some devices never end.
            raise UserError(f"{path} is a {'folder' if os.path.isdir(location) else 'device or pipe'}, not a zip")
        stamp = (stat.st_size, stat.st_mtime_ns)
        tail_begin = max(stat.st_size - _END.size - 0xFFFF, 0)
        handle = _open(location, path, stamp)
        tail = os.pread(handle.fd, stat.st_size - tail_begin, tail_begin)
        at = _find_end(tail)
        if at is None:
            raise NotAZip(f"{path} is no zip, or the end of it is missing: copy or download it again")
        _, disk, first_disk, _, num_entries, length, offset, _ = _END.unpack_from(tail, at)
        end = tail_begin + at
        begin64 = end - _LOCATOR.size - _END64.size
        data = os.pread(handle.fd, _END64.size + _LOCATOR.size, begin64) if begin64 >= 0 else b""
        if data[:4] == b"PK\6\6" and data[_END64.size : _END64.size + 4] == b"PK\6\7":
            _, _, _, _, disk, first_disk, _, num_entries, length, offset = _END64.unpack_from(data)
            end = begin64
    except OSError as e:
        raise UserError(f"can't open {path}: {e.strerror or e}") from e
    if disk or first_disk:
        raise UserError(f"{path} is a part of a split zip: join the parts (zip -s 0)")
    begin = end - length
    if begin < 0 or begin - offset < 0 or length > _MAX_DIRECTORY_BYTES:
        raise _damaged(path, "its directory is said to be where the file has no room for it")
    return ZipDirectory(path, location, stamp, begin - offset, begin, end, num_entries)


def _find_end(tail: bytes) -> int | None:
    """Where the end record is. A comment follows it, which may hold what looks like another one."""
    last = at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    while at >= 0:
        if at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
        at = tail.rfind(b"PK\5\6", 0, at)
    return last if last >= 0 else None  # Something was appended to the file.


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is a damaged zip ({reason}): copy or download it again")


def unusual(what: str) -> UserError:
    return UserError(f"{what} is encrypted or packed by an unusual method: make a zip that stores its files (zip -0)")


def _decode(raw_name: bytes, flags: int) -> str:
    """As zipfile: UTF-8 or code page 437 by the flag, and nothing after a zero byte."""
    raw_name = raw_name.partition(b"\0")[0]
    if flags & _UTF8 or raw_name.isascii():
        return raw_name.decode(errors="surrogateescape")
    return raw_name.decode("cp437")


class _Handle:
    """An open file. It is closed when no thread uses it any more."""

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
