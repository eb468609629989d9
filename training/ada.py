"""Adaptive strength of augmentation (ADA: Karras et al., NeurIPS 2020, section 3)."""

from typing import Any

import torch

from torch_utils import distributed, state
from torch_utils.host_copy import HostCopies, host_copy

from .augment import AugmentOutput, AugmentPipe
from .config.schema import TrainingConfig, augment_kwargs


class AdaController:
    """Sets the strength p of augmentation so that r_t = E[sign(D(x))], over real images x, stays at a target (Eq. 1).

    The more D overfits, the more confident it is on training images, and the closer r_t is to 1. p moves by constant
    steps: up if r_t is above the target, and down if it is below, but never below 0.

    Transforms are drawn on the host, so the host needs p. The copy of the statistic to the host starts when an
    iteration ends. The host waits for it just before p is used again. The device is then busy with the next iteration's
    first pass of G, so the wait costs no time.
    """

    def __init__(
        self,
        pipe: AugmentPipe,
        *,
        target: float,          # The target of r_t.
        step: float,            # How much p changes at an adjustment.
        device: torch.device,   # Where the logits are.
    ):
        self.pipe = pipe
        self.target = target
        self.step = step
        self._logits: list[torch.Tensor] = []   # Of real images, since the last adjustment or resume.
        self._earlier = torch.zeros([2], dtype=torch.float32, device=device)    # `signs` from before a resume.
        self._sent: HostCopies | None = None     # The statistic of an adjustment that p does not include yet.

    def run(self, images: torch.Tensor, maps: dict[int, torch.Tensor]) -> AugmentOutput:
        """Augment with the present p; see `AugmentPipe.run`."""
        self.settle()
        return self.pipe.run(images, maps)

    def observe(self, logits: torch.Tensor) -> None:
        """Count D's logits of real images, a tensor of any shape. Does not wait for the device."""
        self._logits.append(logits.detach().flatten())

    def signs(self) -> torch.Tensor:
        """float32 [2]: number and sum of the signs since the last adjustment, over all ranks. All ranks call this."""
        signs = torch.cat([*self._logits, self._earlier.new_empty([0])]).sign()
        num = torch.full([], float(len(signs)), device=signs.device)
        return distributed.all_reduce_sum_(self._earlier + torch.stack([num, signs.sum()]))

    def state_dict(self) -> dict[str, Any]:
        """The statistic. p is a buffer of the pipe, and is brought up to date here."""
        self.settle()
        return {"signs": self.signs()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore the result of `state_dict`. All ranks get the same statistic; only rank 0 keeps it."""
        state.check(states, {"signs": torch.zeros([2])})
        self._logits.clear()
        self._earlier = torch.zeros_like(self._earlier)
        if distributed.rank() == 0:     # `signs` adds up all ranks, and the state holds their sum
            self._earlier.copy_(states["signs"])
        self._sent = None

    def adjust(self) -> None:
        """Start to move p by one step, the same on all ranks, and reset the statistic. Does not wait for the device."""
        self.settle()
        self._sent = host_copy(self.signs())
        self._logits.clear()
        self._earlier = torch.zeros_like(self._earlier)

    def settle(self) -> None:
        """Bring p up to date. Waits for the statistic of the last adjustment."""
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
    """Build the pipe that `config.augment` describes, with its initial p; in mode "ada", its controller, too."""
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
    """The current p of a pipe and its controller from `build_augmentation`; 0 without augmentation."""
    if ada is not None:
        ada.settle()
    return 0.0 if pipe is None else float(pipe.p)
