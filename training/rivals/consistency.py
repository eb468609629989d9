"""Rivals that make D give similar images the same score."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch
import torch.nn.functional as F

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, rival

Tensor = torch.Tensor


def shift_and_flip(img: Tensor) -> Tensor:
    """Mirror each image of [N, C, R, R] at random, and shift it by up to R / 8 pixels with reflected borders."""
    n, _, res, _ = img.shape
    most = res // 8
    padded = F.pad(img, [most] * 4, mode="reflect")
    moves = torch.randint(0, 2 * most + 1, [n, 2]).tolist()     # on the host, so that nothing waits for the device
    flips = (torch.rand([n]) < 0.5).tolist()
    moved = [image[:, y:y + res, x:x + res] for image, (y, x) in zip(padded, moves)]
    return torch.stack([image.flip(2) if flip else image for image, flip in zip(moved, flips)])


@rival
class ZCR(Rival):
    """Improved consistency regularisation (ICR: Zhao et al., AAAI 2021), for images (bCR) and latents (zCR).

        L_D += real |D(x) - D(T(x))|^2 + fake |D(G(z)) - D(T(G(z)))|^2 + dis |D(G(z)) - D(G(z + n))|^2
        L_G -= gen |G(z) - G(z + n)|^2                                    n ~ N(0, sigma^2)

    T is `shift_and_flip`. The pair G(z), G(z + n) has no style mixing and the same layer noise, so that it differs in z
    only. The squared distance of images is a mean over pixels.
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
        """G(z) and G(z + n), for the latents z of the fake images `shown`."""
        z = shown.z
        first, second = (
            self.G.synthesis(self.G.mapping(latents, shown.c, skip_w_avg_update=True), noise_mode="const")
            for latents in (z, z + self.options["sigma"] * torch.randn_like(z)))
        return first, second


@rival
class CrossScale(Rival):
    """The same score at two scales: L_D += weight (D(x) - D(x'))^2, for real and fake x.

    For a fake image, x' is the image that G's skip connections have summed up at half the resolution. For a real image,
    x' is the mean of 2 x 2 pixels. Both are enlarged bilinearly and augmented.
    """

    kind = "cross-scale"

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        self.res = self.config.dataset.resolution // 2
        self.states = [self.res]

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        coarse = F.avg_pool2d(shown.clean, 2) if kind == "real" else shown.states[self.res].img
        large = F.interpolate(coarse.to(torch.float32), scale_factor=2, mode="bilinear", align_corners=False)
        other = judge(judge.show(large, shown.c).img, shown.c)
        return self.options["weight"] * (out.logits - other.logits).square().flatten()


@rival
class FSMR(Rival):
    """Feature statistics mixing (FSMR: Kim et al., CVPR 2022): L_D += weight (D(x) - D_FSM(x))^2, for real and fake x.

    D_FSM interpolates the statistics of the feature maps h of each block with those of another image of the batch:
    a h + (1 - a) (sigma' (h - mu) / sigma + mu'), with a ~ U(0, 1) for each image. The authors mix after each
    convolution, and take the other image's statistics from a pass without mixing.
    """

    kind = "fsmr"

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        with self._mixing(len(shown.img)):
            mixed = judge(shown.img, shown.c)
        return self.options["weight"] * (out.logits - mixed.logits).square().flatten()

    @contextlib.contextmanager
    def _mixing(self, n: int) -> Iterator[None]:
        other = torch.randperm(n)

        def mix(module: torch.nn.Module, inputs: Any, outputs: Any) -> Any:
            return mix_statistics(outputs[0], other, torch.rand([n, 1, 1, 1], device=outputs[0].device)), outputs[1]

        hooks = [getattr(self.D, f"b{res}").register_forward_hook(mix) for res in self.D.block_resolutions]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def mix_statistics(h: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Interpolate feature maps with copies that have the statistics of other images.

    Args:
        h:     [N, C, H, W].
        other: int64 [N], the other image of each image.
        share: [N, 1, 1, 1], weight of the unchanged feature maps, 0 to 1.
    """
    x = h.to(torch.float32)
    mean = x.mean([2, 3], keepdim=True)
    deviation = (x.var([2, 3], keepdim=True, unbiased=False) + 1e-5).sqrt()
    styled = (x - mean) / deviation * deviation[other] + mean[other]
    return styled.lerp(x, share).to(h.dtype)
