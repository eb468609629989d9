"""Rivals that change the reconstruction of GLeaD, or add to it."""

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

    Gradients reach G by three ways: its reconstruction, the fake image as input of D, and the fake image as the target.
    """

    kind = "through-g"
    decodes = ("G",)

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor:
        (task,) = self.tasks[1]
        return self.options["share"] * task.weight * task.loss(out, shown)


@rival
class EditedReconstruction(Rival):
    """D also extracts edited images: L_D += share lambda 2 L_per(x', G(f', w')), where D extracts f' and w' from x'.

    x' = G(f, w + strength (w_2 - w)) is a fake image, rebuilt from D's f and w, with w moved towards the w_2 of another
    latent. No gradient passes through x'. There is no paper on it.
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

    x_r are G's feature maps of a fake image, and x'_r those of its reconstruction, at each resolution r above that of
    f. There is no paper on it. It applies GGDR's distance (Lee et al., ECCV 2022) to GLeaD's reconstruction.
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
