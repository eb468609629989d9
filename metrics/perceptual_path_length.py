"""Perceptual path length (Karras et al., CVPR 2019; the form without cropping: CVPR 2020)."""

from typing import Callable, Literal, Mapping

import numpy as np
import torch
from torch.func import functional_call

from metrics.detectors import FeatureNet
from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions, own_batches, shared_failure, track
from metrics.sampling import draw, keyed_noise
from torch_utils import distributed
from torch_utils.misc import slerp

EPSILON = 1e-4
MAX_RESOLUTION = 256    # Larger images, with k times this side, are first averaged over squares of k x k pixels.

Space = Literal["z", "w"]
Sampling = Literal["full", "end"]


def compute_ppl(
    opts: MetricOptions,
    net: FeatureNet,
    *,
    space: Space,           # spherical interpolation of z, or linear interpolation of w
    sampling: Sampling,     # anywhere on the path, or at its start
    crop: bool,             # compare only the middle of the image (meant for FFHQ faces)
    num_gen: int,           # number of paths
) -> dict[str, float]:
    """Mean length of short steps on paths between random latents, without the lowest and highest percentile."""
    stats = FeatureStats(keep_features=True, what="paths")
    with torch.inference_mode(), shared_failure(opts), track(opts, "paths", num_gen) as done:
        for batch in own_batches(range(num_gen), opts.batch_size):
            draws = draw(opts.G, opts.dataset, batch, seed=opts.seed, num_z=2).to(opts.device)
            lengths = path_lengths(
                opts.G, net, z0=draws.z[:, 0], z1=draws.z[:, 1], c=draws.c,
                t=draws.t if sampling == "full" else torch.zeros_like(draws.t),
                noise=keyed_noise(opts.G.synthesis, draws.noise_seeds, device=opts.device),
                space=space, crop=crop,
            )
            stats.append(lengths[:, None])
            done(len(batch) * distributed.world_size())
        stats.finish()
    stats.gather(opts.device)
    return {opts.metric: trimmed_mean(stats.features()[:, 0])} if distributed.rank() == 0 else {}


def path_lengths(
    G: torch.nn.Module,
    perceptual: Callable[[torch.Tensor], torch.Tensor],
    *,
    z0: torch.Tensor,                       # [N, z_dim]
    z1: torch.Tensor,                       # [N, z_dim]
    t: torch.Tensor,                        # [N], position on the path, 0..1
    c: torch.Tensor | None,                 # [N, c_dim]
    noise: Mapping[str, torch.Tensor],      # in place of the buffers of G.synthesis: [H, W] or [N, 1, H, W]
    space: Space,
    crop: bool,
    epsilon: float = EPSILON,
) -> torch.Tensor:
    """Squared perceptual distance between the images at t and t + epsilon, divided by epsilon squared: [N].

    Args:
        perceptual: Maps float [N, 3, H, W] in 0..255 to [N, K]. The squared L2 distance of two rows is the perceptual
                    distance.
    """
    c2 = None if c is None else torch.cat([c, c])
    if space == "w":
        w0, w1 = G.mapping(torch.cat([z0, z1]), c2).chunk(2)  # [N, num_ws, w_dim]
        ws = torch.cat([torch.lerp(w0, w1, t[:, None, None]), torch.lerp(w0, w1, t[:, None, None] + epsilon)])
    else:
        ws = G.mapping(torch.cat([slerp(z0, z1, t[:, None]), slerp(z0, z1, t[:, None] + epsilon)]), c2)
    both = {name: torch.cat([x, x]) if x.ndim == 4 else x for name, x in noise.items()}  # the two ends share it
    img = functional_call(G.synthesis, both, (ws,), {"noise_mode": "const", "force_fp32": True})
    a, b = perceptual(_prepare(img, crop=crop, factor=G.img_resolution // MAX_RESOLUTION)).chunk(2)
    return (a - b).square().sum(dim=1) / epsilon**2


def trimmed_mean(lengths: torch.Tensor) -> float:
    """Mean of the values from the 1st to the 99th percentile, each rounded outwards to the next sample."""
    values = lengths.double().cpu().numpy()
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def _prepare(img: torch.Tensor, *, crop: bool, factor: int) -> torch.Tensor:
    """Convert [N, C, H, W] in -1..1 to [N, 3, h, w] in 0..255, averaged over squares of side `factor`."""
    if crop:
        unit = img.shape[2] // 8
        img = img[:, :, unit * 3:unit * 7, unit * 2:unit * 6]
    if factor > 1:
        img = torch.nn.functional.avg_pool2d(img, factor)
    img = (img + 1) * 127.5
    return img.repeat(1, 3, 1, 1) if img.shape[1] == 1 else img
