"""The training images that generated ones are most like, by the features of a detector: does G memorise?"""

from typing import NamedTuple

import torch


class Neighbours(NamedTuple):
    """Of each image, the nearest training images, the nearest first."""

    indices: torch.Tensor       # int64 [N, k]
    distances: torch.Tensor     # float64 [N, k]: Euclidean distances of features.


def find_neighbours(
    features: torch.Tensor, train_features: torch.Tensor, *, k: int, own: torch.Tensor | None = None
) -> Neighbours:
    """The k training images with the nearest features.

    Args:
        features:       float [N, F].
        train_features: float [M, F], M >= k.
        own:            int64 [N]: for training images, the index of each; it does not count as its own neighbour.
    """
    distances = torch.cdist(features.double(), train_features.double())     # [N, M]
    if own is not None:
        distances[torch.arange(len(own)), own] = torch.inf
    nearest = distances.topk(k, dim=1, largest=False)
    return Neighbours(nearest.indices, nearest.values)


def typical_distance(train_features: torch.Tensor, *, count: int = 1000, seed: int = 0) -> float:
    """Median distance of training images from the nearest other one, over at most `count` of them."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randperm(len(train_features), generator=generator)[:count]
    found = find_neighbours(train_features[own], train_features, k=1, own=own)
    return float(found.distances.median())
