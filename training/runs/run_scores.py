"""Scores of all network pickles of a run: finding and calculating those that are missing, waiting for more pickles, and
a table.

The run may be training meanwhile, on other devices, or on other machines that share the run directory.
"""

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch

from dnnlib.util import UserError, check_regular
from metrics import metric_main
from metrics.options import Shared
from metrics.published import score_of
from training.data.dataset import ImageFolderDataset

from .best import mark_best
from .interrupt import StopRequest
from .resume import is_busy, is_finished
from .run_dir import OPTIONS_NAME, find_options
from .run_log import read_scores
from .training_state import PickleFile, list_pickles, list_states, pickle_kimg

_POLL_SEC = 2


class RunOptions(NamedTuple):
    total_kimg: float
    training_set_kwargs: dict[str, Any]


def read_options(run_dir: str | os.PathLike) -> RunOptions:
    """The length of a run and its images, from `training_options.json`.

    Raises:
        UserError: The file is missing, or doesn't hold them.
    """
    check_regular(*Path(run_dir).glob("*"))
    path, content = Path(run_dir, OPTIONS_NAME), find_options(run_dir)
    if not path.is_file():
        raise UserError(f"{run_dir} is a folder without {OPTIONS_NAME}: give a network, or a run directory that "
                        "train.py made")
    options = RunOptions(content.get("total_kimg", ""), content.get("training_set_kwargs", ""))
    if not isinstance(options.total_kimg, int | float) or not isinstance(options.training_set_kwargs, dict):
        raise UserError(f"{path} is damaged, or no list of options that train.py wrote")
    return options


def open_training_set(
    source: str, trained_on: dict[str, Any], *, instead: str | None = None, **options: Any
) -> ImageFolderDataset:
    """The images that a network or run was trained on.

    Args:
        source:     The network or run, for messages.
        trained_on: Its `training_set_kwargs`.
        instead:    The option with which users can give other images, for messages; None = there is none.
        options:    Further arguments of `ImageFolderDataset`, which don't change which images it holds.

    Raises:
        UserError: `trained_on` names no images, or they are not there.
    """
    advice = f": give the real images with {instead}" if instead else ""
    if not trained_on.get("path"):
        raise UserError(f"{source} does not say what it was trained on{advice}")
    subset = {name: trained_on[name] for name in ("max_size", "random_seed") if name in trained_on}
    if not (
        isinstance(trained_on["path"], str)
        and isinstance(subset.get("max_size"), int | None)
        and isinstance(subset.get("random_seed", 0), int)
    ):
        raise UserError(f"{source}: what it says of its training set is damaged{advice}")
    try:
        return ImageFolderDataset(os.path.abspath(trained_on["path"]), **subset, **options)
    except UserError as e:
        advice = f"; or give others with {instead}" if instead else ""
        raise UserError(f"the images that {source} was trained on: {e}{advice}") from e


def recorded_fingerprint(run_dir: str | os.PathLike) -> str | None:
    """The fingerprint of the images that a run was trained on; None if another program or version made the run."""
    fingerprint = find_options(run_dir).get("data_fingerprint")
    return fingerprint if isinstance(fingerprint, str) else None


# ----------------------------------------------------------------------------------------------------------------------
# Recorded scores.


class ScoreBook:
    """The recorded scores of a run that were measured with the same feature nets and in the same way.

    A record has an entry `protocol` if it was measured otherwise than in training, such as with other images or another
    seed. Records of training itself and of earlier versions have no such entry.

    Args:
        run_dir:  The folder with `metric-<name>.jsonl`.
        metrics:  Names of metrics.
        detector: Path or URL of the feature net; None = each metric's standard one.
        protocol: How measuring differs from that in training, as `report_metric` records it.

    Raises:
        UserError: A feature net is missing.
    """

    def __init__(
        self, run_dir: str | os.PathLike, metrics: Sequence[str], *, detector: str | None = None,
        protocol: Mapping[str, Any] | None = None,
    ):
        self.run_dir = Path(run_dir)
        self.metrics = tuple(dict.fromkeys(metrics))
        self.protocol = dict(protocol or {})
        nets = {metric: metric_main.feature_net(metric, detector) for metric in self.metrics}
        self._digests = {metric: net.digest for metric, net in nets.items()}
        self._suffixes = {metric: metric_main.result_suffix(metric, detector, net) for metric, net in nets.items()}

    def read(self) -> dict[str, dict[str, dict[str, float]]]:
        """Results by metric and by name of the pickle. If there are several, the last one counts."""
        scores: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in self.metrics}
        for metric in self.metrics:
            for record in read_scores(self.run_dir, metric):
                if self._is_ours(metric, record):
                    plain = {key.partition("@")[0]: value for key, value in record["results"].items()}
                    scores[metric][record["snapshot_pkl"]] = {
                        key + self._suffixes[metric]: value for key, value in plain.items()}
        return scores

    def complete(self) -> set[str]:
        """Names of the pickles that are scored by every metric."""
        scores = self.read()
        return set.intersection(*(set(scores[metric]) for metric in self.metrics))

    def _is_ours(self, metric: str, record: dict[str, Any]) -> bool:
        if record.get("protocol", {}) != self.protocol:
            return False
        detector = record.get("detector")
        if isinstance(detector, dict):
            return detector.get("sha256") == self._digests[metric]
        return all(name.endswith(self._suffixes[metric]) and ("@" in name) == bool(self._suffixes[metric])
                   for name in record["results"])  # Other programs don't record the net.

    def add(self, result: dict[str, Any], pickle: Path) -> None:
        """Print the result of `calc_metric`, and append it to the recorded scores."""
        metric_main.report_metric(result, run_dir=str(self.run_dir), snapshot_pkl=str(pickle), protocol=self.protocol)


