"""What every metric is given: networks, data, device, processes, and how progress is shown."""

import contextlib
import dataclasses
import time
from typing import Any, Callable, Iterator, Sequence

import torch

from dnnlib.util import UserError
from metrics.polarity import Polarity
from metrics.progress import ScoreBar
from metrics.registry import ImageSet
from torch_utils import distributed

_ASK_SEC = 1    # From one question to the others, whether one of them has given up, to the next.


class Shared:
    """What several metrics of one generator have in common: make one for each generator.

    Args:
        metrics: Names of all metrics that will be calculated, in order.
        waiting: How many further generators will be scored by the same metrics. The estimated time includes them.
    """

    def __init__(self, metrics: Sequence[str], *, waiting: int = 0):
        self.metrics, self.waiting = tuple(metrics), waiting
        self.generated: dict = {}   # Statistics of generated images.
        self.is_planned = False     # Whether the time that all will take has been estimated.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """One evaluation of one metric.

    `dataset` and `G` are duck-typed. A dataset has `len()`, `image_shape`, `images(indices)`, `get_label(i)`,
    `replace(max_size=..., xflip=...)`, `fingerprint` and `resize_filter`, as `training.dataset.ImageFolderDataset` has;
    G is called as `G(z, c, noise_mode=...)` and has `z_dim`, `c_dim`, `mapping` and `synthesis`.
    """

    metric: str                                 # Its name, for progress.
    G: torch.nn.Module | None
    dataset: Any
    device: torch.device
    gen_images: Any = None                      # In place of G: a data set of images that others generated.
    num_gpus: int = 1                           # Processes that share the work, after `distributed.join`.
    rank: int = 0
    batch_size: int = 64                        # Images per forward pass; results do not depend on it.
    seed: int = 0                               # Keys latents, labels, noise, subsets.
    repeats: int = 1                            # This seed and the following ones; results are means.
    polarity: Polarity | None = None            # How latents are resampled; None = not at all.
    workers: int = 3                            # Processes that decode real images; 0 = none beside this one.
    cache: bool = True                          # Keep the statistics of real images on disk.
    shared: Shared | None = None                # What metrics of one G have in common.
    kept_real: dict | None = None               # Statistics of real images, kept in memory for evaluations to come.
    wanted: frozenset[ImageSet] = frozenset()   # Whose features this metric or a later one needs, by the same net.
    progress: ScoreBar | None = None


class _FailedElsewhere(Exception):
    """Another process has given up, and says why in `shared_failure`."""


@contextlib.contextmanager
def shared_failure(opts: MetricOptions) -> Iterator[None]:
    """Have an error inside on one process raise an error on all, so that none waits for one that has given up."""
    error = None
    try:
        yield
    except distributed.LostRank:  # nobody to share it with
        raise
    except _FailedElsewhere:
        pass
    except Exception as e:
        error = e
        distributed.say_failed()
    if opts.num_gpus > 1:
        known = isinstance(error, (UserError, torch.OutOfMemoryError))
        reason = str(error).strip().partition("\n")[0] if known else f"{opts.metric} failed on another process"
        reason = distributed.first_given(None if error is None else reason)
        if error is None and reason is not None:
            raise UserError(reason)
    if error is not None:
        raise error


@contextlib.contextmanager
def track(opts: MetricOptions, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the number of items (of all processes together) just done.

    It ends the work, to be used inside `shared_failure`, soon after another process has given up.
    """
    show = None if opts.progress is None else opts.progress.start(f"{opts.metric} {stage}", total)
    asked_sec = time.monotonic()

    def update(count: int) -> None:
        nonlocal asked_sec
        if opts.num_gpus > 1 and time.monotonic() - asked_sec > _ASK_SEC:
            asked_sec = time.monotonic()
            if distributed.has_failed_elsewhere():
                raise _FailedElsewhere
        if show is not None:
            show(count)

    yield update
