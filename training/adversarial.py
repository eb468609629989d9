"""Adversarial losses: how D's logits of real and fake images become the losses of G and D.

`StyleGAN2Loss` knows no loss by name. A new one is a class with the decorator `adversarial_loss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:  # the names of the losses are choices of train.py, whose --help doesn't wait for PyTorch
    from torch import Tensor


class AdversarialLoss(Protocol):
    """Functions of logits [N, 1], each giving a loss [N, 1].

    Where `paired` is false, fake and real images enter separate terms, so that their graphs are never held at the same
    time: D's loss is `d_fake` and then `d_real`, whose `fake` carries no gradient. Where it is true, it carries one.
    """

    kind: ClassVar[str]
    paired: ClassVar[bool]
    penalties: ClassVar[tuple[str, ...]]    # Gradient penalties of D, in `penalties.PENALTIES`: "r1", "r2", "gp".

    def g(self, fake: Tensor, real: Tensor | None) -> Tensor:
        """G's loss; `real` carries no gradient, and is None unless `paired`."""
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

    That is R3GAN's loss (Huang et al., NeurIPS 2024, Eq. 2). R3GAN has other networks, and penalties in every
    iteration; here they are lazy, as all regularisation is.
    """

    kind = "relativistic"
    paired = True
    penalties = ("r1", "r2")

    def g(self, fake: Tensor, real: Tensor) -> Tensor:
        return _softplus(real - fake)

    def d_fake(self, fake: Tensor) -> Tensor:
        return fake.new_zeros(fake.shape)   # All of it is in pairs.

    def d_real(self, real: Tensor, fake: Tensor) -> Tensor:
        return _softplus(fake - real)


@adversarial_loss
class Wasserstein:
    """WGAN-GP (Gulrajani et al., NIPS 2017, Eq. 3): scores without a bound, D's gradient between images near 1.

    The authors train D five times for each step of G, without minibatch deviation, and with the penalty in every
    iteration. Here the iteration is StyleGAN2's.
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
