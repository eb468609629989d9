"""Scoring the averaged generator during a run."""

import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Sequence

import torch

from dnnlib.util import UserError
from metrics import metric_main
from metrics.options import Shared
from metrics.progress import ScoreBar
from torch_utils import distributed
from torch_utils.state import Misfit, check
from training.config.schema import TrainingConfig
from training.data.dataset import ImageFolderDataset

from .best import mark_best
from .interrupt import StopRequest
from .run_log import RunLog, read_scores, score_path
from .training_state import pickle_kimg

# Metrics generate at most `_BATCH` images at once, or as many as training: small batches leave a GPU waiting for the
# host, and images without gradients need little memory. For images with a larger side than `_BATCH_SIDE`, batches get
# smaller in proportion to the number of pixels.
_BATCH = 64
_BATCH_SIDE = 256


def evaluate(
    config: TrainingConfig, G_ema: torch.nn.Module, dataset: ImageFolderDataset, device: torch.device, *,
    tick: "UnfinishedTick", log: RunLog, stop: StopRequest, settle: Callable[[], None],
) -> None:
    """Calculate the metrics of `config`, on all ranks together, and report them in the log and in `metric-*.jsonl`.

    A metric that can't be calculated, because a feature net is missing for example, does not stop training.

    Args:
        tick:   A tick with a snapshot. Scores that it knows are not calculated again.
        stop:   With several processes, a request takes effect between two metrics; with a single one, at once.
        settle: Waits until the training state is written. A score that was reported before that could come twice.

    Raises:
        KeyboardInterrupt: A stop was requested.
        LostRank:          Another process of the run is missing.
    """
    c, snapshot_pkl = config, tick.snapshot_pkl
    kept_real: dict[str, Any] = {}
    shared = Shared([metric for metric in c.metrics if metric not in tick.scores])
    progress = ScoreBar() if sys.stderr.isatty() else None
    for metric in c.metrics:
        if metric in tick.scores:
            log.add_metrics(tick.scores[metric])
            continue
        if distributed.any_rank(stop.requested):
            raise KeyboardInterrupt
        try:
            result = metric_main.calc_metric(
                metric, G=G_ema, dataset=dataset, detector=c.detector, device=device, batch_size=metric_batch(c),
                workers=c.workers, shared=shared, kept_real=kept_real, progress=progress,
            )
        except Exception as e:
            lost = distributed.lost_rank(e)
            if lost is not None:
                raise lost from e
            if not isinstance(e, (UserError, OSError)):
                traceback.print_exc()
            distributed.print0(f"Warning: no {metric} for {snapshot_pkl}: {e or type(e).__name__}", flush=True)
            continue
        if distributed.rank() == 0:
            settle()
            try:
                metric_main.report_metric(result, run_dir=str(snapshot_pkl.parent), snapshot_pkl=str(snapshot_pkl))
            except OSError as e:
                print(f"Warning: can't write metric-{metric}.jsonl: {e.strerror or e}", flush=True)
        log.add_metrics(result.results)
    if c.metrics and distributed.rank() == 0:
        mark_best(snapshot_pkl.parent, c.metrics[0], warn=lambda line: print(f"Warning: {line}", flush=True))


def metric_batch(config: TrainingConfig) -> int:
    """The number of images that metrics generate at once."""
    resolution = config.dataset.resolution
    return max(config.batch_gpu, min(_BATCH, _BATCH * _BATCH_SIDE**2 // resolution**2))


class UnfinishedTick:
    """What is left to do for a tick whose training is over: a snapshot, if one is due, its scores, and the record.

    A training state is saved before the scores are calculated, which takes long. A run that is killed meanwhile resumes
    with the scores that are missing.
    """

    def __init__(self, run_dir: Path, metrics: Sequence[str]):
        self.run_dir, self.metrics = run_dir, metrics
        self.pending = False                        # Whether anything is left to do.
        self.snapshot_pkl: Path | None = None       # The network pickle of the snapshot; None = none is due.
        self.scores: dict[str, dict[str, float]] = {}   # Results by metric that were reported before the run resumed.

    def begin(self, snapshot_pkl: Path | None) -> None:
        """Call this when training of the tick is over."""
        self.pending = True
        self.snapshot_pkl = snapshot_pkl

    def end(self) -> None:
        """Call this when nothing is left to do."""
        self.pending = False
        self.snapshot_pkl = None
        self.scores.clear()

    def state_dict(self) -> dict[str, Any]:
        """The state includes the sizes of `metric-*.jsonl`. Lines that are appended later hold scores of this tick."""
        sizes = {metric: path.stat().st_size if path.exists() else 0 for metric in self.metrics
                 for path in [score_path(self.run_dir, metric)]}
        name = None if self.snapshot_pkl is None else self.snapshot_pkl.name
        return {"pending": self.pending, "snapshot_pkl": name, "report_sizes": sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"pending": bool, "snapshot_pkl": (str, type(None)), "report_sizes": {str: int}})
        name = state["snapshot_pkl"]
        if name is not None and (pickle_kimg(name) is None or not state["pending"]):
            raise Misfit("snapshot_pkl")
        self.pending = state["pending"]
        self.snapshot_pkl = None if name is None else self.run_dir / name
        scores = {metric: record["results"] for metric, size in state["report_sizes"].items()
                  for record in read_scores(self.run_dir, metric, start=size)
                  if record["snapshot_pkl"] == name and "protocol" not in record}
        self.scores = distributed.from_rank0({} if name is None else scores)
