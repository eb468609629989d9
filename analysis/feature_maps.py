"""Feature maps of G and of D's decoder, drawn as colours as in the paper of GGDR (Lee et al., ECCV 2022)."""

from typing import Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from sampling.reconstruction import whole_groups


def find_resolution(D: torch.nn.Module, *, name: str) -> int:
    """The resolution at which D's decoder makes features for G: that of f, or that of the decoder's last level.

    Raises:
        UserError: D has no decoder. The message calls the network `name`.
    """
    if not getattr(D, "decoder_resolutions", None):
        raise UserError(f"{name}: its D has no decoder, so it has no feature maps for G; networks of train.py "
                        "--method=ggdr, glead and glead+ggdr have one")
    return D.init_kwargs["glead_res_g"] if D.spatial_heads else D.decoder_resolutions[-1]


@torch.no_grad()
def decoder_features(D: torch.nn.Module, img: torch.Tensor, *, res: int) -> torch.Tensor:
    """The features that D's decoder makes of images float32 [N, C, R, R] for G: GLeaD's f, or those of GGDR.

    Returns:
        float32 [N, C', res, res] on the CPU.
    """
    device = next(D.parameters()).device
    order = whole_groups(D, len(img))
    out = D.run(img[order].to(device), torch.zeros(len(order), D.c_dim, device=device))
    features = out.fmaps[res] if out.f is None else out.f
    if features.shape[-1] != res:
        features = torch.nn.functional.interpolate(features, size=(res, res), mode="bilinear", align_corners=False)
    return features[:len(img)].float().cpu()


@torch.no_grad()
def generator_features(G: torch.nn.Module, ws: torch.Tensor, *, res: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and features that G makes of ws [N, num_ws, w_dim].

    Returns:
        Images float32 [N, C, R, R] on G's device, and features float32 [N, C', res, res] on the CPU.
    """
    out = G.synthesis.run(ws.to(next(G.parameters()).device), keep=[res], noise_mode="const")
    return out.img.float(), out.states[res].x.float().cpu()


def check_channels(of_g: torch.Tensor, of_d: torch.Tensor, *, name: str) -> None:
    """Raise a UserError if features of G and D differ in their number of channels."""
    if of_g.shape[1] != of_d.shape[1]:
        raise UserError(f"{name}: G has {of_g.shape[1]} channels where D's decoder has {of_d.shape[1]}: their features "
                        "can't be compared")


def to_colours(maps: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Draw feature maps as colours: their first three principal components, with one basis and one scale for all maps.

    Features are first scaled to unit length at each position, since GGDR compares directions. The 1st percentile of a
    component becomes 0, the 99th becomes 255.

    Args:
        maps: Each float [N, C, r, r], with the same C.

    Returns:
        An image for each map, uint8 [N, r, r, 3].
    """
    unit = [torch.nn.functional.normalize(x.double(), dim=1).permute(0, 2, 3, 1) for x in maps]    # [N, r, r, C]
    everything = torch.cat([x.flatten(0, 2) for x in unit])                                        # [positions, C]
    mean = everything.mean(dim=0)
    basis = torch.linalg.eigh((everything - mean).T @ (everything - mean)).eigenvectors.flip(1)[:, :3]    # [C, 3]
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()     # the same sign on every machine
    projected = ((everything - mean) @ basis).numpy()
    low, high = np.percentile(projected, [1, 99], axis=0)
    scale = 255 / np.maximum(high - low, 1e-12)
    colours = [(((x - mean) @ basis).numpy() - low) * scale for x in unit]
    return [np.clip(x, 0, 255).round().astype(np.uint8) for x in colours]
