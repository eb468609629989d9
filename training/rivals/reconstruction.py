"""Rivals that rebuild images in another way than GLeaD."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..networks import DiscriminatorOutput
from ..tasks import Shown, resynthesise
from .base import Judge, Rival, rival

Tensor = torch.Tensor


@rival
class ThroughG(Rival):
    """Reconstruction trains G, too: L_G += share lambda 2 L_per(G(z), G(f, w)). GLeaD freezes G there (Eq. 5 and 6).

    Gradients reach G by what it rebuilds, by its own image in D's eyes, and by the image to be rebuilt.
    """

    kind = "through-g"
    decodes = ("G",)

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        (task,) = self.tasks[1]
        return self.options["share"] * task.weight * task.loss(out, shown)


@rival
class EditedReconstruction(Rival):
    """After an edit of w, too: L_D += share lambda 2 L_per(x', G(f', w')), with f' and w' of D for the edited image x'.

    x' = G(f, w + strength (w_2 - w)), of D's f and w for a fake image, and G's w_2 for another latent. No gradient
    passes through x'. No paper has it.
    """

    kind = "edited"
    decodes = ("fake",)

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        if kind == "real":
            return None
        (task,), z = self.tasks[1], torch.randn_like(shown.z)
        with torch.no_grad():
            w = self.G.mapping(z, shown.c, skip_w_avg_update=True)[:, 0]
            moved = out._replace(w=out.w.lerp(w, self.options["strength"]))
            edited = judge.show(resynthesise(self.G, moved, res_g=self.config.D.res_g).img, shown.c)
        again = judge(edited.img, edited.c, decode=True)
        return self.options["share"] * task.weight * task.loss(again, edited)


@rival
class FeatureReconstruction(Rival):
    """G's features are rebuilt, too: L_D += weight mean over r of (1 - cos(x_r, x'_r)), for fake images.

    x_r are G's feature maps of the image, x'_r those of what G makes of D's (f, w), at each resolution r above that of
    f. No paper has it: it is GGDR's distance (Lee et al., ECCV 2022) behind GLeaD's reconstruction (Eq. 5 and 6).
    """

    kind = "g-features"
    decodes = ("fake",)

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        self.res_g = self.config.D.res_g
        self.states = [res for res in self.G.synthesis.block_resolutions if res > self.res_g]

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        if kind == "real":
            return None
        rebuilt = resynthesise(self.G, out, res_g=self.res_g, keep=self.states).states
        errors = [1 - F.cosine_similarity(rebuilt[res].x.float(), shown.states[res].x.detach().float()).mean([1, 2])
                  for res in self.states]
        return self.options["weight"] * torch.stack(errors).mean(0)
