"""Rivals that change the weights of D's tasks during training."""

from __future__ import annotations

from typing import Any

import torch

from torch_utils import distributed, training_stats
from torch_utils.state import check

from ..networks import DiscriminatorOutput
from ..tasks import Shown
from .base import Judge, WithClock, rival

Tensor = torch.Tensor


class Strength(WithClock):
    """Multiplies the weights of all tasks of D, lambda 1 and 2, by a strength, "Progress/lambda" in statistics."""

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        self._weights = [(task, task.weight) for tasks in self.tasks for task in tasks]

    def use(self, strength: float) -> None:
        self.strength = strength
        for task, weight in self._weights:
            task.weight = weight * strength

    def step(self) -> None:
        super().step()
        training_stats.report("Progress/lambda", self.strength)


@rival
class LambdaSchedule(Strength):
    """The strength moves linearly from `start` to `end` over `kimg` thousand images. There is no paper on it."""

    kind = "lambda-schedule"

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        self._follow()

    def step(self) -> None:
        super().step()
        self._follow()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._follow()

    def _follow(self) -> None:
        done = min(self.nimg / (1000 * self.options["kimg"]), 1)
        self.use(self.options["start"] + done * (self.options["end"] - self.options["start"]))


@rival
class AdaLambda(Strength):
    """Controls the strength as ADA controls augmentation (Karras et al., NeurIPS 2020).

    The strength starts at 1. Every 4 iterations it moves by a constant step, up if E[sign D(x)] over real images is
    above `target`, and down if it is below. It stays between 0 and `most`, and takes `kimg` thousand images from 0 to
    1. With a `gap` above 0, E[D(x)] - E[D(G(z))] is compared with the gap instead. There is no paper on it.
    """

    kind = "ada-lambda"
    interval = 4

    def __init__(self, *args: Any, **known: Any):
        super().__init__(*args, **known)
        self.use(1.0)
        # Number of real images, and sum of their signs or of gaps.
        self._seen = torch.zeros([2], device=next(self.D.parameters()).device)
        self.forget()

    def forget(self) -> None:
        self._of_batch = torch.zeros_like(self._seen)   # As `_seen`, for the current batch.

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> None:
        logits = out.logits.detach()
        num = torch.full([], float(len(logits)), device=logits.device)
        if kind == "real":
            total = (logits if self.options["gap"] else logits.sign()).sum()
            self._of_batch = self._of_batch + torch.stack([num, total])
        elif self.options["gap"]:
            self._of_batch = self._of_batch - torch.stack([num.new_zeros([]), logits.sum()])

    def step(self) -> None:
        super().step()
        self._seen = self._seen + self._of_batch
        self.forget()
        if self.nimg // self.config.batch_size % self.interval == 0:
            num, total = self._of_all_ranks().tolist()
            self._seen = torch.zeros_like(self._seen)
            excess = total - (self.options["gap"] or self.options["target"]) * num
            size = self.config.batch_size * self.interval / (1000 * self.options["kimg"])
            strength = self.strength + (size if excess > 0 else -size if excess < 0 else 0)
            self.use(min(max(strength, 0.0), float(self.options["most"])))

    def _of_all_ranks(self) -> Tensor:
        return distributed.all_reduce_sum_(self._seen.clone())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "strength": self.strength, "seen": self._of_all_ranks()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"nimg": int, "strength": float, "seen": torch.zeros([2])})
        self.nimg = state["nimg"]
        self._seen = torch.zeros_like(self._seen)
        if distributed.rank() == 0:     # the state holds the sum of all ranks
            self._seen.copy_(state["seen"])
        self.use(state["strength"])
