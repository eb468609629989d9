"""The best network pickle of a run: which one it is, and files that mark it for people and scripts."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Callable, NamedTuple

from dnnlib.util import atomic_path, atomic_write
from metrics.registry import METRICS, higher_is_better, is_valid_metric

from .run_log import read_scores
from .training_state import PICKLE_NAME, pickle_kimg

BEST_NAME, BEST_PICKLE_NAME = "best.json", "network-best.pkl"


class Best(NamedTuple):
    """The content of `best.json`."""

    metric: str
    result: str         # Name of the score.
    value: float
    snapshot_pkl: str   # Name of the pickle.
    kimg: float         # Thousands of images that D had seen.


def find_best(run_dir: str | os.PathLike, metric: str) -> Best | None:
    """The pickle with the best score that was measured as in training; None if there is no such score.

    Only scores with the feature net of the first one are compared. If a pickle has several scores, the last counts.
    """
    scores: dict[str, tuple[str, float]] = {}
    for record in read_scores(run_dir, metric):
        name = record["snapshot_pkl"]
        if "protocol" not in record and PICKLE_NAME.fullmatch(name):
            result, value = next(iter(record["results"].items()))
            if not scores or result == next(iter(scores.values()))[0]:
                scores[name] = result, value
    if not scores:
        return None
    sign = -1 if higher_is_better(metric) else 1
    name = min(scores, key=lambda name: sign * scores[name][1])
    return Best(metric, *scores[name], name, pickle_kimg(name))


def mark_best(run_dir: str | os.PathLike, metric: str, *, warn: Callable[[str], None]) -> None:
    """Write `best.json`, and make `network-best.pkl` a hard link to the best pickle, or a copy of it.

    So the best pickle stays available after it was deleted under its own name. If it was deleted before it could be
    marked, the marks stay as they are. A mark by FID is not replaced by one of another metric, nor a mark by a metric
    of many images by one of fewer.

    Args:
        warn: Called with a line if the marks can't be written.
    """
    folder = Path(run_dir)
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        marked = json.loads((folder / BEST_NAME).read_text())["metric"]
        metric = marked if is_valid_metric(marked) and _weight(marked) > _weight(metric) else metric
    best = find_best(folder, metric)
    if best is None or not (folder / best.snapshot_pkl).is_file():
        return
    try:
        _link(folder / best.snapshot_pkl, folder / BEST_PICKLE_NAME)
        with atomic_write(folder / BEST_NAME) as f:
            f.write(json.dumps(best._asdict()).encode() + b"\n")
    except OSError as e:
        warn(f"can't mark the best pickle: {e.filename or folder}: {e.strerror or e}")


def _weight(metric: str) -> tuple[bool, int]:
    """A number to compare metrics: the one with the larger weight decides which pickle is the best."""
    return metric.startswith("fid"), METRICS[metric].num_gen


def _link(source: Path, path: Path) -> None:
    if path.is_file() and path.samefile(source):
        return
    with atomic_path(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:     # The file system has no hard links.
            shutil.copyfile(source, temporary)
