"""Polarity sampling of the seeds of images. The method is in `metrics.polarity`."""

import sys
from typing import Any, Sequence

import numpy as np
import torch
from tqdm import tqdm

from metrics.polarity import cache_path, choose, load_volumes, log_volume, save_volumes
from sampling.images import seed_latents


def resample_seeds(
    G: Any, seeds: Sequence[int], *, rho: float, num_candidates: int, label: np.ndarray | None = None
) -> list[int]:
    """Replace each seed by one of the candidates 0, 1, ..., num_candidates - 1. The choice depends on the seed alone.

    Args:
        G:              Generator in eval mode.
        seeds:          The seeds to replace.
        rho:            Below 0, modes are favoured; above 0, rare images.
        num_candidates: Number of seeds to choose from.
        label:          Label of all images, float32 [c_dim]; None for unconditional networks.
    """
    device = next(G.parameters()).device
    c = torch.zeros(0) if label is None else torch.from_numpy(label)

    path = cache_path(G, f"seeds {num_candidates} {c.tolist()}")
    volumes = load_volumes(path)
    if volumes is None:
        candidates = tqdm(range(num_candidates), desc="singular values", unit="seed", file=sys.stderr, leave=False)
        volumes = np.array([log_volume(G, seed_latents([seed], G.z_dim)[0].to(device), c.to(device))
                            for seed in candidates])
        save_volumes(path, volumes)
    return [int(choose(volumes, rho, 1, np.random.RandomState(seed))[0]) for seed in seeds]
