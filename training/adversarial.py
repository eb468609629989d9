"""Adversarial losses: how D's logits of real and fake images become the losses of G and D.

`StyleGAN2Loss` looks them up in `ADVERSARIAL`. A new loss is a class with the decorator `adversarial_loss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:  # train.py --help lists the names of the losses, and must not wait for the import of PyTorch
    from torch import Tensor


class AdversarialLoss(Protocol):
    """Functions that map logits [N, 1] to a loss [N, 1].

    D's loss is the sum of `d_fake` and `d_real`. If `paired` is false, the caller calls backward on `d_fake` before it
    computes `d_real`, so that only one graph is in memory. `d_real` then gets detached `fake` logits. If `paired` is
    true, both terms share a graph, and gradients flow through `fake` in `d_real`.
    """

    kind: ClassVar[str]
    paired: ClassVar[bool]
    penalties: ClassVar[tuple[str, ...]]    # Gradient penalties of D, in `penalties.PENALTIES`: "r1", "r2", "gp".

    def g(self, fake: Tensor, real: Tensor | None) -> Tensor:
        """G's loss. `real` is detached; it is None unless `paired`."""
        ...

    def d_fake(self, fake: Tensor) -> Tensor: ...

    def d_real(self, real: Tensor, fake: Tensor) -> Tensor: ...


ADVERSARIAL: dict[str, type[AdversarialLoss]] = {}
T = TypeVar("T", bound="type[AdversarialLoss]")


def adversarial_loss(cls: T) -> T:
    """Class decorator: enters the class into `ADVERSARIAL` under its `kind`."""
    ADVERSARIAL[cls.kind] = cls
    return cls


def _softplus(x: Tensor) -> Tensor:
    from torch.nn.functional import softplus

    return softplus(x)


@adversarial_loss
class Logistic:
    """Non-saturating logistic loss (Goodfellow et al., NIPS 2014): L_G and L_D of GLeaD, Eq. 8 and 9."""

    kind = "logistic"
    paired = False
    penalties = ("r1",)

    def g(self, fake: Tensor, real: Tensor | None) -> Tensor:
        return _softplus(-fake)

    def d_fake(self, fake: Tensor) -> Tensor:
        return _softplus(fake)

    def d_real(self, real: Tensor, fake: Tensor) -> Tensor:
        return _softplus(-real)


@adversarial_loss
class Relativistic:
    """Each fake image is paired with a real one (Jolicoeur-Martineau, ICLR 2019), with R1 and R2.

    This is R3GAN's loss (Huang et al., NeurIPS 2024, Eq. 2). R3GAN has other networks, and computes the penalties in
    every iteration. Here they are lazy, like all regularisation.
    """

    kind = "relativistic"
    paired = True
    penalties = ("r1", "r2")

    def g(self, fake: Tensor, real: Tensor) -> Tensor:
        return _softplus(real - fake)

    def d_fake(self, fake: Tensor) -> Tensor:
        return fake.new_zeros(fake.shape)   # The whole loss is in `d_real`.

    def d_real(self, real: Tensor, fake: Tensor) -> Tensor:
        return _softplus(fake - real)


@adversarial_loss
class Wasserstein:
    """WGAN-GP (Gulrajani et al., NIPS 2017, Eq. 3): unbounded scores, and a gradient norm of D near 1.

    The authors take five steps of D for each step of G, without minibatch deviation, and with the penalty in every
    iteration. Here an iteration is that of StyleGAN2.
    """

    kind = "wgan-gp"
    paired = False
    penalties = ("gp",)

    def g(self, fake: Tensor, real: Tensor | None) -> Tensor:
        return -fake

    def d_fake(self, fake: Tensor) -> Tensor:
        return fake

    def d_real(self, real: Tensor, fake: Tensor) -> Tensor:
        return -real
