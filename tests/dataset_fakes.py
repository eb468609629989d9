"""Small sources of images in the formats that dataset_tool.py reads, made from scratch."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image


def noise(seed, height=16, width=16, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def contents(zip_path):
    with zipfile.ZipFile(zip_path) as f:
        return {name: f.read(name) for name in f.namelist()}


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def _rgb_png(width, height, bits, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def huge_png(width=100_000, height=100_000):
    """A few bytes that announce ten gigapixels."""
    return _rgb_png(width, height, 8, bytes(1000))


def sixteen_bit_png(image):
    """From uint16 [H, W, 3]; Pillow writes no such files."""
    return _rgb_png(image.shape[1], image.shape[0], 16, b"".join(b"\0" + row.astype(">u2").tobytes() for row in image))


def write_lmdb(folder, values):
    import lmdb

    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    (folder / "lock.mdb").unlink()


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape)
    with gzip.open(path, "wb") as f:
        f.write(header + array.tobytes())


def python2_batch(images, labels, names="labels"):
    """A batch as Python 2 pickled those that people download: protocol 2, strings without an encoding."""

    def string(data):
        data = data if isinstance(data, bytes) else data.encode()
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data

    dtype = (b"cnumpy\ndtype\n" + string("u1") + b"K\x00K\x01\x87R(K\x03" + string("|") + b"NNN"
             + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb")
    shape = b"M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string("b") + b"\x87R(K\x01" + shape
             + dtype + b"\x89" + string(images.tobytes()) + b"tb")
    files = b"](" + b"".join(string(f"{i}.png") for i in range(len(images))) + b"e"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    items = {"batch_label": string("training batch"), names: numbers, "data": array, "filenames": files}
    return b"\x80\x02}(" + b"".join(string(k) + v for k, v in items.items()) + b"u."


def python3_batch(images, labels, names="labels"):
    return pickle.dumps({names.encode(): [int(n) for n in labels], b"data": images}, protocol=4)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as f:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))


def cifar10_members(images, labels, batch=python2_batch):
    """As in the archive: not in order, and with files that are no training batches."""
    parts = [np.arange(len(images))[i::5] for i in range(5)]
    members = {f"cifar-10-batches-py/data_batch_{i + 1}": batch(images[p], labels[p]) for i, p in enumerate(parts)}
    members["cifar-10-batches-py/test_batch"] = b"not read"
    members["cifar-10-batches-py/readme.html"] = b"nor is this"
    order = np.concatenate(parts)
    return dict(reversed(members.items())), order
