"""LPIPS as a feature net of metrics. Importing this module makes `lpips-vgg` and `lpips-alex` known as detectors."""

import torch

from metrics import detectors
from torch_utils.formats.feature_nets import OpenNet
from training.perceptual import LPIPS, build_perceptual, digest


class LPIPSFeatures(torch.nn.Module):
    """Features whose squared L2 distance is the LPIPS of two images."""

    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, img: torch.Tensor, resize_images: bool = False, return_lpips: bool = True) -> torch.Tensor:
        """float [N, 3, H, W] in [0, 255] -> float32 [N, K]."""
        taps = self.lpips.embed(img / 127.5 - 1)
        return torch.cat([(tap * (self.lpips.get_buffer(f"weight{i}") / tap[0, 0].numel()).sqrt()).flatten(1)
                          for i, tap in enumerate(taps)], dim=1)


def open_lpips(spec: str, device: str) -> OpenNet:
    """Open `lpips-vgg` or `lpips-alex`, optionally with `:FILE`. Its digest is the SHA-256 of the convolutions."""
    lpips = build_perceptual(spec, device=device)
    assert isinstance(lpips, LPIPS)
    return OpenNet(LPIPSFeatures(lpips).eval(), digest(lpips.layers.state_dict()), frozenset({"lpips"}))


detectors.OPENERS |= {"lpips-vgg": open_lpips, "lpips-alex": open_lpips}
