"""Images per second of the training loader, from a folder, a zip and a folder of zips.

    python benchmarks/data.py [--data=32x32.zip] [--resolutions=32,256] [--workers=0,1,2] [--baseline] [--out=FILE.json]

A turn starts a loader anew, takes what it read ahead, and times the batches after that. With --baseline, turns
alternate with those of PyTorch's DataLoader, so that neither works while the other is timed; both read the same items
in the same order from the same files, by the same decoder. The ratio is the median over turns of the loader's rate by
DataLoader's: above 1, the loader is faster.
`host us/img` is processor time of the training process, in which Python has to launch the GPU's work, too; `cpu us/img`
is that of all processes together, which other work on the machine changes much less than rates: where cores are the
limit, `cpu ratio` is what rates come to on a machine without other work.

For orientation: StyleGAN2 at 256x256 takes 2.47 s/kimg on 8 A100s in the original program (docs/scaling.md), so each
of them eats 51 images/s; at 32x32 on one GPU a step eats about 1,000.
"""

import io
import itertools
import json
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import click
import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import baseline_option, print_table, save_results  # noqa: E402
from cli import Command, IntRanges  # noqa: E402
from training.data.dataset import ImageFolderDataset  # noqa: E402
from training.data.loader import BatchLoader, TrainingOrder  # noqa: E402
from training.data.scenes import draw_scenes  # noqa: E402

CONTAINERS = ("folder", "zip", "shards")
SHARDS = 4


class Turn(NamedTuple):
    """What one loader was seen to do."""

    first_sec: float        # Until the first batch is there, processes started.
    img_per_sec: float
    host_us_per_img: float  # Processor time of this process ...
    cpu_us_per_img: float   # ... and with its workers.


def draw_files(count: int, resolution: int) -> dict[str, bytes]:
    """Scenes with grain, which makes PNG as long as photographs do; by name."""
    rng, files = np.random.default_rng(0), {}
    for i in tqdm(range(count), desc=f"Drawing {resolution}x{resolution}", unit="img", leave=False, disable=None):
        (scene,), _ = draw_scenes(np.array([i]), resolution=resolution)
        grainy = np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grainy).save(buffer, "PNG")
        files[f"00000/img{i:08d}.png"] = buffer.getvalue()
    return files


def read_files(path: str, count: int) -> dict[str, bytes]:
    """The first images of a zip, by name."""
    with zipfile.ZipFile(path) as z:
        names = sorted(name for name in z.namelist() if name.lower().endswith((".png", ".jpg", ".jpeg")))
        return {name: z.read(name) for name in names[:count]}


def write_containers(files: dict[str, bytes], place: Path) -> dict[str, Path]:
    """The same files, with labels, in a folder, a zip and a folder of zips."""
    names = list(files)
    parts = {place / "zip.zip": names}
    parts |= {place / "shards" / f"{i}.zip": names[i::SHARDS] for i in range(SHARDS)}
    (place / "shards").mkdir()
    for path, part in parts.items():
        with zipfile.ZipFile(path, "w") as z:
            for name in part:
                z.writestr(name, files[name])
            z.writestr("dataset.json", _labels(part))
    for name in names:
        (place / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "folder" / name).write_bytes(files[name])
    (place / "folder" / "dataset.json").write_text(_labels(names))
    return {"folder": place / "folder", "zip": place / "zip.zip", "shards": place / "shards"}


def _labels(names: list[str]) -> str:
    return json.dumps({"labels": [[name, i % 10] for i, name in enumerate(names)]})


def open_ours(dataset: ImageFolderDataset, *, batch: int, workers: int, pin: bool) -> Iterator[Any]:
    order = TrainingOrder(len(dataset), 0)
    with BatchLoader(dataset, order=order, batch_size=batch, num_workers=workers, pin_memory=pin) as loader:
        yield from loader


def open_torch(dataset: ImageFolderDataset, *, batch: int, workers: int, pin: bool) -> Iterator[Any]:
    """The usual way to write it: map-style, an endless sampler, two batches ahead for each worker."""
    loader = torch.utils.data.DataLoader(dataset, sampler=_Endless(TrainingOrder(len(dataset), 0)), batch_size=batch,
                                         num_workers=workers, pin_memory=pin)
    yield from loader


class _Endless(torch.utils.data.Sampler):
    def __init__(self, order: TrainingOrder):
        self._order = order

    def __iter__(self) -> Iterator[int]:
        position = 0
        while True:
            yield int(self._order.take(position, 1)[0])
            position += 1


