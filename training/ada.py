"""Adaptive strength of augmentation (ADA: Karras et al., NeurIPS 2020, section 3)."""

import torch

from torch_utils import distributed

from .augment import AugmentPipe
from .config import TrainingConfig, augment_kwargs


class AdaController:
    """Sets the strength p of augmentation so that r_t = E[sign(D(x))], over real images x, stays at a target (Eq. 1).

    The more D overfits, the surer it is of the images that it is trained on, and the nearer r_t is to 1. p moves by
    constant steps, up if r_t is above the target and down if it is below, but never below 0.
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
        # Number and sum of signs since the last adjustment; with p, all the state there is.
        self.signs = torch.zeros([2], dtype=torch.float32, device=device)

    def observe(self, logits: torch.Tensor) -> None:
        """Take note of what D says of real images: logits of any shape. Nothing waits for the device."""
        signs = logits.detach().sign()
        self.signs += torch.stack([torch.ones_like(signs).sum(), signs.sum()]).to(self.signs.dtype)

    def adjust(self) -> None:
        """Move p by one step, the same on all ranks; the statistic starts anew. Waits for the device."""
        distributed.all_reduce_sum_(self.signs)
        num, total = self.signs.tolist()
        self.signs.zero_()
        excess = total - self.target * num
        if excess:
            step = self.step if excess > 0 else -self.step
            self.pipe.p.copy_(torch.clamp(self.pipe.p + step, min=0))


def build_augmentation(
    config: TrainingConfig, device: torch.device
) -> tuple[AugmentPipe | None, AdaController | None]:
    """What `config.augment` asks for: the pipe at its initial strength, and with "ada" what adapts it."""
    c = config.augment
    if c is None:
        return None, None
    pipe = AugmentPipe(**augment_kwargs(config)).train().requires_grad_(False).to(device)
    pipe.p.fill_(c.p)
    if c.mode == "fixed":
        return pipe, None
    step = config.batch_size * c.interval / (c.ada_kimg * 1000)
    return pipe, AdaController(pipe, target=c.target, step=step, device=device)
