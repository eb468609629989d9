"""The directory at the end of a zip, read a part at a time: millions of entries cost eight bytes each or less.

Python's zipfile makes an object of half a kilobyte for each entry. Here an entry is where its record stands in the
directory; name, place and checksum are looked up in the file when they are needed. The format is PKWARE's APPNOTE.
"""

import functools
import os
import stat as file_mode
import struct
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from dnnlib.util import UserError
from training.data.image_names import METADATA_NAME, are_images, shown

STORED, DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 1 << 11              # Bits of the flags.
_CHUNK_BYTES = 4 << 20                      # So much of a directory is in memory at a time.
_MAX_OPEN = 64                              # Files of one process that stay open; a dataset may have thousands.
_SATURATED_16, _SATURATED_32 = 0xFFFF, 0xFFFFFFFF  # "See the zip64 field."

_END = struct.Struct("<4sHHHHIIH")          # Signature, disks, entries here, in all, directory's size, offset, comment.
_LOCATOR = struct.Struct("<4sIQI")          # Of the zip64 end record: signature, disk, offset, disks.
_END64 = struct.Struct("<4sQHHIIQQQQ")      # ..., entries here, in all, directory's size, offset.
_RECORD = struct.Struct("<4s4xHH4xIIIHHH8xI")
_LENGTHS = struct.Struct("<4s24xHHH")       # The part of a record that says how long it is.
_RECORD_BYTES = _RECORD.size
LOCAL_HEADER = struct.Struct("<4s22xHH")
_FIELDS = np.dtype({                        # The same as _RECORD, for many at once.
    "names": ["signature", "flags", "method", "crc", "packed_size", "size", "name", "extra", "comment", "offset"],
    "formats": ["<u4", "<u2", "<u2", "<u4", "<u4", "<u4", "<u2", "<u2", "<u2", "<u4"],
    "offsets": [0, 8, 10, 16, 20, 24, 28, 30, 32, 42],
    "itemsize": _RECORD_BYTES,
})


class NotAZip(UserError):
    """The file has no end record."""


class Record(NamedTuple):
    """What the directory says about one entry."""

    name: str
    raw_name: bytes         # As it is stored, also in front of the data.
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    offset: int             # Of the entry in the file.

    @property
    def readable(self) -> bool:
        return not self.flags & _ENCRYPTED and self.method in (STORED, DEFLATED)


class Chunk(NamedTuple):
    """Consecutive entries; all arrays have the same length."""

    positions: np.ndarray   # int64: where the records stand in the file.
    names: np.ndarray       # Bytes (fixed width or objects), UTF-8: their order is that of the strings.
    readable: np.ndarray    # bool
    begins: np.ndarray      # int64: where the entries stand in the file.
    ends: np.ndarray        # int64: where they end, at least.
    sizes: np.ndarray       # int64: unpacked.
    crcs: np.ndarray        # int64


class Entries(NamedTuple):
    """Some entries, one after another."""

    names: list[bytes]      # UTF-8
    sizes: np.ndarray       # int64
    crcs: np.ndarray        # int64: CRC-32; -1 where a file of a folder was not read.


class Index(NamedTuple):
    """Entries, by where their records stand from the beginning of the directory: uint32 or uint64."""

    positions: np.ndarray   # Images, in sorted order of their names; of those that share one, the last.
    others: np.ndarray      # All other files, in the order of the directory.
    metadata: int | None    # dataset.json


