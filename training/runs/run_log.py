"""Progress and statistics of a run: the status line, `stats.jsonl`, and trackers."""

import contextlib
import dataclasses
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Callable

import psutil
import torch
from tqdm import tqdm

from dnnlib.util import append_text, atomic_write, format_time
from torch_utils import distributed
from torch_utils.state import Misfit, check
from training.config.schema import TrainingConfig, to_json

from .previews import preview
from .trackers import Trackers

_NUMBER = (int, float)
_RECORD = {str: {"num": _NUMBER, "mean": _NUMBER, "std": _NUMBER}}  # The record of a tick: statistics by name.


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far a run is. The order of images and random draws have no other state: they follow from `nimg`."""

    nimg: int = 0               # Real images shown to D.
    iteration: int = 0
    tick: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        check(state, dict.fromkeys(self.state_dict(), int))
        for name, value in state.items():
            if value < 0:
                raise Misfit(name)
            setattr(self, name, value)


class RunLog:
    """Measures ticks, and writes their records. Only rank 0 writes, after `open` was called."""

    def __init__(self, run_dir: Path, *, config: TrainingConfig, device: torch.device, progress: Progress):
        self.config = config
        self.device = device
        self.progress = progress
        self.start_time = self._tick_start = self._tick_end = time.monotonic()
        # The images at which this tick began, and at which its clock was started: they differ after a run resumed.
        self.tick_start_nimg = self._timed_from_nimg = 0
        self._step_nimg = 1000 if config.kimg_per_tick >= 1 else 1  # Images for each step on TensorBoard's axis.
        self._maintenance_sec = 0.0
        self._record: dict[str, Any] = {}               # The record of the last tick, while it waits for scores.
        self._unwritten: list[dict[str, Any]] = []      # Finished records that could not be written yet.
        self._path = run_dir / "stats.jsonl"
        self._trackers: Trackers | None = None          # None on all ranks but 0.

    def state_dict(self) -> dict[str, Any]:
        return dict(elapsed_sec=time.monotonic() - self.start_time, tick_start_nimg=self.tick_start_nimg,
                    record=self._record, unwritten=list(self._unwritten), step_nimg=self._step_nimg)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave. The state of `progress` has to be loaded first."""
        check(state, {"elapsed_sec": _NUMBER, "tick_start_nimg": int, "record": _RECORD, "unwritten": [_RECORD],
                      "step_nimg": int})
        self.start_time = time.monotonic() - state["elapsed_sec"]
        self.tick_start_nimg = state["tick_start_nimg"]
        self._timed_from_nimg = self.progress.nimg
        self._record, self._unwritten = state["record"], state["unwritten"]
        self._step_nimg = state["step_nimg"]

    def open(self) -> None:
        """Begin to write. Records of later ticks are removed from the run directory, because they come again."""
        if distributed.rank() == 0:
            _drop_records(self._path, self.tick_start_nimg / 1000, self._unwritten)
            self._trackers = Trackers(self.config.log, self._path.parent, to_json(self.config),
                                      start_nimg=self.tick_start_nimg, step_nimg=self._step_nimg)

    def progress_bar(self) -> tqdm:
        """A progress bar within a tick, shown on terminals only. Complete ticks have lines of their own."""
        return tqdm(total=int(self.config.kimg_per_tick * 1000), desc=f"tick {self.progress.tick}", unit="img",
                    leave=False, disable=None if distributed.rank() == 0 else True)

    def is_tick_over(self) -> bool:
        """Whether a tick ends with the iteration that is over. The first tick is a single iteration."""
        progress, c = self.progress, self.config
        done, tick_nimg = progress.nimg >= int(c.total_kimg * 1000), progress.nimg - self.tick_start_nimg
        return done or progress.tick == 0 or tick_nimg >= c.kimg_per_tick * 1000

    def next_due_nimg(self) -> int:
        """The earliest number of images at which the next snapshot is due.

        It may come up to a batch later, because a tick ends with the iteration that makes it long enough.
        """
        c, tick, total_nimg = self.config, self.progress.tick, int(self.config.total_kimg * 1000)
        if c.snapshot_ticks == 0:
            return total_nimg
        num_ticks = -tick % c.snapshot_ticks + 1 if tick > 0 else 0     # The first tick is a single iteration.
        return min(self.tick_start_nimg + int(num_ticks * c.kimg_per_tick * 1000), total_nimg)

    def end_tick(self, stats: dict[str, dict[str, float]], *, augment_p: float = 0.0) -> None:
        """End a tick after its training: print the status line, and keep the record until `start_tick`.

        Args:
            stats:     Statistics of the tick by name, each with num, mean and std.
            augment_p: The strength of augmentation.
        """
        progress = self.progress
        self._tick_end = time.monotonic()
        f = self._measure() | {"Progress/augment": augment_p}
        self._record = {**stats, **_constants(f)}
        left_sec = (self.config.total_kimg - f["Progress/kimg"]) * f["Timing/total_sec"] / max(f["Progress/kimg"], 1e-9)
        distributed.print0(
            f"tick {progress.tick:<5d} kimg {f['Progress/kimg']:<8.1f} time {format_time(f['Timing/total_sec']):<12s} "
            f"left {format_time(max(left_sec, 0)):<12s} sec/tick {f['Timing/sec_per_tick']:<7.1f} "
            f"sec/kimg {f['Timing/sec_per_kimg']:<7.2f} maintenance {f['Timing/maintenance_sec']:<6.1f} "
            f"cpumem {f['Resources/cpu_mem_gb']:<6.2f} gpumem {f['Resources/peak_gpu_mem_gb']:<6.2f} "
            f"augment {f['Progress/augment']:.3f}", flush=True,
        )
        bad = stats.get("Progress/nonfinite_gradients", {}).get("mean", 0)
        if bad > 0:
            distributed.print0(f"Warning: {bad:.3g} gradient values per iteration were not finite, and were replaced.")

    def _measure(self) -> dict[str, float]:
        """Progress, times and memory of the tick that ended."""
        total_sec, tick_sec = self._tick_end - self.start_time, self._tick_end - self._tick_start
        gpu = self.device.type == "cuda"
        return {
            "Progress/tick": self.progress.tick,
            "Progress/kimg": self.progress.nimg / 1000,
            "Timing/total_sec": total_sec,
            "Timing/total_hours": total_sec / 3600,
            "Timing/total_days": total_sec / 86400,
            "Timing/sec_per_tick": tick_sec,
            "Timing/sec_per_kimg": tick_sec / max(self.progress.nimg - self._timed_from_nimg, 1) * 1000,
            "Timing/maintenance_sec": self._maintenance_sec,
            "Resources/cpu_mem_gb": psutil.Process().memory_info().rss / 2**30,
            "Resources/peak_gpu_mem_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0,
        }

    def add_metrics(self, results: dict[str, float]) -> None:
        """Add scores to the record of the tick that ended last."""
        self._record |= _constants({f"Metrics/{name}": value for name, value in results.items()})

    def start_tick(self) -> None:
        """Start a tick after maintenance: write the record of the last tick, and measure time from here."""
        if self._trackers is not None:
            self._unwritten.append(self._record)
            self._write_records()
            means = {name: value["mean"] for name, value in self._record.items()}
            self._trackers.scalars(means, nimg=self.progress.nimg)
        self._record = {}
        self._tick_start = time.monotonic()
        self._maintenance_sec = self._tick_start - self._tick_end
        self.tick_start_nimg = self._timed_from_nimg = self.progress.nimg

    def _write_records(self) -> None:
        try:
            while self._unwritten:
                record = dict(sorted(self._unwritten[0].items()), timestamp=time.time())
                append_text(self._path, json.dumps(record) + "\n")
                del self._unwritten[0]
        except OSError as e:
            print(f"Warning: can't write {self._path}: {e.strerror}; training continues, and tries again with the "
                  "next tick")

    def shown(self, save: Callable[..., None]) -> Callable[..., None]:
        """A function that saves a picture as `save` does, and then has trackers show it.

        Args:
            save: Takes a path, a function that writes a picture there, and its arguments.
        """
        nimg = self.progress.nimg

        def save_and_show(path: Path, *args: Any, **kwargs: Any) -> None:
            save(path, *args, **kwargs)
            if self._trackers:
                save(path, self._show, nimg)

        return save_and_show

    def _show(self, path: Path, nimg: int) -> None:
        with contextlib.suppress(OSError):  # The picture could not be written, which `save` reports.
            img = preview(path, self.config.dataset.resolution)
            self._trackers.picture(re.match(r"[a-z_]*", path.stem)[0], img, nimg=nimg)

    def problems(self) -> list[str]:
        """A line if there are records that could not be written; else nothing."""
        return [f"can't write {self._path}: {len(self._unwritten)} record(s) are missing"] if self._unwritten else []

    def close(self) -> None:
        if self._trackers is not None:
            self._trackers.close()


