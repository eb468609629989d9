"""Sources that hold or draw uncompressed pixels: the CIFAR archives, MNIST, synthetic scenes."""

import abc
import gzip
import lzma
import os
import struct
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Iterator, NamedTuple

import numpy as np
from PIL import Image

from dnnlib.util import UserError
from training.data.prepare.source import LabelSet, Record, Source, SourceOptions, images_at_once, refuse_folders
from training.data.scenes import LEVELS, RESOLUTIONS, draw_scenes

_UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
_MAX_ARCHIVE_BYTES = 1 << 28   # Unpacked. The CIFAR archives have 190 MB.
_MAX_IDX_BYTES = 1 << 30       # Unpacked. MNIST has 47 MB. The largest set in its format, EMNIST, has 550 MB.
_DEFLATE_RATIO = 1032          # Deflate can't compress by a larger factor.


def _unpacked_head(path: str, count: int) -> bytes:
    """The first bytes of what a gzip file holds; none if it is damaged or no gzip file."""
    try:
        with gzip.open(path) as f:
            return f.read(count)
    except _UNPACKING_ERRORS:
        return b""


def _cannot_unpack(path: str, error: Exception) -> UserError:
    return UserError(f"{path} can't be unpacked ({' '.join(str(error).split())[:100]}): copy or download it again")


class _Cifar(NamedTuple):
    """One of the archives of https://www.cs.toronto.edu/~kriz/cifar.html."""

    folder: str
    batches: tuple[str, ...]   # Training images only.
    labels: str
    classes: tuple[str, ...]


_CIFAR_10 = _Cifar("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "labels", (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"))
_CIFAR_100 = _Cifar("cifar-100-python", ("train",), "fine_labels", tuple(map(str, range(100))))


class _BoundedFile:
    """Raises an error after `limit` bytes, because a small archive may unpack to any size."""

    def __init__(self, f: BinaryIO, limit: int):
        self._f, self._left = f, limit

    def read(self, size: int) -> bytes:
        data = self._f.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("it unpacks to far more than the CIFAR archives hold")
        return data


class _ArraySource(Source):
    """Images that are all in memory."""

    _path: str
    _images: np.ndarray             # uint8 [N, H, W] or [N, H, W, 3].
    _classes: list[int] | None      # None = no labels are wanted.

    @abc.abstractmethod
    def __init__(self, path: str, *, use_labels: bool) -> None: ...

    @classmethod
    def open(cls, path: str, options: SourceOptions) -> Source:
        refuse_folders(path, options)
        return cls(path, use_labels=options.labels != "none")

    def __len__(self) -> int:
        return len(self._images)

    def records(self) -> Iterator[Record]:
        for index in range(len(self._images)):
            yield Record(index, None if self._classes is None else self._classes[index])

    def load(self, key: int) -> Image.Image:
        return Image.fromarray(self._images[key])

    def describe(self, key: int) -> str:
        return f"training image {key} of {self._path}"


class CifarSource(_ArraySource):
    """The training images of CIFAR-10 or CIFAR-100, in the order of the batches."""

    accepts = "cifar-10-python.tar.gz or cifar-100-python.tar.gz"

    def __init__(self, path: str, *, use_labels: bool):
        self._path = path
        kind, members = _read_cifar(path)
        batches = [_parse_batch(members[name], kind, f"{name} in {path}") for name in kind.batches]
        self._images = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self._classes = sum((labels for _, labels in batches), []) if use_labels else None
        self.labels = LabelSet(classes=kind.classes) if use_labels else None

    @classmethod
    def matches(cls, path: str) -> bool:
        return path.lower().endswith((".tar.gz", ".tgz", ".tar")) or _unpacked_head(path, 262)[257:] == b"ustar"