def read_all_scores(run_dir: str | os.PathLike) -> dict[str, dict[float, float]]:
    """All recorded scores, by name of the result and by kimg of the pickle. If there are several, the last one counts.

    Scores that were measured otherwise than in training have names of their own, such as "fid50k (seed 1)". If several
    feature nets have the same name, scores of all but the first are named like "fid50k@net (net 0a1b2c3d)".
    """
    scores: dict[str, dict[float, float]] = {}
    first_nets: dict[str, str] = {}     # SHA-256, by name of the result.
    for record in read_scores(run_dir):
        kimg = pickle_kimg(record["snapshot_pkl"])
        for name, value in record["results"].items() if kimg is not None else ():
            scores.setdefault(name + _note(record, name, first_nets), {})[kimg] = value
    return scores


def _note(record: dict[str, Any], name: str, first_nets: dict[str, str]) -> str:
    notes = {}
    detector, protocol = record.get("detector"), record.get("protocol")
    if isinstance(detector, dict):  # Other programs don't record the net.
        digest = str(detector.get("sha256"))
        if first_nets.setdefault(name, digest) != digest:
            notes["net"] = digest
    notes |= protocol if isinstance(protocol, dict) else {}
    return f" ({', '.join(f'{key} {str(value)[:8]}' for key, value in notes.items())})" if notes else ""


# ----------------------------------------------------------------------------------------------------------------------
# Calculating missing scores.


