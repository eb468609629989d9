"""The quality of reconstructions by D and G (GLeaD, arXiv 2212.03752, Fig. 5)."""

from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError
from sampling.images import psnr, seed_latents, synthesize, to_tensor
from sampling.reconstruction import find_res_g, rebuild
from training.perceptual import PerceptualLoss

from .drawing import SHOWN, Row
from .fairness import Sample

_MIN_SIDE = 11  # Side of SSIM's window.


class Quality(NamedTuple):
    """How similar a reconstruction is to its image."""

    perceptual: float   # Distance, such as LPIPS. 0 = equal.
    psnr: float         # Peak signal-to-noise ratio in dB. Infinite = equal.
    ssim: float         # Structural similarity, at most 1. 1 = equal.


def check_size(side: int) -> None:
    """Raise a UserError if images of `side` pixels a side are too small for SSIM."""
    if side < _MIN_SIDE:
        raise UserError(f"images of {side}x{side} pixels are too small for SSIM, which needs {_MIN_SIDE}x{_MIN_SIDE}")


@torch.no_grad()
def compare(images: np.ndarray, rebuilt: np.ndarray, perceptual: PerceptualLoss) -> list[Quality]:
    """Compare images with their reconstructions, both uint8 [N, R, R, C].

    SSIM has the settings of Wang et al. (2004): a Gaussian window with a standard deviation of 1.5 pixels, and no
    sample covariance.
    """
    from skimage.metrics import structural_similarity

    device = next(perceptual.parameters(), torch.empty(0)).device
    before, after = (to_tensor(x).to(device) for x in (images, rebuilt))
    distances = perceptual.distance(after, perceptual.embed_target(before)).cpu().tolist()
    ssim = [structural_similarity(x, y, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
                                  use_sample_covariance=False) for x, y in zip(images, rebuilt)]
    return [Quality(distance, psnr(x, y), float(s)) for distance, x, y, s in zip(distances, images, rebuilt, ssim)]


def mean_quality(found: list[Quality]) -> Quality:
    """The means over images."""
    return Quality(*(float(np.mean(values)) for values in zip(*found)))


def reconstruction_rows(label: str, G: Any, D: Any, real: Sample) -> list[Row]:
    """Rows of unseen real images and of generated images, each above what D and G rebuild of them, with the PSNR.

    Args:
        label: Name of the networks.
        G, D:  Generator and discriminator of one snapshot, in eval mode, on one device.
        real:  At least `SHOWN` images that D was not trained on. Generated images get their labels.
    """
    ws = G.mapping(seed_latents(range(SHOWN), G.z_dim).to(next(G.parameters()).device), real.labels[:SHOWN])
    rows = []
    for kind, images in ("unseen real", real.pixels[:SHOWN].transpose(0, 2, 3, 1)), ("generated", synthesize(G, ws)):
        rebuilt = rebuild(G, D, to_tensor(images), res_g=find_res_g(G, D, name=label)).pixels
        rows += [Row(f"{kind}\n{label}", list(images), gap=True),
                 Row("rebuilt\nPSNR", list(rebuilt), [f"{psnr(x, y):.1f} dB" for x, y in zip(images, rebuilt)])]
    return rows
