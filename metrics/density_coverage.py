"""Density and coverage (Naeem et al., ICML 2020)."""

from typing import Any, NamedTuple

import torch

from metrics.feature_stats import FeatureStats
from metrics.neighbours import PairDistances, compute_score
from metrics.options import MetricOptions

NUM_NEIGHBOURS = 5  # The paper recommends 5, with 10,000 images of either kind.


class DensityCoverage(NamedTuple):
    density: float      # From 0; may exceed 1.
    coverage: float     # 0..1.


def compute_dc(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """Density and coverage, with k = 5."""
    return compute_score(density_coverage, opts, real, gen, gen_radii=False)


@torch.no_grad()
def density_coverage(
    real: torch.Tensor,                     # float32 [N, F]
    gen: torch.Tensor,                      # float32 [M, F]
    *,
    k: int = NUM_NEIGHBOURS,
    **options: Any,                         # for `PairDistances`
) -> DensityCoverage:
    """How densely generated images lie among real ones, and how many real images have a generated one nearby.

    Each real image has a ball around it, whose radius is the distance to its k-th nearest other real image. Density is
    the mean number of balls around a generated image, divided by k (Eq. 4 of the paper). Coverage is the share of balls
    that contain a generated image (Eq. 5).

    Raises:
        UserError: There are too few images for k neighbours.
    """
    pairs = PairDistances("density and coverage", real, gen, k=k, **options)
    radii = pairs.radii(pairs.real)
    balls_entered, is_covered = 0, torch.zeros_like(radii, dtype=torch.bool)
    for block in pairs.across():
        inside = block.distances < radii[block.rows, None]
        balls_entered += int(inside.sum())
        is_covered[block.rows] |= inside.any(dim=1)
    return DensityCoverage(balls_entered / (k * len(gen)), float(is_covered.double().mean()))
