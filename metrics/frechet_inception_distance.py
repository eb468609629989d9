"""Frechet inception distance (Heusel et al., NeurIPS 2017)."""

import torch

from metrics.feature_stats import FeatureStats, Moments
from metrics.options import MetricOptions


def compute_fid(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """FID of the generated images against the real ones."""
    return {opts.metric: frechet_distance(real.moments(), gen.moments())}


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two Gaussians: |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With R R^T = S_a, the symmetric matrix R^T S_b R has the eigenvalues of S_a S_b. The trace of the root is the sum of
    their roots, in float64. R is the Cholesky factor of S_a or, if S_a is singular, its symmetric root, which takes
    longer.
    """
    factor, failed = torch.linalg.cholesky_ex(a.cov)
    if failed:
        factor = _symmetric_root(a.cov)
    product = factor.T @ b.cov @ factor
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    trace_of_root = _without_noise(eigenvalues).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * trace_of_root
    return float(distance)


def _symmetric_root(cov: torch.Tensor) -> torch.Tensor:
    """The positive semi-definite square root of a covariance matrix [F, F]."""
    eigenvalues, vectors = torch.linalg.eigh(cov)
    return (vectors * _without_noise(eigenvalues).sqrt()) @ vectors.T


def _without_noise(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Set tiny eigenvalues to 0. Rounding makes them from zeros, with either sign, and their roots would add up."""
    floor = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > floor, eigenvalues, 0)
