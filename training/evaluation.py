"""Scoring the averaged generator in the middle of a run."""

import sys
from pathlib import Path

import torch

from dnnlib.util import UserError
from metrics import metric_main
from torch_utils import distributed

from .config import TrainingConfig
from .dataset import ImageFolderDataset
from .run_log import RunLog


def evaluate(
    config: TrainingConfig, G_ema: torch.nn.Module, dataset: ImageFolderDataset, device: torch.device, *,
    run_dir: Path, log: RunLog, snapshot_pkl: Path | None,
) -> None:
    """Calculate the metrics of `config`, on all ranks together, and report them in the log and in `metric-*.jsonl`.

    A metric that can't be had, for want of a feature net for example, is no reason to stop training.
    """
    c, shared = config, {}
    for metric in c.metrics:
        try:
            result = metric_main.calc_metric(
                metric, G=G_ema, dataset=dataset, detector=c.detector, device=device, batch_size=c.batch_gpu,
                num_gpus=distributed.world_size(), rank=distributed.rank(), workers=c.workers, shared=shared,
                progress=sys.stderr.isatty(),
            )
        except (UserError, OSError) as e:
            if isinstance(e, distributed.LostRank):
                raise
            distributed.print0(f"Warning: no {metric} for {snapshot_pkl}: {e}")
            continue
        if distributed.rank() == 0:
            metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=str(snapshot_pkl))
        log.add_metrics(result.results)