def _read_cifar(path: str) -> tuple[_Cifar, dict[str, bytes]]:
    """Which archive it is, and the contents of its batches by name."""
    kind, members = None, {}
    try:
        with open(path, "rb") as f:
            unpacked: Any = gzip.open(f) if f.read(2) == b"\x1f\x8b" else f
            f.seek(0)
            bounded: Any = _BoundedFile(unpacked, _MAX_ARCHIVE_BYTES)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    found = next((k for k in (_CIFAR_10, _CIFAR_100) if name.parts[:1] == (k.folder,)), None)
                    kind = kind or found
                    if found is None or found is not kind:
                        raise UserError(f"{path} holds {ascii(member.name)[:80]}, so it is neither "
                                        "cifar-10-python.tar.gz nor cifar-100-python.tar.gz; unpack other archives")
                    if member.size > _MAX_ARCHIVE_BYTES:  # A sparse file may announce more than the archive holds.
                        raise tarfile.ReadError(f"{ascii(member.name)[:80]} announces {member.size} bytes")
                    # Members are read as they come: a gzip file can only be read from front to end.
                    if member.isfile() and name.name in kind.batches:
                        members[name.name] = archive.extractfile(member).read()
            while bounded.read(1 << 20):
                pass  # Reading to the end checks the checksum.
    except _UNPACKING_ERRORS as e:
        raise _cannot_unpack(path, e) from e
    if kind is None:
        raise UserError(f"{path} is an empty archive: copy or download it again")
    missing = [name for name in kind.batches if name not in members]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: copy or download it again")
    return kind, members


def _parse_batch(data: bytes, kind: _Cifar, what: str) -> tuple[np.ndarray, list[int]]:
    """Images uint8 [N, 3072] and their classes. A batch is a pickle. It is read as data, and runs no code."""
    from torch_utils.formats import data_unpickler  # Here, because it imports PyTorch, which takes seconds.

    try:
        content = data_unpickler.loads(data)
    except UserError as e:
        raise UserError(f"{what} is damaged, or no batch of CIFAR: copy or download it again") from e
    if content.refused:
        raise UserError(f"{what} asks for {', '.join(content.refused)[:200]}, which no batch of CIFAR does: nothing of "
                        "it was run; download it again from its home page")
    batch = content.value if isinstance(content.value, dict) else {}
    batch = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    images, labels = batch.get("data"), batch.get(kind.labels)
    images = images.to_numpy() if isinstance(images, data_unpickler.Array) else np.zeros([0, 0])
    is_images = images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3072 and len(images) > 0
    if not is_images or not isinstance(labels, list):
        raise UserError(f"{what} is no batch of CIFAR: expected data of 3072 bytes for each image, and {kind.labels}")
    num_classes = len(kind.classes)
    if len(labels) != len(images) or any(type(x) is not int or not 0 <= x < num_classes for x in labels):
        raise UserError(f"{what} has {len(images)} images and {len(labels)} labels: expected one from 0 to "
                        f"{num_classes - 1} for each image")
    return images, labels


class MnistSource(_ArraySource):
    """MNIST and sets in its format (Fashion-MNIST, ...): 28x28, padded with black to 32x32, grayscale."""

    accepts = "MNIST's train-images-idx3-ubyte.gz (with train-labels-idx1-ubyte.gz beside it)"

    def __init__(self, path: str, *, use_labels: bool):
        self._path, self._classes = path, None
        self._images = np.pad(_read_idx(path, magic=0x803, record_shape=(28, 28)), [(0, 0), (2, 2), (2, 2)])
        if use_labels:
            folder, name = os.path.split(path)
            labels_path = os.path.join(folder, name.replace("images-idx3", "labels-idx1"))
            if labels_path == path or not os.path.isfile(labels_path):
                raise UserError(f"the labels of {path} are missing: put them beside it, as train-images-idx3-ubyte.gz "
                                "has train-labels-idx1-ubyte.gz beside it, or give --labels=none")
            self._classes = _read_idx(labels_path, magic=0x801, record_shape=()).tolist()
            if len(self._classes) != len(self._images):
                raise UserError(f"{labels_path} has {len(self._classes)} labels for the {len(self._images)} images of "
                                f"{path}: copy or download both again")
            self.labels = LabelSet(classes=[str(number) for number in range(max(self._classes) + 1)])

    @classmethod
    def matches(cls, path: str) -> bool:
        return "images-idx3-ubyte" in os.path.basename(path) or _unpacked_head(path, 4) == b"\0\0\x08\x03"