def read_records(path: str | os.PathLike, *, start: int = 0) -> list[dict[str, Any]]:
    """The JSON objects in a file with one object per line, from byte `start` on. A missing file counts as empty."""
    try:
        lines = Path(path).read_bytes()[start:].splitlines(keepends=True)
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if line.endswith(b"\n") and isinstance(record, dict):
                records.append(record)
    return records


def score_path(run_dir: str | os.PathLike, metric: str) -> Path:
    return Path(run_dir, f"metric-{metric}.jsonl")


def read_scores(run_dir: str | os.PathLike, metric: str = "*", *, start: int = 0) -> list[dict[str, Any]]:
    """The records of scores in a run directory. "snapshot_pkl" is a name of a file, and "results" are numbers by name.

    Args:
        metric: Name of a metric; "*" = all metrics.
        start:  Records are read from this byte of each file on.
    """
    records = [record for path in sorted(Path(run_dir).glob(score_path("", metric).name))
               for record in read_records(path, start=start)]
    return [record for record in records
            if isinstance(record.get("snapshot_pkl"), str) and _are_numbers(record.get("results"))]


def _are_numbers(results: Any) -> bool:
    return isinstance(results, dict) and bool(results) and all(
        isinstance(value, _NUMBER) for value in results.values())


def _drop_records(path: Path, after_kimg: float, unwritten: list[dict[str, Any]]) -> None:
    """Remove records after `after_kimg`, those that are in `unwritten`, and an incomplete last line."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return
    again = {record["Progress/kimg"]["mean"] for record in unwritten}
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            kimg = json.loads(line)["Progress/kimg"]["mean"]
            if line.endswith("\n") and kimg <= after_kimg and kimg not in again:
                kept.append(line)
    if kept != lines:
        with atomic_write(path) as f:
            f.write("".join(kept).encode())


def _constants(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """Single values as statistics."""
    return {name: dict(num=1, mean=float(value), std=0.0) for name, value in values.items()}
