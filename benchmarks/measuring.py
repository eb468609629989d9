"""What the benchmarks share: `--baseline`, taking turns, medians, tables, and files of results."""

import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import click
import torch
from tabulate import tabulate
from tqdm import tqdm

from dnnlib.util import atomic_write
from torch_utils import distributed


def baseline_option(*names: str) -> Callable[[Callable], Callable]:
    """`--baseline[=NAME]`: what takes turns with ours in the same run; the first of `names` where none is given."""
    alone = f"  [without a name: {names[0]}]" if len(names) > 1 else ""
    return click.option("--baseline", type=click.Choice(names), is_flag=False, flag_value=names[0],
                        help=f"Compare with this, in turns.{alone}")


def take_turns(
    cases: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 2, device: str = "cpu", title: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call all cases in turn, again and again, so that whatever else the machine does slows each of them alike.

    Processes that have met by `distributed.join` begin and end each call together.

    Args:
        cases:  What to time, by name.
        device: "cuda" waits for the GPU before the clock is read.
        clock:  Gives seconds; `time.process_time` counts this process's own work, whatever else the machine does.

    Returns:
        Seconds of the last `repeats` calls of each case.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    quiet = None if distributed.rank() == 0 else True
    for turn in tqdm(range(warmup + repeats), desc=title or "turns", leave=False, disable=quiet):
        for name, call in cases.items():
            _wait(device)
            start = clock()
            call()
            _wait(device)
            if turn >= warmup:
                times[name].append(clock() - start)
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    distributed.any_rank(False)     # returns when all processes are here


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: Mapping[str, Sequence[float]], name: str, baseline: str) -> float:
    """Median over turns of a case's time by the baseline's of the same turn, which cancels what slowed both."""
    return statistics.median(a / b for a, b in zip(times[name], times[baseline], strict=True))


def print_table(rows: Sequence[Mapping[str, Any]], *, digits: int = 3) -> None:
    """Rows with the same keys, which head the columns; text stays as it is, also where it is a number.

    None leaves a cell empty.
    """

    def show(value: Any) -> str:
        return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    cells = [[show(value) for value in row.values()] for row in rows]
    align = ["left" if isinstance(value, str) else "right" for value in rows[0].values()]
    print(tabulate(cells, headers=list(rows[0]), disable_numparse=True, colalign=align), flush=True)


def describe_device(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"


def save_results(path: str | Path | None, *, device: str = "cpu", **content: Any) -> None:
    """Write figures as JSON, with the device, the versions, the command and the date; nothing where `path` is None."""
    if path is None:
        return
    head = dict(device=describe_device(device), torch=torch.__version__, python=platform.python_version(),
                date=str(date.today()), command=" ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))
    if device.startswith("cuda"):
        head |= dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f:
        f.write((json.dumps(head | content, indent=1) + "\n").encode())
