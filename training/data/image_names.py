"""Which files are the images of a dataset, and why others are left out. Only this module decides that.

`train.py` chooses files by their names alone, as StyleGAN2-ADA does. `dataset_tool.py`, and the tools that take users'
own images, also take a file of any other name if it begins like an image of a format that Pillow reads.
"""

import functools
import io
import os
import re
import struct
import zlib
from collections import Counter
from typing import Iterator, NamedTuple, Sequence

from PIL import Image

METADATA_NAME = "dataset.json"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Formats of datasets. Pillow's other decoders are not used for them.
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
HEAD_BYTES = 4096                         # Bytes at the beginning of a file that are read to recognise its format.

# Reasons to leave a file out.
HIDDEN = "hidden"
SYSTEM = "of the operating system"
LINKED_FOLDER = "link to a folder"
BROKEN_LINK = "link to nothing"
SPECIAL = "device or pipe"
UNREADABLE = "unreadable"
MISPLACED = f"{METADATA_NAME} not at the top"
UNKNOWN = "unknown suffix"                # `LeftOut` counts these files by their suffix.

# Folders of macOS, Synology and Windows for copies, thumbnails and deleted files, and files that Windows adds.
_SYSTEM_NAMES = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "ehthumbs.db", "desktop.ini"))
_MAX_REASONS = 20

# A quick test, for nearly all images of large datasets. No hidden file or file of the operating system passes it.
_is_plain = re.compile(r"[A-Za-z0-9/-]+(?:" + "|".join(map(re.escape, IMAGE_EXTENSIONS)) + ")").fullmatch

# Exceptions that Pillow's decoders are known to raise on damaged data.
DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    OverflowError, ZeroDivisionError, AttributeError, Image.DecompressionBombError,
)


def describe_decoding_error(what: str, error: Exception, formats: Sequence[str]) -> str:
    """A message of one line about an image, named by `what`, that can't be decoded."""
    # The message of this error holds nothing but a memory address.
    text = "" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())[:100]
    return (f"{what} can't be decoded{f' ({text})' if text else ''}: replace or remove it; formats are "
            f"{', '.join(formats)}")


def shown(name: str) -> str:
    """`name`, fit for a message of one line: with escapes if it has characters that can't be printed."""
    return name if name.isprintable() else ascii(name)


def why_left_out(name: str) -> str | None:
    """The reason why a file is left out, by its name relative to the dataset alone; None = it is an image."""
    if _is_plain(name):
        return None
    parts = name.split("/")
    if not _SYSTEM_NAMES.isdisjoint(parts):
        return SYSTEM
    if any(part[:1] == "." and part.strip(".") for part in parts):
        return HIDDEN
    if parts[-1] == METADATA_NAME:
        return MISPLACED
    return None if parts[-1].lower().endswith(IMAGE_EXTENSIONS) else UNKNOWN


@functools.cache
def source_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be converted to datasets. AVIF is one of them if this Pillow knows it."""
    Image.init()
    return tuple(name for name in (*FORMATS, "GIF", "TIFF", "PPM", "JPEG2000", "AVIF") if name in Image.OPEN)


def begins_like_image(name: str, head: bytes) -> bool:
    """Whether the content of a file is an image of `source_formats`.

    Args:
        name: Name of the file.
        head: Its first `HEAD_BYTES` bytes, or all if it has fewer.
    """
    for kind in source_formats():
        try:
            if Image.OPEN[kind][1](head[:16]) is not True:  # A string says that Pillow was built without the decoder.
                continue
            if kind in ("BMP", "PPM"):  # These begin with two letters, with which texts may begin, too.
                Image.open(io.BytesIO(head), formats=[kind])
        except DECODING_ERRORS:
            continue
        # Raw files of cameras are TIFF files, too. Pillow would read only their thumbnails.
        return kind != "TIFF" or os.path.splitext(name)[1].lower() in ("", ".tif", ".tiff")
    return False


class LeftOut(NamedTuple):
    """Files that a dataset does not use, counted by reason, with the first name of each."""

    counts: Counter[str]
    first: dict[str, str]

    @classmethod
    def none(cls) -> "LeftOut":
        return cls(Counter(), {})

    def add(self, reason: str, name: str) -> None:
        if reason == UNKNOWN:
            suffix = os.path.splitext(name)[1].lower()
            reason = shown(suffix[:20]) if suffix else "without a suffix"
        if len(self.counts) >= _MAX_REASONS and reason not in self.counts:
            reason = "with other suffixes"
        self.counts[reason] += 1
        self.first.setdefault(reason, name)

    def include(self, other: "LeftOut") -> None:
        self.counts.update(other.counts)
        for reason, name in other.first.items():
            self.first.setdefault(reason, name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """`3 files (.txt: 2, first readme.txt; hidden: 1, first .a.png)`."""
        total = sum(self.counts.values())
        parts = (f"{reason}: {count}, first {shown(self.first[reason])}" for reason, count in self.counts.most_common())
        return f"{total} file{'s' * (total != 1)} ({'; '.join(parts)})"


def scan(root: str, prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """All files below a folder, except its dataset.json, in sorted order.

    Hidden and linked folders are not entered. Each counts as one file. Memory is needed for one folder at a time.

    Yields:
        The name relative to `root`, and the reason to leave the file out; None = it is an image.
    """
    with os.scandir(os.path.join(root, prefix)) as entries:
        # Sort folders by their names with a slash, so that all files come in the order of their full names.
        found = sorted((entry.name + "/" if entry.is_dir() else entry.name, _obstacle(entry)) for entry in entries)
    for name, obstacle in found:
        if name == METADATA_NAME and not prefix:
            continue
        reason = why_left_out(name.rstrip("/"))
        if reason not in (HIDDEN, SYSTEM):
            reason = obstacle or (None if name.endswith("/") else reason)
        if name.endswith("/") and reason is None:
            yield from scan(root, prefix + name)
        else:
            yield prefix + name, reason


def _obstacle(entry: os.DirEntry) -> str | None:
    """Why a file can't be read, or a folder is not entered; None = there is no reason. Links to files are fine."""
    if entry.is_dir():
        return LINKED_FOLDER if entry.is_symlink() else None
    if entry.is_file():
        return None
    return SPECIAL if os.path.exists(entry.path) else BROKEN_LINK
