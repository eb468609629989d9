"""FID without the bias of a finite sample (Chong & Forsyth, CVPR 2020)."""

from typing import Callable, NamedTuple

import numpy as np
import scipy.stats
import torch

from metrics.feature_stats import FeatureStats, Moments
from metrics.frechet_inception_distance import frechet_distance
from metrics.options import MetricOptions, track

NUM_POINTS = 15         # Number of sample sizes, evenly spaced from a tenth of the images (5,000 of 50,000) to all.
SMALLEST_PART = 0.1


class Extrapolation(NamedTuple):
    value: float        # FID in the limit of infinitely many generated images.
    std_error: float    # Standard error of the intercept of the fitted line.


def compute_fid_infinity(opts: MetricOptions, real: FeatureStats, gen: FeatureStats) -> dict[str, float]:
    """FID extrapolated from samples of the generated images to infinitely many, with its standard error."""
    with track(opts, "samples", NUM_POINTS) as done:
        result = extrapolate(real.moments(), gen.features(), random_state=np.random.RandomState(opts.seed),
                             device=opts.device, on_point=lambda: done(1))
    return {opts.metric: result.value, f"{opts.metric}_se": result.std_error}


def extrapolate(
    real: Moments,
    gen: torch.Tensor,                      # [N, F]
    *,
    random_state: np.random.RandomState,
    device: torch.device | str = "cpu",
    on_point: Callable[[], None] = lambda: None,
) -> Extrapolation:
    """Fit a line to the FIDs of random samples of 15 sizes N, as a function of 1 / N. The result is its value at 0."""
    sizes = np.linspace(SMALLEST_PART * len(gen), len(gen), NUM_POINTS).astype(int)
    distances = []
    for size in sizes:
        stats = FeatureStats(keep_moments=True)
        for part in torch.from_numpy(random_state.permutation(len(gen))[:size]).split(1024):
            stats.append(gen[part].to(device))
        distances.append(frechet_distance(real, stats.moments()))
        on_point()
    line = scipy.stats.linregress(1 / sizes, distances)
    return Extrapolation(float(line.intercept), float(line.intercept_stderr))
