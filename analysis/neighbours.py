"""The training images nearest to generated images, by the features of a detector: does G memorise?"""

from typing import NamedTuple

import torch

_ROWS = 64  # Images at a time, to keep the matrix of distances small.


class Neighbours(NamedTuple):
    """The k nearest training images of each image, the nearest first."""

    indices: torch.Tensor       # int64 [N, k].
    distances: torch.Tensor     # float32 [N, k]: Euclidean distances of features.


def find_neighbours(
    features: torch.Tensor, train_features: torch.Tensor, *, k: int, own: torch.Tensor | None = None
) -> Neighbours:
    """Find the k training images with the nearest features.

    Args:
        features:       Features of images, float32 [N, F].
        train_features: Features of training images, float32 [M, F], M >= k.
        own:            If the images are training images, their indices, int64 [N]. No image is its own neighbour.
    """
    parts = []
    for rows in torch.arange(len(features)).split(_ROWS):
        # This mode doesn't use a matrix product, so distances of equal features are exactly 0.
        distances = torch.cdist(features[rows], train_features, compute_mode="donot_use_mm_for_euclid_dist")
        if own is not None:
            distances[torch.arange(len(rows)), own[rows]] = torch.inf
        parts.append(distances.topk(k, dim=1, largest=False))
    return Neighbours(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


def typical_distance(train_features: torch.Tensor, *, count: int = 256, seed: int = 0) -> float:
    """Median distance of a training image from the nearest other one, over a random sample of at most `count`."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randperm(len(train_features), generator=generator)[:count]
    found = find_neighbours(train_features[own], train_features, k=1, own=own)
    return float(found.distances.median())
