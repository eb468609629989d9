"""Rivals that change what D sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, WithClock, rival

Tensor = torch.Tensor


@rival
class AuxiliaryRotation(Rival):
    """D predicts by how many quarter turns r an image was rotated (SS-GAN: Chen et al., CVPR 2019).

        L_D += dis E[-log Q_D(r | x^r)]         for real images
        L_G += gen E[-log Q_D(r | G(z)^r)]      for fake images

    Q_D is a linear head on the mean of D's 4x4 features. Each image is rotated once, by a random r.
    """

    kind = "ar"

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        return None if kind == "fake" else self.options["dis"] * self._error(shown, judge)

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        return self.options["gen"] * self._error(shown, judge)

    @staticmethod
    def _error(shown: Shown, judge: Judge) -> Tensor:
        turns = torch.randint(0, 4, [len(shown.img)])   # on the host, so that nothing waits for the device
        turned = torch.stack([torch.rot90(img, k, [1, 2]) for img, k in zip(shown.img, turns.tolist())])
        aux = judge(turned, shown.c, decode=True).aux
        return F.cross_entropy(aux, turns.to(aux.device), reduction="none")


@rival
class ProgressiveAugmentation(WithClock):
    """D gets random bits s with each image, and each 1 swaps real and fake (PA-GAN: Zhang and Khoreva, NeurIPS 2019).

    D's score is (-1)^(sum of s) D(x, s). So D(x, s) must be high for a real image with an even number of ones, and for
    a fake image with an odd number. Each bit is a constant channel of D's input. Bit l starts at l `kimg`: in the
    following `kimg`, its probability of a 1 grows from 0 to 1/2. The authors also put the bits into D's features, and
    add a bit when KID stops falling.
    """

    kind = "pa"

    def look(self, judge: Any, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        progress = self.nimg / (1000 * self.options["kimg"])
        chances = [min(max(progress - level, 0), 1) / 2 for level in range(self.options["levels"])]
        bits = torch.stack([torch.rand([len(img)], device=img.device) < chance for chance in chances], dim=1)
        channels = (2 * bits.to(img.dtype) - 1)[:, :, None, None].expand(-1, -1, *img.shape[2:])
        out = judge(torch.cat([img, channels], dim=1), c)
        odd = bits.sum(1, keepdim=True) % 2
        return out._replace(logits=out.logits * (1 - 2 * odd))


@rival
class Masked(Rival):
    """D sees a part of each image, and G rebuilds all of it: `share` of the 8 x 8 squares of an image are grey.

    There is no paper on it. Masked autoencoders (He et al., CVPR 2022), which are not adversarial, hide 75 %.
    """

    kind = "masked"

    def look(self, judge: Any, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        seen = torch.rand([len(img), 1, 8, 8], device=img.device) >= self.options["share"]
        return judge(img * F.interpolate(seen.to(img.dtype), size=img.shape[2:], mode="nearest"), c)