class ZipDirectory(NamedTuple):
    """Where the directory of a zip is. Small, and can be pickled; the file is opened in each process when needed."""

    path: str               # As the user gave it.
    location: str           # Absolute.
    stamp: tuple[int, int]  # Size and time of the file.
    prefix: int             # Bytes in front of the archive, as in self-extracting ones.
    begin: int              # First and last byte + 1 of the directory.
    end: int
    num_entries: int

    # --- The file.

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes. Raises OSError, or UserError where the file is another one by now."""
        handle = _open(self.location, self.path, self.stamp)
        parts = [os.pread(handle.fd, length, offset)]
        while parts[-1] and sum(map(len, parts)) < length:  # One call gives 2 GiB at most.
            done = sum(map(len, parts))
            parts.append(os.pread(handle.fd, length - done, offset + done))
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _damaged(self, reason: str) -> UserError:
        return damaged(self.path, reason)

    # --- Single entries.

    def record(self, position: int) -> Record:
        """The entry whose record is `position` bytes from the beginning of the directory. Raises OSError, UserError."""
        start = self.begin + position
        data = self.pread(min(_RECORD_BYTES + 256, self.end - start), start)
        length = _record_length(data, 0)
        if length > len(data) and start + length <= self.end:
            data = self.pread(length, start)
        if length > len(data) or not length:
            raise UserError(f"the directory of {self.path} is not what it was: the zip has been replaced meanwhile")
        return self._parse(data, 0)

    def records(self, positions: np.ndarray) -> Iterator[Record]:
        """Many entries, which are read together where they stand together."""
        for first in range(0, len(positions), 4096):
            group = positions[first : first + 4096].astype(np.int64)
            if len(group) > 1 and int(group.max() - group.min()) < _CHUNK_BYTES:
                base = int(group.min())
                data = self.pread(min(int(group.max()) - base + _RECORD_BYTES + 3 * _SATURATED_16,
                                      self.end - self.begin - base), self.begin + base)
                for at in (group - base).tolist():
                    length = _record_length(data, at)
                    yield self._parse(data, at) if 0 < length <= len(data) - at else self.record(base + at)
            else:
                yield from map(self.record, group.tolist())

    def _parse(self, data: bytes, at: int) -> Record:
        _, flags, method, crc, packed_size, size, name, extra, _, offset = _RECORD.unpack_from(data, at)
        raw_name = data[at + _RECORD_BYTES : at + _RECORD_BYTES + name]
        if _SATURATED_32 in (packed_size, size, offset):
            begin = at + _RECORD_BYTES + name
            size, packed_size, offset = self._zip64(data[begin : begin + extra], size, packed_size, offset)
        return Record(_decode(raw_name, flags), raw_name, flags, method, crc, packed_size, size, offset + self.prefix)

    def _zip64(self, extra: bytes, size: int, packed_size: int, offset: int) -> list[int]:
        """Those of the three numbers that don't fit 32 bits stand, in this order, in the extra field number 1."""
        values = [size, packed_size, offset]
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<HH", extra)
            field, extra = extra[4 : 4 + length], extra[4 + length :]
            if kind != 1:
                continue
            for i, value in enumerate(values):
                if value == _SATURATED_32:
                    if len(field) < 8:
                        break
                    values[i], field = int.from_bytes(field[:8], "little"), field[8:]
            if max(values) >= 1 << 61:
                raise self._damaged("an entry claims to be larger than any disk")
            return values
        return values

    # --- All entries.

    def chunks(self) -> Iterator[Chunk]:
        """All entries in the order of the directory, in bounded memory. Raises UserError where it is damaged."""
        position, count = self.begin, 0
        while position < self.end:
            try:
                data = self.pread(min(_CHUNK_BYTES, self.end - position), position)
            except OSError as e:
                raise UserError(f"can't read {self.path}: {e.strerror or e}") from e
            starts, used = self._walk(data)
            yield self._describe(data, starts, position - self.begin)
            position, count = position + used, count + len(starts)
        if count != self.num_entries and (count - self.num_entries) % 65536:  # Old writers count modulo 2 ** 16.
            raise self._damaged(f"{count} entries, but its end says {self.num_entries}")

    def entries(self, positions: np.ndarray) -> Iterator[Entries]:
        """What stands at these positions, in their order; quick where that is the order of the directory."""
        wanted = positions.astype(np.int64)
        if len(wanted) < self.num_entries // 2 or not (wanted[:-1] < wanted[1:]).all():
            for record in self.records(positions):
                name = record.name.encode(errors="surrogateescape")
                yield Entries([name], np.array([record.size]), np.array([record.crc]))
            return
        for chunk in self.chunks():
            first, end = np.searchsorted(wanted, [chunk.positions[0], chunk.positions[-1] + 1])
            rows = np.searchsorted(chunk.positions, wanted[first:end])
            yield Entries(chunk.names[rows].tolist(), chunk.sizes[rows], chunk.crcs[rows])

    def _walk(self, data: bytes) -> tuple[np.ndarray, int]:
        """Where in `data` records begin, and where the last whole one ends."""
        length = _record_length(data, 0)
        if 0 < length <= len(data):  # Most directories have names of one length: then all records are alike.
            rows = np.frombuffer(data, np.uint8, len(data) // length * length).reshape(-1, length)
            alike = (rows[:, :4] == rows[0, :4]).all(1) & (rows[:, 28:34] == rows[0, 28:34]).all(1)
            count = len(rows) if alike.all() else int(alike.argmin())
            if count * length > len(data) // 8:  # Shorter runs would have most of `data` read again and again.
                return np.arange(count) * length, count * length
        starts, at = [], 0
        while 0 < (length := _record_length(data, at)) <= len(data) - at:
            starts.append(at)
            at += length
        if not starts or (not length and len(data) - at >= _RECORD_BYTES):
            raise self._damaged("its directory is broken")
        return np.array(starts), at

    def _describe(self, data: bytes, starts: np.ndarray, position: int) -> Chunk:
        buffer = np.frombuffer(data, np.uint8)
        headers = buffer[starts[:, None] + np.arange(_RECORD_BYTES)]    # [N, 46]
        fields = headers.view(_FIELDS)[:, 0]
        begins, packed_sizes, sizes = (fields[key].astype(np.int64) for key in ("offset", "packed_size", "size"))
        large = (begins == _SATURATED_32) | (packed_sizes == _SATURATED_32) | (sizes == _SATURATED_32)
        for i in np.flatnonzero(large).tolist():
            record = self._parse(data, int(starts[i]))
            begins[i], packed_sizes[i], sizes[i] = record.offset - self.prefix, record.packed_size, record.size
        begins += self.prefix
        return Chunk(
            positions=starts + position,
            names=_names(data, buffer, starts, fields),
            readable=(fields["flags"] & _ENCRYPTED == 0) & np.isin(fields["method"], (STORED, DEFLATED)),
            begins=begins,
            ends=begins + LOCAL_HEADER.size + fields["name"] + packed_sizes,
            sizes=sizes,
            crcs=fields["crc"].astype(np.int64),
        )

    def index(self, also: Sequence[int] = ()) -> Index:
        """All images by their names, and the entries at the positions `also`.

        Raises:
            UserError: The directory is damaged, entries lie over each other or outside of the file, or an image is
                encrypted or packed by a method other than deflate.
        """
        positions: list[np.ndarray] = []
        others, begins, ends = [], [], []
        metadata, last, is_sorted = None, None, True
        for chunk in self.chunks():
            begins.append(chunk.begins)
            ends.append(chunk.ends)
            for i in np.flatnonzero(chunk.names == METADATA_NAME.encode()).tolist():
                metadata = int(chunk.positions[i])
            is_wanted = _wanted(chunk, also)
            wanted = np.flatnonzero(is_wanted)
            unreadable = wanted[~chunk.readable[wanted]]
            if len(unreadable):
                name = self.record(int(chunk.positions[unreadable[0]])).name
                raise unusual(f"image {shown(name)} in {self.path}")
            names = chunk.names[wanted]
            if len(names):
                is_sorted &= (last is None or last < names[0]) and bool((names[:-1] < names[1:]).all())
                last = names[-1]
            positions.append(chunk.positions[wanted].astype(self._position_type()))
            others.append(chunk.positions[~is_wanted & ~_are_folders(chunk.names)].astype(self._position_type()))
        self.check_places(begins, ends)
        del begins, ends
        found, rest = (np.concatenate([np.zeros(0, self._position_type()), *parts]) for parts in (positions, others))
        if metadata is not None:
            rest = rest[rest != metadata]
        return Index(found if is_sorted else found[self._sorting(also)], rest, metadata)

    def _position_type(self) -> type:
        return np.uint32 if self.end - self.begin < 1 << 32 else np.uint64

    def check_places(self, begins: list[np.ndarray], ends: list[np.ndarray]) -> None:
        """No entry may be in the directory or outside of the file; none shares bytes with another, as in some bombs."""
        if not begins:
            return
        begin, end = np.concatenate(begins), np.concatenate(ends)
        if begin.min() < self.prefix or end.max() > self.begin:
            raise self._damaged("an entry is said to be where the file has no room for it")
        if not (end[:-1] <= begin[1:]).all():
            order = np.argsort(begin, kind="stable")
            if not (end[order[:-1]] <= begin[order[1:]]).all():
                raise self._damaged("entries lie over each other")

    def _sorting(self, also: Sequence[int]) -> np.ndarray:
        """Order of the wanted entries by name; of those that share one, only the last."""
        names = np.concatenate([chunk.names[_wanted(chunk, also)] for chunk in self.chunks()])
        order = np.argsort(names, kind="stable")
        names = names[order]
        return order[np.append(names[:-1] != names[1:], True)]


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
        tail_begin = max(stat.st_size - _END.size - _SATURATED_16, 0)
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
    if begin < 0 or begin - offset < 0:
        raise damaged(path, "its directory is said to be where the file has no room for it")
    return ZipDirectory(path, location, stamp, begin - offset, begin, end, num_entries)


def _find_end(tail: bytes) -> int | None:
    """Where the end record is. A comment follows it, which may hold what looks like another one."""
    last = at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    while at >= 0:
        if at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return at
        at = tail.rfind(b"PK\5\6", 0, at)
    return last if last >= 0 else None  # Something was appended to the file.


def damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is a damaged zip ({reason}): copy or download it again")


def unusual(what: str) -> UserError:
    return UserError(f"{what} is encrypted or packed by an unusual method: make a zip that stores its files (zip -0)")


def _wanted(chunk: Chunk, also: Sequence[int]) -> np.ndarray:
    wanted = are_images(chunk.names)
    return wanted | np.isin(chunk.positions, np.array(also)) if len(also) else wanted


def _are_folders(names: np.ndarray) -> np.ndarray:
    """bool [N]: names that end in a slash."""
    if names.dtype == object:
        return np.array([name.endswith(b"/") for name in names.tolist()], dtype=bool)
    return names.view(np.uint8).reshape(len(names), -1)[:, -1] == ord("/")


def _names(data: bytes, buffer: np.ndarray, starts: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Names in UTF-8; a matrix where all are ASCII of one length, as in nearly all datasets, else Python objects."""
    lengths = fields["name"]
    width = int(lengths[0])
    if width and width <= 1024 and (lengths == width).all():
        matrix = buffer[starts[:, None] + np.arange(_RECORD_BYTES, _RECORD_BYTES + width)]
        if ((matrix > 0) & (matrix < 128)).all():
            return matrix.view(f"S{width}")[:, 0]
    names = np.empty(len(starts), dtype=object)
    flags = fields["flags"].tolist()
    for i, (start, length) in enumerate(zip((starts + _RECORD_BYTES).tolist(), lengths.tolist())):
        raw = data[start : start + length]
        names[i] = raw if raw.isascii() and b"\0" not in raw else _decode(raw, flags[i]).encode(
            errors="surrogateescape")
    return names


def _decode(raw_name: bytes, flags: int) -> str:
    """As zipfile: UTF-8 or code page 437 by the flag, and nothing after a zero byte."""
    raw_name = raw_name.partition(b"\0")[0]
    return raw_name.decode(errors="surrogateescape") if flags & _UTF8 else raw_name.decode("cp437")


def _record_length(data: bytes, at: int) -> int:
    """Length of the record at a place, which may go on beyond `data`; 0 where there is none."""
    if len(data) - at < _RECORD_BYTES:
        return 0
    signature, name, extra, comment = _LENGTHS.unpack_from(data, at)
    return _RECORD_BYTES + name + extra + comment if signature == b"PK\1\2" else 0


class _Handle:
    """An open file. It is closed when the last reader, maybe in another thread, has let go of it."""

    def __init__(self, location: str):
        self.fd = os.open(location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

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
