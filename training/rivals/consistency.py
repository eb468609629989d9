"""Rivals that ask D for the same score of an image that was changed a little."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, rival

Tensor = torch.Tensor


def shift_and_flip(img: Tensor) -> Tensor:
    """Each image [C, R, R] of a batch mirrored or not, and moved by up to R / 8 pixels; its border is reflected."""
    n, _, res, _ = img.shape
    most = res // 8
    padded = F.pad(img, [most] * 4, mode="reflect")
    moves = torch.randint(0, 2 * most + 1, [n, 2]).tolist()     # On the host, so that nothing waits for the device.
    flips = (torch.rand([n]) < 0.5).tolist()
    moved = [image[:, y:y + res, x:x + res] for image, (y, x) in zip(padded, moves)]
    return torch.stack([image.flip(2) if flip else image for image, flip in zip(moved, flips)])


@rival
class ZCR(Rival):
    """Improved consistency regularisation (Zhao et al., AAAI 2021): images (bCR, Eq. 4) and latents (zCR, Eq. 5, 6).

        L_D += real |D(x) - D(T(x))|^2 + fake |D(G(z)) - D(T(G(z)))|^2 + dis |D(G(z)) - D(G(z + n))|^2
        L_G -= gen |G(z) - G(z + n)|^2                                    n ~ N(0, sigma^2)

    T mirrors and moves an image. The pair G(z), G(z + n) is drawn without style mixing and with the same layer noise,
    so that it differs in z alone. The squared distance of images is a mean over pixels.
    """

    kind = "zcr"

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        moved = judge(shift_and_flip(shown.img), shown.c)
        term = self.options[kind] * (out.logits - moved.logits).square().flatten()
        if kind == "fake":
            with torch.no_grad():
                pair = self._neighbours(shown)
            first, second = (judge(img, shown.c).logits for img in pair)
            term = term + self.options["dis"] * (first - second).square().flatten()
        return term

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        first, second = self._neighbours(shown)
        return -self.options["gen"] * (first - second).square().mean([1, 2, 3])

    def _neighbours(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """G(z) and G(z + n), of the latents of the images `shown`."""
        z = shown.z
        first, second = (
            self.G.synthesis(self.G.mapping(latents, shown.c, skip_w_avg_update=True), noise_mode="const")
            for latents in (z, z + self.options["sigma"] * torch.randn_like(z)))
        return first, second
