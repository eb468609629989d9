"""Kernel inception distance (Binkowski et al., ICLR 2018)."""

from typing import Iterator, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError
from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions

NUM_SUBSETS = 100
MAX_SUBSET_SIZE = 1000


class Subset(NamedTuple):
    gen: np.ndarray     # Indices of generated images.
    real: np.ndarray    # The same number of indices of real images.


def compute_kid(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """KID of the generated images against the real ones: the mean over 100 subsets of at most 1000 images.

    The result includes the standard error, unless subsets are the whole sets: they then tell nothing about it.
    """
    subsets = draw_subsets(real.num_items, gen.num_items, random_state=np.random.RandomState(opts.seed))
    estimates = kernel_distances(real.features(), gen.features(), subsets, device=opts.device)
    result = {opts.metric: float(estimates.mean())}
    if (std_error := standard_error(estimates, real.num_items, gen.num_items)) is not None:
        result[f"{opts.metric}_se"] = std_error
    return result


def standard_error(
    estimates: torch.Tensor, num_real: int, num_gen: int, *, max_subset_size: int = MAX_SUBSET_SIZE
) -> float | None:
    """Standard error of the mean of estimates on random subsets; None if it is unknown.

    It says how much the mean would vary with other real and generated images. To first order, an estimate is a mean
    over its images. Subsets are shares f and g of the real and of the generated images, drawn without replacement. Over
    subsets, the variance of an estimate is V (1 - f) + W (1 - g). Over sets of images, the variance of the mean of all
    subsets is V f + W g. V and W are assumed to be equal. The result also includes the variance of a mean over only
    100 of all possible subsets.
    """
    size = min(num_real, num_gen, max_subset_size)
    shares = size / num_real + size / num_gen
    if shares == 2:
        return None
    return float((estimates.var() * (shares / (2 - shares) + 1 / len(estimates))).sqrt())


def draw_subsets(
    num_real: int,
    num_gen: int,
    *,
    random_state: np.random.RandomState,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = MAX_SUBSET_SIZE,
) -> Iterator[Subset]:
    """Pairs of subsets of equal size, drawn without replacement; the one of generated images is drawn first."""
    size = min(num_real, num_gen, max_subset_size)
    if size < 2:
        raise UserError(f"KID needs two images or more of each kind, got {num_real} real and {num_gen} generated ones")
    for _ in range(num_subsets):
        gen = random_state.choice(num_gen, size, replace=False)
        yield Subset(gen, random_state.choice(num_real, size, replace=False))


def kernel_distances(
    real: torch.Tensor,                     # [N, F]
    gen: torch.Tensor,                      # [M, F]
    subsets: Iterator[Subset],
    *,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 for each pair of subsets: float64 [pairs], on the CPU.

    The three sums nearly cancel, which float32, and TF32 even more, would turn into noise.
    """
    estimates = []
    for subset in subsets:
        x = gen[torch.from_numpy(subset.gen)].to(device, torch.float64)
        y = real[torch.from_numpy(subset.real)].to(device, torch.float64)
        size = x.shape[0]
        within = _kernel(x, x) + _kernel(y, y)
        within = (within.sum() - within.diagonal().sum()) / (size * (size - 1))
        estimates.append(within - 2 * _kernel(x, y).mean())
    return torch.stack(estimates).cpu()


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base
