"""Adaptive strength of augmentation (ADA: Karras et al., NeurIPS 2020, section 3)."""

from typing import Any

import torch

from torch_utils import distributed, state
from torch_utils.host_copy import HostCopies, host_copy

from .augment import AugmentOutput, AugmentPipe
from .config.schema import TrainingConfig, augment_kwargs


class AdaController:
    """Sets the strength p of augmentation so that r_t = E[sign(D(x))], over real images x, stays at a target (Eq. 1).

    The more D overfits, the surer it is of its training images, and the nearer r_t is to 1. p moves by constant steps:
    up if r_t is above the target, and down if it is below, but never below 0.

    Transforms are drawn on the host, so p is needed there. The copy of the statistic starts when an iteration ends, and
    is awaited where p is used next. By then the device has work to do, the next iteration's first pass of G, so that
    waiting costs nothing.
    """

    def __init__(
        self,
        pipe: AugmentPipe,
        *,
        target: float,          # Of r_t.
        step: float,            # By which p changes, up or down, at an adjustment.
        device: torch.device,   # Of the logits.
    ):
        self.pipe = pipe
        self.target = target
        self.step = step
        self._logits: list[torch.Tensor] = []   # Of real images, since the last adjustment.
        self._earlier = torch.zeros([2], dtype=torch.float32, device=device)    # `signs` of those before a resume.
        self._sent: HostCopies | None = None     # The statistic of an adjustment that has not reached p yet.

    def run(self, images: torch.Tensor, maps: dict[int, torch.Tensor]) -> AugmentOutput:
        """Augment with the present p; see `AugmentPipe.run`."""
        self.settle()
        return self.pipe.run(images, maps)

    def observe(self, logits: torch.Tensor) -> None:
        """Count D's logits of real images, a tensor of any shape. Nothing waits for the device."""
        self._logits.append(logits.detach().flatten())

    def signs(self) -> torch.Tensor:
        """float32 [2]: number and sum of signs since the last adjustment, over all ranks, which call this together."""
        signs = torch.cat([*self._logits, self._earlier.new_empty([0])]).sign()
        num = torch.full([], float(len(signs)), device=signs.device)
        return distributed.all_reduce_sum_(self._earlier + torch.stack([num, signs.sum()]))

    def state_dict(self) -> dict[str, Any]:
        """The statistic. p, which is brought up to date, is a buffer of the pipe."""
        self.settle()
        return {"signs": self.signs()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; what was observed before is forgotten."""
        state.check(states, {"signs": torch.zeros([2])})
        self._logits.clear()
        self._earlier = torch.zeros_like(self._earlier)
        if distributed.rank() == 0:     # takes the sum of all ranks
            self._earlier.copy_(states["signs"])
        self._sent = None

    def adjust(self) -> None:
        """Move p by one step, the same on all ranks, and reset the statistic. Nothing waits for the device."""
        self.settle()
        self._sent = host_copy(self.signs())
        self._logits.clear()
        self._earlier = torch.zeros_like(self._earlier)

    def settle(self) -> None:
        """Bring p up to date."""
        if self._sent is None:
            return
        num, total = self._sent.wait().tolist()
        self._sent = None
        excess = total - self.target * num
        if excess:
            step = self.step if excess > 0 else -self.step
            self.pipe.p.copy_(torch.clamp(self.pipe.p + step, min=0))


def build_augmentation(
    config: TrainingConfig, device: torch.device
) -> tuple[AugmentPipe | None, AdaController | None]:
    """The pipe that `config.augment` describes, at its initial strength, and with "ada" its controller."""
    c = config.augment
    if c is None:
        return None, None
    pipe = AugmentPipe(**augment_kwargs(config)).train().requires_grad_(False).to(device)
    pipe.p.fill_(c.p)
    if c.mode == "fixed":
        return pipe, None
    step = config.batch_size * c.interval / (c.ada_kimg * 1000)
    return pipe, AdaController(pipe, target=c.target, step=step, device=device)


def current_strength(pipe: AugmentPipe | None, ada: AdaController | None) -> float:
    """The present p of what `build_augmentation` gave; 0 without augmentation."""
    if ada is not None:
        ada.settle()
    return 0.0 if pipe is None else float(pipe.p)
