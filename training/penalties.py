"""Gradient penalties of D. Each chooses images, and turns the gradient of D's logits at them into a loss.

`adversarial.AdversarialLoss.penalties` names those of an adversarial loss.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Callable, ContextManager

import torch

from torch_utils.ops import conv2d_gradfix

if TYPE_CHECKING:
    from .loss import Batch
    from .rivals import Judge
    from .tasks import Shown

Tensor = torch.Tensor
Generate = Callable[["Batch"], "Shown"]     # Makes the fake images of a batch.


def input_gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, differentiable. Gradients of weights are not computed in this backward pass."""
    with conv2d_gradfix.no_weight_gradients():
        (grads,) = torch.autograd.grad(y, x, create_graph=True)
    return grads


class R1:
    """gamma / 2 |dD(x)/dx|^2 on real images (Mescheder et al., ICML 2018, Eq. 9)."""

    name = "r1"     # In statistics, "Loss/r1_penalty".
    kind = "real"   # The kind of images, in statistics of scores.
    scale = 1 / 2   # Factor of gamma.

    def images(self, batch: Batch, generate: Generate) -> tuple[Tensor, Tensor]:
        """Images [N, C, R, R] before augmentation, which require gradients, and their labels."""
        return batch.real_img.detach().requires_grad_(), batch.real_c

    def derivatives(self) -> ContextManager[None]:
        """A context for the forward pass of D and for `of`."""
        return conv2d_gradfix.second_order()

    def of(self, logits: Tensor, img: Tensor, shown: Shown, judge: Judge) -> Tensor:
        """The penalty [N], from D's logits [N, 1] of the images `img`, which D saw as `shown`."""
        return self.value(input_gradient(logits.sum(), img).square().sum([1, 2, 3]))

    def value(self, squared_norms: Tensor) -> Tensor:
        return squared_norms


class R2(R1):
    """R1 on fake images (Mescheder et al., ICML 2018, Eq. 10)."""

    name, kind = "r2", "fake"

    def images(self, batch: Batch, generate: Generate) -> tuple[Tensor, Tensor]:
        return generate(batch).clean.detach().requires_grad_(), batch.gen_c


class Interpolates(R1):
    """lambda (|dD(x)/dx| - 1)^2 between real and fake images (WGAN-GP: Gulrajani et al., NIPS 2017, Eq. 3)."""

    name, kind, scale = "gp", "mixed", 1.0

    def images(self, batch: Batch, generate: Generate) -> tuple[Tensor, Tensor]:
        share = torch.rand([len(batch.real_img), 1, 1, 1], device=batch.real_img.device)
        return generate(batch).clean.lerp(batch.real_img, share).detach().requires_grad_(), batch.real_c

    def value(self, squared_norms: Tensor) -> Tensor:
        return ((squared_norms + 1e-12).sqrt() - 1).square()    # the root has no derivative at 0


class Finite(R1):
    """Estimates |dD(x)/dx|^2 by finite differences along one random direction: ((D(x + eps n) - D(x)) / eps)^2.

    With n ~ N(0, I), the expectation is |dD(x)/dx|^2 + O(eps^2), and the variance 2 |dD(x)/dx|^4 + O(eps^2), for each
    image. No second derivatives are needed. There are two differences from the exact penalty: x is the image after
    augmentation, and the influence of an image on other images' scores, through minibatch deviation, is squared before
    it is summed.
    """

    eps = 1e-3      # At 1e-2, the curvature of trained nets adds 6 %. The difference is too small for half precision.

    def __init__(self, exact: R1):
        self.name, self.kind, self.scale, self.exact = exact.name, exact.kind, exact.scale, exact

    def images(self, batch: Batch, generate: Generate) -> tuple[Tensor, Tensor]:
        img, c = self.exact.images(batch, generate)
        return img.detach(), c

    def derivatives(self) -> ContextManager[None]:
        return contextlib.nullcontext()

    def of(self, logits: Tensor, img: Tensor, shown: Shown, judge: Judge) -> Tensor:
        moved = judge(shown.img + self.eps * torch.randn_like(shown.img), shown.c)
        return ((moved.logits - logits) / self.eps).square().flatten()


PENALTIES: dict[str, type[R1]] = {"r1": R1, "r2": R2, "gp": Interpolates}


def build_penalties(names: tuple[str, ...], *, finite: bool) -> list[R1]:
    """Build the named penalties, exactly or by finite differences."""
    return [Finite(PENALTIES[name]()) if finite else PENALTIES[name]() for name in names]
