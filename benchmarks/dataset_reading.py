"""Time opening and reading of a large dataset, and measure the memory of readers.

    python benchmarks/dataset_reading.py [--data=PATH] [--images=3000000] [--shards=30] [--out=FILE.json]

Without --data, a folder of zips with as many copies of one small image is made in a temporary folder and removed again;
3,000,000 of them take 1.3 GB of disk.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import save_results  # noqa: E402
from dnnlib.worker_pool import SharedBuffer, WorkerPool, read_images  # noqa: E402
from training.data.dataset import ImageFolderDataset  # noqa: E402

BATCH = 64
READ_ALONE = """
import json, sys, time
import numpy as np
import psutil
start = time.perf_counter()
from training.dataset import ImageFolderDataset
dataset = ImageFolderDataset(sys.argv[1], use_labels=True)
opened, memory = time.perf_counter(), psutil.Process().memory_info
opened_mb = memory().rss / 1e6
indices = np.random.RandomState(0).randint(len(dataset), size=int(sys.argv[2])).tolist()
begin = time.perf_counter()
for index in indices:
    dataset[index]
rate = len(indices) / (time.perf_counter() - begin)
print(json.dumps(dict(opening_sec=opened - start, rss_opened_mb=opened_mb, rss_mb=memory().rss / 1e6, img_per_sec=rate,
                      torch="torch" in sys.modules)))
"""


def write_fake_zip(path: Path, first: int, count: int, *, num_classes: int = 10) -> None:
    """A zip of `count` images that are all the same, with labels, written as one array: thousands of times faster."""
    buffer = io.BytesIO()
    pixels = np.random.RandomState(0).randint(256, size=[8, 8, 3])
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    names = np.array([f"{i // 1000:05d}/img{i:08d}.png" for i in range(first, first + count)], dtype="S")
    labels = json.dumps({"labels": [[n.decode(), i % num_classes] for i, n in enumerate(names.tolist())]}).encode()
    width = names.dtype.itemsize
    local_bytes = 30 + width + len(data)
    with open(path, "wb") as f:
        f.write(_rows(_local_header(data.tobytes(), width), names, tail=data))
        f.write(_local_header(labels, 12) + b"dataset.json" + labels)
        directory = f.tell()
        offsets = np.arange(count) * local_bytes
        f.write(_rows(_record(data.tobytes(), width), names, offsets=offsets))
        last = _record(labels, 12)
        f.write(last[:42] + (count * local_bytes).to_bytes(4, "little") + b"dataset.json")
        end = f.tell()
        total = (count + 1).to_bytes(8, "little")
        place = (end - directory).to_bytes(8, "little") + directory.to_bytes(8, "little")
        f.write(b"PK\6\6" + (44).to_bytes(8, "little") + b"\55\0\55\0" + bytes(8) + total * 2 + place)
        f.write(b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little"))
        f.write(b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2))


def _sizes(data: bytes, name_length: int) -> bytes:
    crc, size = zlib.crc32(data).to_bytes(4, "little"), len(data).to_bytes(4, "little")
    return crc + size + size + name_length.to_bytes(2, "little") + bytes(2)


def _local_header(data: bytes, name_length: int) -> bytes:
    return b"PK\3\4" + b"\x14\0" + bytes(8) + _sizes(data, name_length)


def _record(data: bytes, name_length: int) -> bytes:
    return b"PK\1\2" + b"\x14\0\x14\0" + bytes(8) + _sizes(data, name_length) + bytes(14)


def _rows(
    header: bytes, names: np.ndarray, *, tail: np.ndarray | None = None, offsets: np.ndarray | None = None
) -> bytes:
    """Header, name and tail for each name; the last four bytes of the header are the offset, if there are any."""
    count, width = len(names), names.dtype.itemsize
    headers = np.tile(np.frombuffer(header, np.uint8), [count, 1])
    if offsets is not None:
        headers[:, 42:46] = offsets.astype("<u4").view(np.uint8).reshape(count, 4)
    parts = [headers, names.view(np.uint8).reshape(count, width)]
    if tail is not None:
        parts.append(np.tile(tail, [count, 1]))
    return np.concatenate(parts, axis=1).tobytes()


def measure(path: str, *, reads: int, repeats: int, workers: int) -> dict[str, Any]:
    """Opening and random reading, in a process of its own each time, and by reader processes."""
    alone = []
    for _ in range(repeats):
        command = [sys.executable, "-c", READ_ALONE, path, str(reads)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        alone.append(json.loads(done.stdout))
    dataset = ImageFolderDataset(path)
    indices = np.random.RandomState(1).randint(len(dataset), size=[reads // BATCH, BATCH]).tolist()
    with WorkerPool(1, SharedBuffer()) as pool:
        start = time.perf_counter()
        pool.result(pool.submit(id))
        started = time.perf_counter()
        for batch in indices:
            pool.result(pool.submit(read_images, dataset.images(batch), 0))
        rate = len(indices) * BATCH / (time.perf_counter() - started)
        memory = psutil.Process(pool.processes[0].pid).memory_info()
        reader = dict(rss_mb=memory.rss / 1e6, start_sec=started - start, img_per_sec=rate)
    with WorkerPool(workers, SharedBuffer()) as pool:
        batch_bytes = BATCH * int(np.prod(dataset.image_shape))
        slots = 2 * pool.num_workers
        for future in [pool.submit(id) for _ in range(slots)]:
            pool.result(future)
        start = time.perf_counter()
        futures = [pool.submit(read_images, dataset.images(batch), i % slots * batch_bytes)
                   for i, batch in enumerate(indices)]
        for future in futures:
            pool.result(future)
        pool_rate = len(indices) * BATCH / (time.perf_counter() - start)
    return dict(images=len(dataset), shape=dataset.image_shape, reads=reads, opened_and_read_in_one_process=alone,
                reader_process=reader, pool=dict(workers=pool.num_workers, img_per_sec=pool_rate))


@click.command()
@click.option("--data", type=click.Path(exists=True), help="Measure this dataset instead of a made one.")
@click.option("--images", default=3_000_000, show_default=True, type=click.IntRange(min=BATCH))
@click.option("--shards", default=30, show_default=True, type=click.IntRange(min=1))
@click.option("--reads", default=20_000, show_default=True, type=click.IntRange(min=BATCH))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(
    data: str | None, images: int, shards: int, reads: int, repeats: int, workers: int, out: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            edges = np.linspace(0, images, shards + 1).astype(int).tolist()
            for i, (first, end) in enumerate(zip(edges, edges[1:])):
                write_fake_zip(Path(folder, f"fake-{i:05d}.zip"), first, end - first)
        figures = measure(data or folder, reads=reads, repeats=repeats, workers=workers)
        figures["zips"] = None if data else shards
    print(json.dumps(figures, indent=1))
    save_results(out, numpy=np.__version__, **figures)


if __name__ == "__main__":
    main()
