"""The inputs of every metric: networks, data, device, and how progress is shown."""

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

_ASK_SEC = 1    # Time between two checks whether another process has failed.


class Shared:
    """State that the metrics of one generator share. Make one instance for each generator.

    Args:
        metrics: Names of all metrics that will be calculated, in order.
        waiting: Number of further generators that the same metrics will score. The estimated time includes them.
    """

    def __init__(self, metrics: Sequence[str], *, waiting: int = 0):
        self.metrics, self.waiting = tuple(metrics), waiting
        self.generated: dict = {}   # Statistics of generated images.
        self.is_planned = False     # Whether the total time has been estimated.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """One evaluation of one metric. All processes that have met by `distributed.join` share the work.

    `dataset` and `G` are duck-typed. A dataset has `len()`, `image_shape`, `images(indices)`, `get_label(i)`,
    `replace(max_size=..., xflip=...)`, `fingerprint` and `resize_filter`, like `training.dataset.ImageFolderDataset`.
    G is called as `G(z, c, noise_mode=...)` and has `z_dim`, `c_dim`, `mapping` and `synthesis`.
    """

    metric: str                                 # Name of the metric, for progress.
    G: torch.nn.Module | None                   # In eval mode, on `device`; None = `gen_images` are scored.
    dataset: Any                                # Real images, and labels for generated ones.
    device: torch.device
    gen_images: Any = None                      # Data set of images that another program made, instead of G.
    batch_size: int = 64                        # Images per forward pass; results do not depend on it.
    seed: int = 0                               # Keys latents, labels, noise and subsets.
    repeats: int = 1                            # Results are means over the seeds `seed`, `seed` + 1, ...
    polarity: Polarity | None = None            # How latents are resampled; None = not at all.
    workers: int = 3                            # Processes that decode real images; 0 = this process does.
    cache: bool = True                          # Keep the statistics of real images on disk.
    shared: Shared | None = None                # The same for all metrics of one G; they share its features.
    kept_real: dict | None = None               # The same dict for several evaluations; they read real images once.
    wanted: frozenset[ImageSet] = frozenset()   # Images whose features this or a later metric needs from this net.
    progress: ScoreBar | None = None            # The same for all metrics of a command; None on ranks above 0.


def own_batches(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Batches of the indices that this process works on: every n-th one of n processes."""
    own = indices[distributed.rank()::distributed.world_size()]
    return [own[start:start + batch_size] for start in range(0, len(own), batch_size)]


class _FailedElsewhere(Exception):
    """Another process has failed, and gives the reason in `shared_failure`."""


@contextlib.contextmanager
def shared_failure(opts: MetricOptions) -> Iterator[None]:
    """Make an error on one process raise an error on all, so that no process waits for one that has failed."""
    error = None
    try:
        yield
    except distributed.LostRank:  # the processes can't reach each other any more
        raise
    except _FailedElsewhere:
        pass
    except Exception as e:
        error = e
        distributed.say_failed()
    if distributed.world_size() > 1:
        known = isinstance(error, (UserError, torch.OutOfMemoryError))
        reason = str(error).strip().partition("\n")[0] if known else f"{opts.metric} failed on another process"
        reason = distributed.first_given(None if error is None else reason)
        if error is None and reason is not None:
            raise UserError(reason)
    if error is not None:
        raise error


@contextlib.contextmanager
def track(opts: MetricOptions, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of a stage. Use it inside `shared_failure`.

    Yields:
        A function to call with the number of items that all processes together have just done. It raises an exception
        soon after another process has failed.
    """
    show = None if opts.progress is None else opts.progress.start(f"{opts.metric} {stage}", total)
    asked_sec = time.monotonic()

    def update(count: int) -> None:
        nonlocal asked_sec
        if distributed.world_size() > 1 and time.monotonic() - asked_sec > _ASK_SEC:
            asked_sec = time.monotonic()
            if distributed.has_failed_elsewhere():
                raise _FailedElsewhere
        if show is not None:
            show(count)

    yield update
