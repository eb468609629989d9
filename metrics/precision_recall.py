"""Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019)."""

from typing import Any, NamedTuple

import torch

from metrics.feature_stats import FeatureStats
from metrics.neighbours import PairDistances, Rounding, compute_score
from metrics.options import MetricOptions

NUM_NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def compute_pr(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """Precision and recall, with k = 3."""
    return compute_score(precision_recall, opts, real, gen, gen_radii=True)


@torch.no_grad()
def precision_recall(
    real: torch.Tensor,                     # float32 [N, F]
    gen: torch.Tensor,                      # float32 [M, F]
    *,
    k: int = NUM_NEIGHBOURS,
    rounding: Rounding = "float16",
    **options: Any,                         # for `PairDistances`
) -> PrecisionRecall:
    """The share of generated images inside the manifold of the real ones (precision), and vice versa (recall).

    A manifold is the union of balls around its images. The radius of each ball is the distance to the k-th nearest
    other image. The published protocol rounds features and distances to float16; `rounding="float32"` does not.

    Raises:
        UserError: There are too few images for k neighbours, or features are beyond the range of float16.
    """
    pairs = PairDistances("precision and recall", real, gen, k=k, rounding=rounding, **options)
    real_radii, gen_radii = pairs.radii(pairs.real), pairs.radii(pairs.gen)
    real_inside, gen_inside = (torch.zeros_like(radii, dtype=torch.bool) for radii in (real_radii, gen_radii))
    for block in pairs.across():
        gen_inside[block.cols] |= (block.distances <= real_radii[block.rows, None]).any(dim=0)
        real_inside[block.rows] |= (block.distances <= gen_radii[None, block.cols]).any(dim=1)
    return PrecisionRecall(float(gen_inside.double().mean()), float(real_inside.double().mean()))