@dataclasses.dataclass(kw_only=True)
class RunScorer:
    """Calculates the missing scores of a run's pickles, in order of kimg."""

    book: ScoreBook
    load: Callable[[str], torch.nn.Module]      # Gives the generator of a pickle. Raises UserError if it can't be read.
    calculate: Callable[..., dict[str, Any]]    # As `calc_metric`, called with (metric, G=, shared=).
    stop: StopRequest                           # A request ends the work at once. Scores that are recorded stay.
    say: Callable[[str], None]                  # Called with lines about the progress.
    warn: Callable[[str], None]                 # Called with lines about problems.
    idle: Callable[[], None] = lambda: None     # Called every few seconds while there is nothing to score.
    num_scored: int = 0
    broken: set[str] = dataclasses.field(default_factory=set)   # Names of pickles that can't be read.
    _queue: list[PickleFile] = dataclasses.field(default_factory=list)
    _said_to_stand_still: bool = False

    @property
    def run_dir(self) -> Path:
        return self.book.run_dir

    def score_all(self) -> None:
        """Score the pickles that are there now, except those that are deleted meanwhile.

        Raises:
            UserError:         Images or feature nets are unusable.
            KeyboardInterrupt: A stop was requested.
        """
        there = {pickle.name for pickle in list_pickles(self.run_dir)}
        while queue := [pickle for pickle in self.update_queue() if pickle.name in there]:
            self._score_next(queue)

    def follow(self) -> None:
        """Score pickles, and wait for more, until the run's last one is scored. Raises the errors of `score_all`."""
        said = False
        while True:
            finished = self.is_finished()   # Asked first: then the queue has all pickles of a finished run.
            if queue := self.update_queue():
                self._score_next(queue)
                continue
            if finished:
                return
            if not said:
                kimg = read_options(self.run_dir).total_kimg
                self.say(f"Waiting for network pickles in {self.run_dir}, until {kimg:g} kimg")
                said = True
            self._look_for_training()
            with self.stop.at_once():
                self.idle()
                time.sleep(_POLL_SEC)

    def update_queue(self) -> list[PickleFile]:
        """The pickles that lack a score, in order, except those that could not be read."""
        complete = self.book.complete()
        pickles = list_pickles(self.run_dir)
        for gone in {pickle.name for pickle in self._queue} - {pickle.name for pickle in pickles}:
            self.say(f"{gone} was deleted before it was scored: passed over")
        self._queue = [pickle for pickle in pickles if pickle.name not in complete | self.broken]
        return self._queue

    def _score_next(self, queue: Sequence[PickleFile]) -> None:
        pickle, number = queue[0], self.num_scored + len(self.broken) + 1
        waiting = len(queue) - 1
        self.say(f"{pickle.name}: {number} of {number + waiting}" + (f", {waiting} waiting" if waiting else ""))
        try:
            with self.stop.at_once():
                G = self.load(str(pickle.path))
        except (UserError, OSError) as e:
            if pickle.path.exists():  # Else `update_queue` reports that it was deleted.
                self.broken.add(pickle.name)
                self.warn(f"no scores of {pickle.name}: {e}")
            return
        scores = self.book.read()
        missing = [metric for metric in self.book.metrics if pickle.name not in scores[metric]]
        shared = Shared(missing, waiting=waiting)   # Metrics share generated images.
        for metric in missing:
            with self.stop.at_once():
                result = self.calculate(metric, G=G, shared=shared)
            self.book.add(result, pickle.path)
        mark_best(self.run_dir, self.book.metrics[0], warn=self.warn)
        self.num_scored += 1

    def is_finished(self) -> bool:
        """Whether the run has come to its end, and has written its last pickle."""
        total_kimg = read_options(self.run_dir).total_kimg  # It changes if the run is resumed with another --kimg.
        if list_states(self.run_dir):
            return is_finished(str(self.run_dir), total_kimg)
        pickles = list_pickles(self.run_dir)
        return bool(pickles) and pickles[-1].kimg >= int(total_kimg)

    def _look_for_training(self) -> None:
        """Print a line, once each time, when no program is training any more."""
        busy = is_busy(self.run_dir)
        if not busy and not self._said_to_stand_still:
            self.say(f"No program is training in {self.run_dir}, which is not finished: waiting for it to resume")
        self._said_to_stand_still = not busy


# ----------------------------------------------------------------------------------------------------------------------
# The table.


class ScoreRow(NamedTuple):
    name: str                       # Name of the pickle.
    kimg: float
    there: bool                     # Whether the pickle still exists.
    results: dict[str, float]


class ScoreTable:
    """The scores of a run in order of kimg. Pickles that were deleted can't have the best score."""

    def __init__(self, book: ScoreBook):
        scores = book.read()
        there = {pickle.name for pickle in list_pickles(book.run_dir)}
        names = there.union(*(results for results in scores.values()))
        self.rows = sorted((
            ScoreRow(name, kimg, name in there,
                {key: value for metric in book.metrics for key, value in scores[metric].get(name, {}).items()})
            for name in names if (kimg := pickle_kimg(name)) is not None), key=lambda row: (row.kimg, row.name))
        # The metric of each result.
        self.columns: dict[str, str] = {key: metric for metric in book.metrics
                                        for results in scores[metric].values() for key in results}
        self.first = next(iter(self.columns), None)     # The result that decides which pickle is the best.

    def best(self, column: str) -> ScoreRow | None:
        """The first row with the best value. None for standard deviations, and for a column without values."""
        rows = [row for row in self.rows if row.there and math.isfinite(row.results.get(column, math.nan))]
        if score_of(column) is None or not rows:
            return None
        sign = -1 if metric_main.higher_is_better(self.columns[column]) else 1
        return min(rows, key=lambda row: sign * row.results[column])

    def __str__(self) -> str:
        best = {column: self.best(column) for column in self.columns}
        cells = [["kimg", *(f"{column} " for column in self.columns), ""]]
        for row in self.rows:
            values = [_cell(column, row.results.get(column)) + ("*" if best[column] is row else " ")
                      for column in self.columns]
            cells.append([f"{row.kimg:.10g}", *values, "" if row.there else "deleted"])
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)).rstrip() for line in cells]
        return "\n".join([*lines, "* the best of the pickles that are there"])


def _cell(column: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}" if column.startswith("kid") else f"{value:.4f}"
