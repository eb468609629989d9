"""Polarity sampling of seeds, for images; see `metrics.polarity`."""

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
    """For each seed, the one that takes its place, of the candidates 0, 1, ...; which one depends on the seed alone.

    Args:
        G:              Generator in eval mode.
        rho:            Below 0 for modes, above 0 for what lies beside them.
        num_candidates: How many seeds there are to choose from.
        label:          float32 [c_dim], the same for all; None for unconditional networks.
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
