"""What D and G of a GLeaD network make of images: D extracts (f, basis image, w), G rebuilds the image from them."""

from typing import NamedTuple, Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from training.tasks import reconstruct

from .images import ImageGrid, to_pixels


class Reconstruction(NamedTuple):
    pixels: np.ndarray      # uint8 [N, R, R, C].
    mse: np.ndarray         # float64 [N]: mean squared error of what G made, in [-1, 1] units.


def find_res_g(G: torch.nn.Module, D: torch.nn.Module, *, name: str) -> int:
    """The resolution of f, from which G continues; 1 = G starts at its constant, with w alone.

    Raises:
        UserError: D has nothing to rebuild images from, or doesn't fit G; the network is called `name`.
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
    """Indices of n images, repeated from the first on so that they fill the groups of D's minibatch deviation."""
    group = min(D.minibatch_group or n, n)
    return torch.arange(-(-n // group) * group) % n


@torch.no_grad()
def rebuild(
    G: torch.nn.Module, D: torch.nn.Module, img: torch.Tensor, *, res_g: int, noise_mode: str = "const"
) -> Reconstruction:
    """Let D read images and G rebuild them (GLeaD, arXiv 2212.03752, Eq. 3 to 6).

    Results depend neither on the other images of the batch nor on labels: the decoder reads the features of D's blocks.
    Minibatch standard deviation and labels only enter after these blocks.

    Args:
        G, D:       Networks in eval mode on one device.
        img:        float32 [N, C, R, R] in about [-1, 1], on any device.
        res_g:      What `find_res_g` gave.
        noise_mode: Of G.
    """
    img = img.to(next(D.parameters()).device)
    filled = img[whole_groups(D, len(img))]
    out = D.run(filled, torch.zeros(len(filled), D.c_dim, device=img.device))
    rebuilt = reconstruct(G, out, res_g=res_g, noise_mode=noise_mode)[:len(img)]
    return Reconstruction(to_pixels(rebuilt), (rebuilt.double() - img).square().mean(dim=[1, 2, 3]).cpu().numpy())


def pair_grid(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, columns: int) -> ImageGrid:
    """Rows of at most `columns` images, each above the row of their reconstructions; all uint8 [R, R, C]."""
    cols = min(len(pairs), columns)
    grid = ImageGrid(2 * -(-len(pairs) // cols), cols, shape=pairs[0][0].shape)
    for index, (image, rebuilt) in enumerate(pairs):
        row, col = divmod(index, cols)
        grid.place(2 * row, col, image)
        grid.place(2 * row + 1, col, rebuilt)
    return grid
