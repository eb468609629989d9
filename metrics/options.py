"""What every metric is given: networks, data, device, processes, and how progress is shown."""

import contextlib
import dataclasses
from typing import Any, Callable, Iterator

import torch
from tqdm import tqdm

from dnnlib.util import UserError
from torch_utils import distributed

ProgressFn = Callable[[str, int, int], None]
"""Called with (stage, done, total), for example ("fid50k_full generated", 640, 50000)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """One evaluation of one metric.

    `dataset` and `G` are duck-typed. A dataset has `len()`, `image_shape`, `images(indices)`, `get_label(i)`,
    `replace(max_size=..., xflip=...)` and `fingerprint`, as `training.dataset.ImageFolderDataset` has; G is called as `G(z, c, noise_mode=...)` and has `z_dim`,
    `c_dim`, `mapping` and `synthesis`.
    """

    metric: str                                 # Its name, for progress.
    G: torch.nn.Module
    dataset: Any
    device: torch.device
    num_gpus: int = 1                           # Processes that share the work, after `distributed.join`.
    rank: int = 0
    batch_size: int = 64                        # Images per forward pass; results do not depend on it.
    seed: int = 0                               # Keys latents, labels, noise, subsets.
    workers: int = 3                            # Processes that decode real images; 0 = none beside this one.
    cache: bool = True                          # Keep the statistics of real images on disk.
    shared: dict | None = None                  # Generated features that metrics of one G share; one dict for each G.
    kept_real: dict | None = None               # Statistics of real images, kept in memory for evaluations to come.
    progress: ProgressFn | bool | None = None   # True = bars on stderr; None or False = silent.


@contextlib.contextmanager
def shared_failure(opts: MetricOptions) -> Iterator[None]:
    """What fails inside on one process fails on all of them: none waits for another that has given up."""
    error = None
    try:
        yield
    except distributed.LostRank:  # nobody to share it with
        raise
    except Exception as e:
        error = e
    if opts.num_gpus > 1:
        known = isinstance(error, (UserError, torch.OutOfMemoryError))
        reason = str(error).strip().partition("\n")[0] if known else f"{opts.metric} failed on another process"
        reason = distributed.first_given(None if error is None else reason)
        if error is None and reason is not None:
            raise UserError(reason)
    if error is not None:
        raise error


@contextlib.contextmanager
def track(opts: MetricOptions, stage: str, total: int, *, unit: str = "img") -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the number of items (of all processes together) just done."""
    label = f"{opts.metric} {stage}"
    show: ProgressFn = opts.progress if callable(opts.progress) else lambda stage, done, total: None
    use_bar = opts.progress is True and opts.rank == 0
    done = 0
    with tqdm(total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True, disable=not use_bar) as bar:

        def update(count: int) -> None:
            nonlocal done
            count = min(count, total - done)  # the processes' shares may differ by one item
            done += count
            bar.update(count)
            if opts.rank == 0:
                show(label, done, total)

        yield update
