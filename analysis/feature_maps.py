"""Feature maps of G and of D's decoder as colours (as GGDR, Lee et al., ECCV 2022, shows them)."""

from typing import Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from sampling.reconstruction import whole_groups


def find_resolution(D: torch.nn.Module, *, name: str) -> int:
    """The resolution at which D's features are for G: that of f, or that of the last level of the decoder.

    Raises:
        UserError: D has no decoder; the network is called `name`.
    """
    if not getattr(D, "decoder_resolutions", None):
        raise UserError(f"{name}: its D has no decoder, so it has no feature maps for G; networks of train.py "
                        "--method=ggdr, glead and glead+ggdr have one")
    return D.init_kwargs["glead_res_g"] if D.spatial_heads else D.decoder_resolutions[-1]


@torch.no_grad()
def decoder_features(D: torch.nn.Module, img: torch.Tensor, *, res: int) -> torch.Tensor:
    """What D's decoder makes of images [N, C, R, R] for G at resolution `res`: f of GLeaD, or GGDR's features."""
    device = next(D.parameters()).device
    order = whole_groups(D, len(img))
    out = D.run(img[order].to(device), torch.zeros(len(order), D.c_dim, device=device))
    features = out.fmaps[res] if out.f is None else out.f
    if features.shape[-1] != res:
        features = torch.nn.functional.interpolate(features, size=(res, res), mode="bilinear", align_corners=False)
    return features[:len(img)].float().cpu()


@torch.no_grad()
def generator_features(G: torch.nn.Module, ws: torch.Tensor, *, res: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, C, R, R] of ws [N, num_ws, w_dim], and G's features [N, C', res, res] of them; both float32."""
    out = G.synthesis.run(ws.to(next(G.parameters()).device), keep=[res], noise_mode="const")
    return out.img.float(), out.states[res].x.float().cpu()


def check_channels(of_g: torch.Tensor, of_d: torch.Tensor, *, name: str) -> None:
    if of_g.shape[1] != of_d.shape[1]:
        raise UserError(f"{name}: G has {of_g.shape[1]} channels where D's decoder has {of_d.shape[1]}: their features "
                        "can't be compared")


def to_colours(maps: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Feature maps as colours: their first three principal components, with one basis and one scale for all.

    Features are scaled to unit length at each position first, since GGDR compares directions. The 1st percentile of a
    component is dark, the 99th bright.

    Args:
        maps: Each [N, C, r, r], with the same C.

    Returns:
        Likewise uint8 [N, r, r, 3].
    """
    unit = [torch.nn.functional.normalize(x.double(), dim=1).permute(0, 2, 3, 1) for x in maps]    # [N, r, r, C]
    everything = torch.cat([x.flatten(0, 2) for x in unit])                                        # [positions, C]
    mean = everything.mean(dim=0)
    basis = torch.linalg.eigh((everything - mean).T @ (everything - mean)).eigenvectors.flip(1)[:, :3]    # [C, 3]
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()     # else the sign depends on the machine
    projected = ((everything - mean) @ basis).numpy()
    low, high = np.percentile(projected, [1, 99], axis=0)
    scale = 255 / np.maximum(high - low, 1e-12)
    colours = [(((x - mean) @ basis).numpy() - low) * scale for x in unit]
    return [np.clip(x, 0, 255).round().astype(np.uint8) for x in colours]
