"""Inception score (Salimans et al., NeurIPS 2016)."""

from typing import NamedTuple

import torch

from dnnlib.util import UserError
from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions

NUM_SPLITS = 10


class InceptionScore(NamedTuple):
    mean: float
    std: float  # Standard deviation over the splits, divided by N, not N - 1.


def compute_is(opts: MetricOptions, _real: None, gen: FeatureStats) -> dict[str, float]:
    """Inception score of the generated images in 10 splits."""
    score = inception_score(gen.features(), num_splits=NUM_SPLITS)
    return {f"{opts.metric}_mean": score.mean, f"{opts.metric}_std": score.std}


def inception_score(probs: torch.Tensor, *, num_splits: int) -> InceptionScore:
    """exp of the mean KL divergence between p(y|x) and p(y), for each of several consecutive splits of the images.

    Args:
        probs:      Class probabilities [N, num_classes], in the order of generation.
        num_splits: Number of splits. Split i starts at image i N / num_splits.

    Raises:
        UserError: There are fewer images than splits.
    """
    if len(probs) < num_splits:
        raise UserError(f"an inception score in {num_splits} splits needs as many images, got {len(probs)}")
    scores = []
    for i in range(num_splits):
        part = probs[i * len(probs) // num_splits:(i + 1) * len(probs) // num_splits].to(torch.float64)
        marginal = part.mean(dim=0, keepdim=True)
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(dim=1)  # 0 log 0 = 0
        scores.append(divergence.mean().exp())
    stacked = torch.stack(scores)
    return InceptionScore(float(stacked.mean()), float(stacked.std(correction=0)))
