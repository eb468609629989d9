"""Exponential moving average of the generator's weights."""

import torch


def ema_beta(*, batch_size: int, cur_nimg: int, ema_kimg: float, ema_rampup: float | None) -> float:
    """Decay per iteration. The half-life is `ema_kimg`, but at most `ema_rampup` * `cur_nimg` images."""
    half_life_nimg = ema_kimg * 1000
    if ema_rampup is not None:
        half_life_nimg = min(half_life_nimg, cur_nimg * ema_rampup)
    return 0.5 ** (batch_size / max(half_life_nimg, 1e-8))


@torch.no_grad()
def update_ema(G_ema: torch.nn.Module, G: torch.nn.Module, beta: float) -> None:
    """Set the parameters to `beta * G_ema + (1 - beta) * G`, and copy the buffers of G."""
    torch._foreach_lerp_(list(G_ema.parameters()), list(G.parameters()), 1 - beta)
    if buffers := list(G_ema.buffers()):
        torch._foreach_copy_(buffers, list(G.buffers()))