def _read_idx(path: str, *, magic: int, record_shape: tuple[int, ...]) -> np.ndarray:
    """The content of a gzipped IDX file: uint8 [N, *record_shape]. At most what its header announces is unpacked."""
    header = struct.Struct(f">{2 + len(record_shape)}I")
    try:
        with gzip.open(path) as f:
            head = f.read(header.size)
            if len(head) < header.size or (numbers := header.unpack(head))[0] != magic or numbers[2:] != record_shape:
                kind = "images of 28x28" if record_shape else "labels"
                raise UserError(f"{path} is no file of {kind} as MNIST has them: copy or download it again")
            expected = numbers[1] * int(np.prod(record_shape, dtype=int))
            most = min(_MAX_IDX_BYTES, _DEFLATE_RATIO * os.path.getsize(path))
            if not 1 <= expected <= most:
                raise UserError(f"{path} announces {numbers[1]} items of {expected} bytes in all, expected 1 to {most} "
                                "bytes in a file of its size: copy or download it again")
            data = f.read(expected + 1)
    except _UNPACKING_ERRORS as e:
        raise _cannot_unpack(path, e) from e
    if len(data) != expected:
        raise UserError(f"{path} has {'fewer' if len(data) < expected else 'more'} bytes than the {numbers[1]} items "
                        "that it announces: copy or download it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(numbers[1], *record_shape)


class SyntheticSource(Source):
    """The drawn scenes 0, 1, 2, ... of a seed. Image i does not depend on how many there are."""

    accepts = "'synthetic', 'synthetic:simple'"
    names = {"synthetic": "full", "synthetic:simple": "simple"}     # The level of each source.

    def __init__(
        self, *, num_images: int, resolution: int, seed: int = 0, use_labels: bool = True, level: str = "full"
    ):
        if resolution not in RESOLUTIONS:
            raise UserError(f"--resolution={resolution}: synthetic images come in {', '.join(map(str, RESOLUTIONS))}")
        self.labels = LabelSet(classes=LEVELS[level].class_names) if use_labels else None
        self._num_images, self._resolution, self._seed, self._level = num_images, resolution, seed, level
        self._group_begin = -1
        self._group = np.zeros([0])

    @classmethod
    def matches(cls, path: str) -> bool:
        return path in cls.names

    @classmethod
    def open(cls, path: str, options: SourceOptions) -> "SyntheticSource":
        refuse_folders(path, options)
        if options.resolution is None or options.num_images is None:
            raise UserError(f"--source={path}: say how large and how many with --resolution and --max-images")
        return cls(num_images=options.num_images, resolution=options.resolution, seed=options.seed,
                   use_labels=options.labels != "none", level=cls.names[path])

    def __len__(self) -> int:
        return self._num_images

    def records(self) -> Iterator[Record]:
        step = 1024
        for begin in range(0, self._num_images, step):
            indices = range(begin, min(begin + step, self._num_images))
            if self.labels is None:
                yield from (Record(index, None) for index in indices)
            else:
                scenes = LEVELS[self._level].describe(np.array(indices), seed=self._seed)
                yield from map(Record, indices, scenes.label.tolist())

    def load(self, key: int) -> Image.Image:
        """One image. Neighbouring images are drawn with it, which is several times faster, and kept for later calls."""
        step = images_at_once(self._resolution)
        begin = key - key % step
        if begin != self._group_begin:
            indices = np.arange(begin, min(begin + step, self._num_images))
            self._group, _ = draw_scenes(indices, resolution=self._resolution, seed=self._seed, level=self._level)
            self._group_begin = begin
        return Image.fromarray(self._group[key - begin])

    def describe(self, key: int) -> str:
        return f"synthetic image {key}"
