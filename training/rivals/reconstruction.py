"""Rivals that rebuild images in another way than GLeaD."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib.util import UserError

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, Rival, rival

Tensor = torch.Tensor


@rival
class ThroughG(Rival):
    """Reconstruction trains G, too: L_G += share lambda 2 L_per(G(z), G(f, w)). GLeaD freezes G there (Eq. 5 and 6).

    Gradients reach G by what it rebuilds, by its own image in D's eyes, and by the image to be rebuilt.
    """

    kind = "through-g"
    decodes = True

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        if not self.tasks[1]:
            raise UserError("through-g repeats the task on generated images, and --lambda-fake is 0: leave out one")

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        (task,) = self.tasks[1]
        return self.options["share"] * task.weight * task.loss(out, shown)
