"""What a run says about itself: the status line, `stats.jsonl`, TensorBoard."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from dnnlib.util import format_time
from torch_utils import distributed


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    nimg: int = 0               # Real images shown to D.
    iteration: int = 0
    tick: int = 0


class RunLog:
    """Measures ticks and writes their records; only rank 0 writes."""

    def __init__(self, run_dir: Path, *, total_kimg: float, device: torch.device):
        self.total_kimg = total_kimg
        self.device = device
        self.start_time = self._tick_start = self._tick_end = time.monotonic()
        self.tick_start_nimg = 0
        self._maintenance_sec = 0.0
        self._record: dict[str, Any] = {}
        self._main = distributed.rank() == 0
        if self._main:
            self._stats_file = open(run_dir / "stats.jsonl", "at", encoding="utf-8")
            self._tensorboard = SummaryWriter(run_dir)

    def end_tick(self, progress: Progress, stats: dict[str, dict[str, float]], *, augment_p: float = 0.0) -> None:
        """Training of a tick is over: print the status line, and keep the record until `start_tick`."""
        self._tick_end = time.monotonic()
        fields = self._measure(progress) | {"Progress/augment": augment_p}  # strength of augmentation
        self._record = {**stats, **_constants(fields)}
        f = fields
        left_sec = (self.total_kimg - f["Progress/kimg"]) * f["Timing/total_sec"] / max(f["Progress/kimg"], 1e-9)
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

    def _measure(self, progress: Progress) -> dict[str, float]:
        total_sec, tick_sec = self._tick_end - self.start_time, self._tick_end - self._tick_start
        gpu = self.device.type == "cuda"
        return {
            "Progress/tick": progress.tick,
            "Progress/kimg": progress.nimg / 1000,
            "Timing/total_sec": total_sec,
            "Timing/total_hours": total_sec / 3600,
            "Timing/total_days": total_sec / 86400,
            "Timing/sec_per_tick": tick_sec,
            "Timing/sec_per_kimg": tick_sec / max(progress.nimg - self.tick_start_nimg, 1) * 1000,
            "Timing/maintenance_sec": self._maintenance_sec,
            "Resources/cpu_mem_gb": psutil.Process(os.getpid()).memory_info().rss / 2**30,
            "Resources/peak_gpu_mem_gb": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0,
        }

    def add_metrics(self, results: dict[str, float]) -> None:
        """Scores that belong to the tick that ended last."""
        self._record.update(_constants({f"Metrics/{name}": value for name, value in results.items()}))

    def start_tick(self, progress: Progress) -> None:
        """Maintenance is over: write the record of the last tick, and measure the next one from here."""
        if self._main:
            self._stats_file.write(json.dumps(dict(sorted(self._record.items()), timestamp=time.time())) + "\n")
            self._stats_file.flush()
            for name, value in self._record.items():
                self._tensorboard.add_scalar(name, value["mean"], global_step=progress.nimg // 1000)
            self._tensorboard.flush()
        self._tick_start = time.monotonic()
        self._maintenance_sec = self._tick_start - self._tick_end
        self.tick_start_nimg = progress.nimg

    def close(self) -> None:
        if self._main:
            self._stats_file.close()
            self._tensorboard.close()


def _constants(values: dict[str, float]) -> dict[str, dict[str, float]]:
    return {name: dict(num=1, mean=float(value), std=0.0) for name, value in values.items()}