OPENERS: dict[str, Callable[..., Iterator[Any]]] = {"ours": open_ours, "DataLoader": open_torch}


def time_turn(
    opener: Callable[..., Iterator[Any]], dataset: ImageFolderDataset, *, batch: int, workers: int, pin: bool,
    sec: float,
) -> Turn:
    """Start a loader, take what it reads ahead, time batches for `sec` seconds, end it."""
    start = time.perf_counter()
    batches = opener(dataset, batch=batch, workers=workers, pin=pin)
    next(batches)
    first_sec = time.perf_counter() - start
    # Processes start one after another, and what they read ahead meanwhile is no rate either.
    ready = start + (3 * first_sec + 0.2 if workers > 1 else first_sec)
    for number in itertools.count():
        if number > 10 * workers and time.perf_counter() > ready:
            break
        next(batches)
    workers_before, cpu = _workers_sec(), time.process_time()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < sec:
        next(batches)
        count += batch
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    in_workers = _workers_sec() - workers_before
    batches.close()
    return Turn(first_sec, count / elapsed, 1e6 * cpu / count, 1e6 * (cpu + in_workers) / count)


def _workers_sec() -> float:
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def measure(dataset: ImageFolderDataset, *, baseline: str | None, repeats: int, **options: Any) -> dict[str, Any]:
    """One row: medians over turns, and with a baseline the median ratio of turns."""
    turns: dict[str, list[Turn]] = {name: [] for name in ("ours", baseline) if name is not None}
    for _ in range(repeats):
        for name in turns:
            turns[name].append(time_turn(OPENERS[name], dataset, **options))

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(turn, field) for turn in turns[name])

    row: dict[str, Any] = {f"{name} img/s": round(median(name, "img_per_sec")) for name in turns}
    if baseline is not None:
        pairs = list(zip(turns["ours"], turns[baseline]))
        ratios = [ours.img_per_sec / other.img_per_sec for ours, other in pairs]
        row |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        row["cpu ratio"] = statistics.median(other.cpu_us_per_img / ours.cpu_us_per_img for ours, other in pairs)
    for place in ("host", "cpu"):
        row |= {f"{name} {place} us/img": round(median(name, f"{place}_us_per_img"), 1) for name in turns}
    return row | {f"{name} first sec": round(median(name, "first_sec"), 2) for name in turns}


@click.command(cls=Command)
@click.option("--data", type=click.Path(exists=True, dir_okay=False), help="Zip of 32x32 images.  [default: drawn]")
@click.option("--resolutions", default="32,256", show_default=True, type=IntRanges())
@click.option("--containers", default=",".join(CONTAINERS), show_default=True)
@click.option("--workers", default="0,1,2", show_default=True, type=IntRanges(), help="Processes that decode.")
@click.option("--images", default=512, show_default=True, type=click.IntRange(min=SHARDS), help="So many files.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=1.5, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="Of one turn.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Turns of each.")
@baseline_option("DataLoader")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(
    data: str | None, resolutions: list[int], containers: str, workers: list[int], images: int, batch: int,
    seconds: float, repeats: int, baseline: str | None, out: str | None,
) -> None:
    kinds = containers.split(",")
    if unknown := set(kinds) - set(CONTAINERS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: expected some of {', '.join(CONTAINERS)}")
    torch.set_num_threads(1)
    pin, rows = torch.cuda.is_available(), []
    for resolution in resolutions:
        with tempfile.TemporaryDirectory(prefix="glead-") as folder:
            given = data is not None and resolution == 32
            files = read_files(data, images) if given else draw_files(images, resolution)
            paths = write_containers(files, Path(folder))
            for kind in kinds:
                dataset = ImageFolderDataset(paths[kind], resolution=resolution, use_labels=True)
                for count in tqdm(workers, desc=f"{resolution}x{resolution} {kind}", leave=False, disable=None):
                    row = measure(dataset, baseline=baseline, repeats=repeats, batch=batch, workers=count, pin=pin,
                                  sec=seconds)
                    rows.append({"side": resolution, "files": kind, "workers": count, **row})
        print_table(rows[-len(kinds) * len(workers):], digits=2)
    save_results(out, data=Path(data).name if data else "drawn", batch=batch, pinned=pin, rows=rows)


if __name__ == "__main__":
    main()
