"""Rivals that add a term of D's scores alone."""

from __future__ import annotations

import torch

from .base import Rival, rival

Tensor = torch.Tensor


@rival
class Centring(Rival):
    """weight (D(x) + D(G(z)))^2: scores of real and fake images lie around 0, so that neither drifts away.

    The simplest rival to fairer scores; nobody published it. Each fake image is paired with the real one of its number.
    """

    kind = "centring"
    paired = True

    def pair(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.options["weight"] * (real + fake).square()
