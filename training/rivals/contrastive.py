"""Rivals that train D by contrastive learning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, rival

Tensor = torch.Tensor


def random_view(img: Tensor) -> Tensor:
    """Crop a random square of each image [N, C, R, R], resize it to R x R, mirror it at random, and change its colours.

    The side of the square is R / 2 to R. The colours change in brightness, contrast and saturation.
    """
    n, device = len(img), img.device
    side = torch.rand([n], device=device) / 2 + 0.5
    sign = torch.randint(0, 2, [n], device=device) * 2 - 1
    turn = torch.stack([side * sign, side], dim=1).diag_embed()     # [N, 2, 2]
    move = (1 - side)[:, None] * (torch.rand([n, 2], device=device) * 2 - 1)
    grid = F.affine_grid(torch.cat([turn, move[:, :, None]], dim=2), list(img.shape), align_corners=False)
    part = F.grid_sample(img, grid, padding_mode="reflection", align_corners=False)
    light, contrast, saturation = torch.randn([3, n, 1, 1, 1], device=device)
    grey = part.mean(1, keepdim=True)
    part = grey + (part - grey) * torch.exp2(saturation)
    mean = part.mean([1, 2, 3], keepdim=True)
    return (part - mean) * torch.exp2(contrast / 2) + mean + light / 5


@rival
class ContraD(Rival):
    """Contrastive losses train D; its adversarial loss trains the last block only (ContraD: Jeong and Shin, ICLR 2021).

        L_D += weight (L+ + L-)
        L+ = -log s(h(x), h(x_2)) / (sum of s over all other views of real images)              SimCLR, on real images
        L- = -mean over other fakes y_2 of log s(k(y), k(y_2)) / (sum of s over all others)     on fake images
        s(a, b) = exp(cos(a, b) / temperature)

    x and x_2 are two random views of a real image, and y is a view of a fake one. "All others" in L- are fake and real.
    h and k are the two halves of a linear head on the mean of D's 4x4 features; the authors have two MLPs. D's scores
    are those of the images themselves, not of views. The gradients of R1 and of G's loss pass through all of D.
    """

    kind = "contrad"
    outputs = 128   # Width of h and of k.

    def look(self, judge: Any, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        if img.requires_grad:
            return judge(img, c)
        hook = self.D.b4.register_forward_pre_hook(lambda block, inputs: (inputs[0].detach(), *inputs[1:]))
        try:
            return judge(img, c)
        finally:
            hook.remove()

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        if kind == "fake":
            self._fake = shown
            return None
        (h1, k1), (h2, k2), (_, k) = (self._heads(images, judge) for images in (shown, shown, self._fake))
        return self.options["weight"] * (self._contrast(h1, h2) + self._gather(k, torch.cat([k1, k2])))

    def _heads(self, images: Shown, judge: Judge) -> tuple[Tensor, Tensor]:
        """h and k [N, outputs] of a random view of each image, scaled to length 1."""
        aux = judge(random_view(images.img), images.c, decode=True).aux
        h, k = (F.normalize(half, dim=1) for half in aux.chunk(2, dim=1))
        return h, k

    def _contrast(self, h1: Tensor, h2: Tensor) -> Tensor:
        """L+ [N], the mean over the two views of each image."""
        h, n = torch.cat([h1, h2]), len(h1)
        scores = (h @ h.T / self.options["temperature"]).fill_diagonal_(-torch.inf)
        partners = torch.arange(2 * n, device=h.device).roll(n)
        return F.cross_entropy(scores, partners, reduction="none").unflatten(0, [2, n]).mean(0)

    def _gather(self, k: Tensor, real: Tensor) -> Tensor:
        """L- [N]."""
        scores = (k @ torch.cat([k, real]).T / self.options["temperature"]).fill_diagonal_(-torch.inf)
        logs = scores.log_softmax(1)[:, :len(k)]
        itself = torch.eye(len(k), dtype=torch.bool, device=k.device)
        return -logs.masked_fill(itself, 0).sum(1) / (len(k) - 1)
