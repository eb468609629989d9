"""Rivals that add a term of D's scores, or another output of D."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, rival

Tensor = torch.Tensor


@rival
class Centring(Rival):
    """L_D += weight (D(x) + D(G(z)))^2: the scores of real and fake images stay symmetric around 0.

    There is no paper on it. Each fake image is paired with the real image at the same position in the batch.
    """

    kind = "centring"
    paired = True

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        if kind == "fake":
            self._fake = out.logits
            return None
        return self.options["weight"] * (out.logits + self._fake).square().flatten()


@rival
class UNet(Rival):
    """D's decoder scores each pixel as real or fake (U-Net GAN: Schoenfeld et al., CVPR 2020).

        L_D += weight mean softplus(-+ p) + cutmix mean (p(mix(x, G(z))) - mix(p(x), p(G(z))))^2
        L_G += weight mean softplus(-p(G(z)))

    p [N, 1, R, R] is the first channel of the decoder's last level, a linear map of D's features. mix puts a rectangle
    of a real image into a fake one, and no gradient passes through mix(p(x), p(G(z))). There are three differences from
    the paper: the decoder is that of GGDR and not as deep as the encoder, D's score of a mixed image is not trained as
    fake, and the share of mixed images does not grow.
    """

    kind = "unet"
    decodes = ("real", "fake", "G")

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        pixels = self._pixels(out)
        sign = 1 if kind == "fake" else -1
        term = self.options["weight"] * softplus(sign * pixels).mean([1, 2, 3])
        if kind == "fake":
            self._fake = (shown.img.detach(), pixels.detach())
            return term
        fake_img, fake_pixels = self._fake
        inside = self._rectangles(shown.img)
        mixed = self._pixels(judge(torch.where(inside, shown.img, fake_img), shown.c, decode=True))
        error = mixed - torch.where(inside, pixels.detach(), fake_pixels)
        return term + self.options["cutmix"] * error.square().mean([1, 2, 3])

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        return self.options["weight"] * softplus(-self._pixels(out)).mean([1, 2, 3])

    def _pixels(self, out: DiscriminatorOutput) -> Tensor:
        return out.fmaps[self.config.dataset.resolution][:, :1]

    @staticmethod
    def _rectangles(img: Tensor) -> Tensor:
        """bool [N, 1, R, R]: the inside of a random rectangle in each image, on average a quarter of the image."""
        n, res = len(img), img.shape[-1]
        ends = torch.rand([n, 2, 2], device=img.device).mul(1.5).sub(0.25).sort(dim=2).values * res  # of y and of x
        at = torch.arange(res, device=img.device) + 0.5
        inside = (at >= ends[:, :, :1]) & (at < ends[:, :, 1:])     # [N, 2, R]
        return inside[:, 0, :, None].logical_and(inside[:, 1, None, :])[:, None]


@rival
class Latent(Rival):
    """D predicts the w of fake images: L_D += weight mean (w - w_D)^2, similar to BiGAN (Donahue et al., ICLR 2017).

    BiGAN's D judges pairs of an image and a latent. Here a head of D predicts w, as in InfoGAN (Chen et al., NIPS
    2016). It is GLeaD's head for w if D has one. With style mixing, w is the mean over the layers of G.
    """

    kind = "latent"
    decodes = ("fake",)

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        if kind == "real":
            return None
        return self.options["weight"] * (out.w - shown.ws.mean(1)).square().mean(1)
