"""Gradient penalties of D: on which images, and how the gradient of D's scores counts.

An adversarial loss names those that belong to it (`adversarial.AdversarialLoss.penalties`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

import torch

from torch_utils.ops import conv2d_gradfix

from .networks import DiscriminatorOutput

if TYPE_CHECKING:
    from .loss import Batch
    from .tasks import Shown

Tensor = torch.Tensor
Again = Callable[[Tensor], "tuple[DiscriminatorOutput, Shown]"]     # Of images before augmentation.
Judge = Callable[..., DiscriminatorOutput]                          # Of images after it, and labels.


def input_gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, differentiable; no weight's gradient is computed on the way."""
    with conv2d_gradfix.no_weight_gradients():
        (grads,) = torch.autograd.grad(y, x, create_graph=True)
    return grads


class R1:
    """gamma / 2 |dD(x)/dx|^2 on real images (Mescheder et al., ICML 2018, Eq. 9)."""

    name = "r1"     # In statistics, "Loss/r1_penalty".
    kind = "real"   # Of images, in statistics of scores.
    scale = 1 / 2   # Of gamma.

    def images(self, batch: Batch, generate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Images [N, C, R, R] before augmentation, and their labels."""
        return batch.real_img, batch.real_c

    def value(self, squared_norms: Tensor) -> Tensor:
        return squared_norms

    def of(self, img: Tensor, again: Again, judge: Judge) -> tuple[Tensor, DiscriminatorOutput, Shown]:
        """The penalty [N], and D's output with what it was shown."""
        img.requires_grad_()
        with conv2d_gradfix.second_order():
            out, shown = again(img)
            grads = input_gradient(out.logits.sum(), img)
        return self.value(grads.square().sum([1, 2, 3])), out, shown


class R2(R1):
    """The same on fake images (Mescheder et al., ICML 2018, Eq. 10)."""

    name, kind = "r2", "fake"

    def images(self, batch: Batch, generate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        return generate(), batch.gen_c


class Interpolates(R1):
    """lambda (|dD(x)/dx| - 1)^2 between real and fake images (WGAN-GP: Gulrajani et al., NIPS 2017, Eq. 3)."""

    name, kind, scale = "gp", "mixed", 1.0

    def images(self, batch: Batch, generate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        share = torch.rand([len(batch.real_img), 1, 1, 1], device=batch.real_img.device)
        return generate().lerp(batch.real_img, share), batch.real_c

    def value(self, squared_norms: Tensor) -> Tensor:
        return ((squared_norms + 1e-12).sqrt() - 1).square()    # the root has no derivative at 0


class Finite(R1):
    """The squared gradient along one random direction n ~ N(0, I), by ((D(x + eps n) - D(x)) / eps)^2.

    Its expectation over n is |dD(x)/dx|^2 + O(eps^2), its variance 2 |dD(x)/dx|^4 + O(eps^2) for each image. It needs
    no second derivatives. It differs from R1 in what augmentation and minibatch deviation do: x is the augmented image,
    and the influence of an image on the scores of others is added up as squares.
    """

    eps = 1e-3      # At 1e-2, the curvature of trained nets adds 6 %; half precision keeps no digit of the difference.

    def __init__(self, exact: R1):
        self.name, self.kind, self.scale, self.exact = exact.name, exact.kind, exact.scale, exact

    def images(self, batch: Batch, generate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        return self.exact.images(batch, generate)

    def of(self, img: Tensor, again: Again, judge: Judge) -> tuple[Tensor, DiscriminatorOutput, Shown]:
        out, shown = again(img)
        moved = judge(shown.img + self.eps * torch.randn_like(shown.img), shown.c)
        return ((moved.logits - out.logits) / self.eps).square().flatten(), out, shown


PENALTIES: dict[str, type[R1]] = {"r1": R1, "r2": R2, "gp": Interpolates}


def build_penalties(names: tuple[str, ...], *, finite: bool = False) -> list[R1]:
    return [Finite(PENALTIES[name]()) if finite else PENALTIES[name]() for name in names]
