"""Sliced Wasserstein distance of features (Bonneel et al., Journal of Mathematical Imaging and Vision 2015)."""

import numpy as np
import torch

from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions

NUM_DIRECTIONS = 1000
_AT_ONCE = 50   # Directions that are processed together.


def compute_swd(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """Sliced 2-Wasserstein distance between the generated images and the real ones, in 1000 random directions."""
    return {opts.metric: sliced_wasserstein(real.features(), gen.features(), device=opts.device,
                                            random_state=np.random.RandomState(opts.seed))}


def sliced_wasserstein(
    real: torch.Tensor,                     # [N, F]
    gen: torch.Tensor,                      # [M, F]
    *,
    random_state: np.random.RandomState,
    num_directions: int = NUM_DIRECTIONS,
    device: torch.device | str = "cpu",
) -> float:
    """The root of the mean, over random unit directions, of the squared 2-Wasserstein distance of the projections.

    In one dimension, the squared distance is the mean squared difference of the two quantile functions. These are step
    functions with steps at multiples of 1 / N and of 1 / M. Between neighbouring steps of either, both are constant.
    """
    normal = torch.from_numpy(random_state.standard_normal([real.shape[1], num_directions]))
    directions = (normal / normal.norm(dim=0)).to(device, torch.float32)
    steps = torch.cat([torch.arange(n + 1, dtype=torch.float64) / n for n in (len(real), len(gen))]).unique()
    widths, middles = steps.diff().to(device), (steps[1:] + steps[:-1]) / 2
    real_rows, gen_rows = ((middles * n).long().to(device) for n in (len(real), len(gen)))
    squares = []
    for part in directions.split(_AT_ONCE, dim=1):
        x, y = (_project(features, part).sort(dim=0).values for features in (real, gen))
        squares.append(((x[real_rows] - y[gen_rows]).double().square() * widths[:, None]).sum(dim=0))
    return float(torch.cat(squares).mean().sqrt())


def _project(features: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """[N, F] x [F, D] => [N, D]."""
    return torch.cat([part.to(directions.device) @ directions for part in features.split(4096)])
