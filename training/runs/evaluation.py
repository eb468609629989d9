"""Scoring the averaged generator in the middle of a run."""

import os
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Mapping

import torch

from dnnlib.util import UserError
from metrics import metric_main
from metrics.options import Shared
from metrics.progress import ScoreBar
from torch_utils import distributed
from training.config.schema import TrainingConfig
from training.data.dataset import ImageFolderDataset

from .best import mark_best
from .interrupt import StopRequest
from .run_log import RunLog, read_records

Scores = dict[str, dict[str, float]]    # Results, by metric.

_BATCH = 64             # Images that metrics generate at once at up to 256x256, and fewer in proportion beyond: small
_BATCH_SIDE = 256       # batches leave a GPU waiting for the host, and without gradients they need little memory.


def evaluate(
    config: TrainingConfig, G_ema: torch.nn.Module, dataset: ImageFolderDataset, device: torch.device, *,
    snapshot_pkl: Path, log: RunLog, known: Scores, stop: StopRequest, settle: Callable[[], None],
) -> None:
    """Calculate the metrics of `config`, on all ranks together, and report them in the log and in `metric-*.jsonl`.

    A metric that can't be had, for want of a feature net for example, is no reason to stop training.

    Args:
        known:  Scores that have been reported already.
        stop:   A request is followed between metrics, or, where there is one process, within one.
        settle: Waits until the training state is written: a score that is reported before might come again.

    Raises:
        KeyboardInterrupt: Requested to stop.
        LostRank:          Another process of the run is missing.
    """
    c = config
    kept_real: dict[str, Any] = {}
    shared = Shared([metric for metric in c.metrics if metric not in known])
    progress = ScoreBar() if sys.stderr.isatty() else None
    for metric in c.metrics:
        if metric in known:
            log.add_metrics(known[metric])
            continue
        if distributed.any_rank(stop.requested):
            raise KeyboardInterrupt
        try:
            result = metric_main.calc_metric(
                metric, G=G_ema, dataset=dataset, detector=c.detector, device=device, batch_size=metric_batch(c),
                num_gpus=distributed.world_size(), rank=distributed.rank(), workers=c.workers, shared=shared,
                kept_real=kept_real, progress=progress,
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
    """Images that metrics generate at once: at least as many as training sees at once."""
    resolution = config.dataset.resolution
    return max(config.batch_gpu, min(_BATCH, _BATCH * _BATCH_SIDE**2 // resolution**2))


def report_sizes(metrics: tuple[str, ...], run_dir: Path) -> dict[str, int]:
    """How long the reports are, by metric: what comes later are the scores of this tick."""
    paths = {metric: _report_path(run_dir, metric) for metric in metrics}
    return {metric: os.path.getsize(path) if path.exists() else 0 for metric, path in paths.items()}


def scores_since(sizes: Mapping[str, int], run_dir: Path, snapshot_pkl: str | None) -> Scores:
    """What training reported of a network pickle after `report_sizes` had been asked."""
    return {metric: record["results"] for metric, size in sizes.items()
            for record in read_records(_report_path(run_dir, metric), start=size)
            if record.get("snapshot_pkl") == snapshot_pkl and "protocol" not in record}


def _report_path(run_dir: Path, metric: str) -> Path:
    return run_dir / f"metric-{metric}.jsonl"
