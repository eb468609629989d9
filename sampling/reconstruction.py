"""Reconstruction by a GLeaD network: D extracts f, the basis image and w from an image, and G rebuilds it from them."""

from typing import NamedTuple, Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from training.tasks import reconstruct

from .images import ImageGrid, to_pixels


class Reconstruction(NamedTuple):
    pixels: np.ndarray      # uint8 [N, R, R, C].
    mse: np.ndarray         # float64 [N]: mean squared error before rounding to 8 bits, for images in [-1, 1].


def find_res_g(G: torch.nn.Module, D: torch.nn.Module, *, name: str) -> int:
    """The resolution of f, at which G takes over from D. At 1, there is no f: G starts from its constant, with D's w.

    Raises:
        UserError: D can't extract what G needs, or doesn't fit G. The message calls the network `name`.
    """
    if not getattr(D, "has_heads", False):
        kind = "a decoder without heads for G, as GGDR has it" if getattr(D, "decoder_resolutions", None) else "none"
        raise UserError(f"{name}: to rebuild images, D needs a decoder with heads for G; this one has {kind}. Networks "
                        "of train.py --method=glead and glead+ggdr have it")
    res_g = D.init_kwargs["glead_res_g"]
    channels = D.init_kwargs["decoder_out_channel"]
    same = (D.img_resolution, D.img_channels) == (G.img_resolution, G.img_channels) and channels == G.w_dim
    if not same:
        raise UserError(f"{name}: D is for images {D.img_channels}x{D.img_resolution}x{D.img_resolution} and w of "
                        f"{channels} numbers, G for {G.img_channels}x{G.img_resolution}x{G.img_resolution} and "
                        f"{G.w_dim}: they don't belong together")
    return res_g


def whole_groups(D: torch.nn.Module, n: int) -> torch.Tensor:
    """Indices 0 to n - 1, then 0, 1, ... again, to fill whole groups of D's minibatch standard deviation; int64 [M]."""
    group = min(D.minibatch_group or n, n)
    return torch.arange(-(-n // group) * group) % n


@torch.no_grad()
def rebuild(
    G: torch.nn.Module, D: torch.nn.Module, img: torch.Tensor, *, res_g: int, noise_mode: str = "const"
) -> Reconstruction:
    """Let D extract features from images and G rebuild the images (GLeaD, arXiv 2212.03752, Eq. 3 to 6).

    The result of an image depends neither on the other images nor on labels. D's decoder reads the features of D's
    blocks, and minibatch standard deviation and labels enter only after these blocks.

    Args:
        G, D:       Networks in eval mode on one device.
        img:        float32 [N, C, R, R] in about [-1, 1], on any device.
        res_g:      The result of `find_res_g`.
        noise_mode: Noise mode of G.
    """
    img = img.to(next(D.parameters()).device)
    filled = img[whole_groups(D, len(img))]
    out = D.run(filled, torch.zeros(len(filled), D.c_dim, device=img.device))
    rebuilt = reconstruct(G, out, res_g=res_g, noise_mode=noise_mode)[:len(img)]
    return Reconstruction(to_pixels(rebuilt), (rebuilt.double() - img).square().mean(dim=[1, 2, 3]).cpu().numpy())


def pair_grid(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, columns: int) -> ImageGrid:
    """A grid of (image, reconstruction) pairs, uint8 [R, R, C]. Below each row of images are their reconstructions."""
    cols = min(len(pairs), columns)
    grid = ImageGrid(2 * -(-len(pairs) // cols), cols, shape=pairs[0][0].shape)
    for index, (image, rebuilt) in enumerate(pairs):
        row, col = divmod(index, cols)
        grid.place(2 * row, col, image)
        grid.place(2 * row + 1, col, rebuilt)
    return grid
