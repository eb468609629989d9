"""Curves of training runs: reading them, smoothing them, and grouping runs that differ only in the seed."""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from dnnlib.util import UserError, check_regular
from training.config.rivals import full_name
from training.runs.resume import FREE_OPTIONS
from training.runs.run_dir import find_options


class Curve(NamedTuple):
    """A statistic over the number of training images."""

    kimg: list[float]
    values: list[float]


class Band(NamedTuple):
    """Mean, minimum and maximum of several curves, over the range that all of them cover; float64 arrays [N]."""

    kimg: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Group(NamedTuple):
    """Runs whose options are the same, except for the seed and options that don't change training."""

    label: str
    runs: list[Path]


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Read every statistic of a run from `stats.jsonl`, and its scores from `metric-*.jsonl`.

    If both files hold a score, that of `metric-*.jsonl` is taken. Damaged lines are left out, with a UserWarning.

    Raises:
        UserError: `stats.jsonl` is missing, or has no readable line.
    """
    path = run_dir / "stats.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} holds no stats.jsonl: give run directories that train.py made")
    check_regular(*run_dir.glob("*"))
    lines = path.read_text(errors="replace").splitlines()
    ticks = [_read_tick(line) for line in lines]
    damaged = [number for number, tick in enumerate(ticks, 1) if tick is None]
    if len(damaged) == len(lines):
        raise UserError(f"{path}: none of its {len(lines)} lines is a record of a tick")
    if damaged:
        warnings.warn(f"{path}: left out {len(damaged)} of {len(lines)} lines, which are damaged; the first one is "
                      f"line {damaged[0]}")
    curves: dict[str, Curve] = {}
    for tick in ticks:
        for name, value in (tick or {}).items():
            curve = curves.setdefault(name, Curve([], []))
            curve.kimg.append(tick["Progress/kimg"])
            curve.values.append(value)
    return curves | _read_scores(run_dir, curves)


def _read_tick(line: str) -> dict[str, float] | None:
    """The means in a line of `stats.jsonl`; None if the line is damaged."""
    try:
        means = {name: value["mean"] for name, value in json.loads(line).items() if isinstance(value, dict)}
    except (ValueError, KeyError, AttributeError, RecursionError):
        return None
    numbers = all(isinstance(value, int | float) for value in means.values())
    return means if numbers and "Progress/kimg" in means else None


def _read_scores(run_dir: Path, curves: dict[str, Curve]) -> dict[str, Curve]:
    """The scores in `metric-*.jsonl`, merged with those in `curves`."""
    from training.runs.run_scores import read_all_scores  # imports PyTorch, which takes seconds

    result = {}
    for name, scores in read_all_scores(run_dir).items():
        before = curves.get(f"Metrics/{name}", Curve([], []))
        # Names of most pickles have whole kimg: their scores belong to the first score of that kimg in `curves`.
        places = {kimg: next((x for x in before.kimg if int(x) == kimg), kimg) for kimg in scores}
        points = dict(zip(before.kimg, before.values)) | {places[kimg]: value for kimg, value in scores.items()}
        result[f"Metrics/{name}"] = Curve(*map(list, zip(*sorted(points.items()))))
    return result


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponentially weighted moving average (Hunter, 1986), corrected for its bias at the start.

    Args:
        values: The values to smooth.
        weight: Weight of past values, in [0, 1). 0 = no smoothing.
    """
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1
        result.append(total / norm)
    return result


def band(curves: Sequence[Curve]) -> Band:
    """The band of some curves, which are interpolated linearly between their points."""
    points = np.unique(np.concatenate([curve.kimg for curve in curves]))
    start, end = max(min(curve.kimg) for curve in curves), min(max(curve.kimg) for curve in curves)
    points = points[(points >= start) & (points <= end)]
    values = np.stack([np.interp(points, curve.kimg, curve.values) for curve in curves])  # [curves, points]
    return Band(points, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def method_of(run_dir: str | Path) -> str | None:
    """The method of a run, such as `glead+zcr`; None if its options don't tell it."""
    try:
        return full_name(find_options(run_dir)["config"])
    except (KeyError, TypeError, AttributeError):
        return None


def group_runs(runs: Sequence[Path]) -> list[Group]:
    """Group runs whose options differ only in the seed. Labels are as in `unique_labels`, for the first run of each."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        command = find_options(run).get("command")
        key = str(run)
        if isinstance(command, dict):
            key = json.dumps({k: v for k, v in command.items() if k not in {"seed", *FREE_OPTIONS}}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    found = list(groups.values())
    return [Group(label, runs) for label, runs in zip(unique_labels([runs[0] for runs in found]), found)]


def unique_labels(paths: Sequence[str | Path]) -> list[str]:
    """Labels for run directories, or for networks in them: the method if no other has it, or as in `unique_ends`."""
    methods = [method_of(path if path.is_dir() else path.parent) for path in map(Path, paths)]
    return [method if method is not None and methods.count(method) == 1 else name
            for method, name in zip(methods, unique_ends(paths))]


def unique_ends(paths: Sequence[str | Path]) -> list[str]:
    """The shortest unique end of each path, of at most three parts; or else the whole path."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    ends = [["/".join(p[-length:]).removesuffix(".pkl") for p in parts] for length in (1, 2, 3)]
    return [next((names[index] for names in ends if names.count(names[index]) == 1), str(path))
            for index, path in enumerate(paths)]
