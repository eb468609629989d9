"""Training phases: which loss updates which network, how often, and how gradients are processed."""

import dataclasses
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch

from dnnlib.util import UserError
from torch_utils import distributed
from torch_utils.host_copy import HostCopies, host_copy
from torch_utils.state import Misfit, check

from .config.schema import OptimizerConfig, TrainingConfig
from .loss import Batch, StyleGAN2Loss

MAX_BAD_ITERATIONS = 100    # A run stops after this many iterations in a row with non-finite gradients.
CHECK_INTERVAL = 10         # Iterations from one check of the gradients to the next.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    name: str
    module: torch.nn.Module                             # The network that it updates; other phases may share it.
    opt: torch.optim.Optimizer
    loss: Callable[[Batch], Iterator[torch.Tensor]]
    interval: int                                       # Iterations from one run of the phase to the next.
    gain: float                                         # Factor of its loss.
    finish: Callable[[], None] = lambda: None           # Called after the loss of all parts of the batch.

    def backward(self, parts: Iterable[Batch], *, num: int) -> None:
        """Compute the gradients of a batch, given as `num` parts."""
        self.opt.zero_grad(set_to_none=True)
        for batch in parts:
            for term in self.loss(batch):
                (term * (self.gain / num)).backward()


def build_phases(config: TrainingConfig, loss: StyleGAN2Loss) -> list[Phase]:
    """Gmain, Greg, Dmain, Dreg, in the order in which they run.

    Regularisation is lazy (StyleGAN2, appendix B): it runs every k-th iteration with k times its weight. It shares the
    optimiser of the main loss, whose settings are corrected for k + 1 steps in k iterations. A regularisation with
    weight 0 has no phase.
    """
    c = config
    G_opt = _adam(loss.G, c.G_opt, c.g_reg_interval)
    D_opt = _adam(loss.D, c.D_opt, c.d_reg_interval)
    phases = [Phase(name="Gmain", module=loss.G, opt=G_opt, loss=loss.g_main, interval=1, gain=1)]
    if c.loss.pl_weight > 0:
        phases.append(Phase(name="Greg", module=loss.G, opt=G_opt, loss=loss.g_path_length,
                            interval=c.g_reg_interval, gain=c.g_reg_interval, finish=loss.update_pl_mean))
    phases.append(Phase(name="Dmain", module=loss.D, opt=D_opt, loss=loss.d_main, interval=1, gain=1,
                        finish=loss.rivals.step))
    if c.loss.r1_gamma > 0:
        phases.append(Phase(name="Dreg", module=loss.D, opt=D_opt, loss=loss.d_penalty,
                            interval=c.d_reg_interval, gain=c.d_reg_interval))
    return phases


def lazy_optimizer(config: OptimizerConfig, reg_interval: int) -> OptimizerConfig:
    """Adam's settings, corrected because regularisation adds a step to every `reg_interval` iterations."""
    ratio = reg_interval / (reg_interval + 1)
    return dataclasses.replace(config, lr=config.lr * ratio, beta1=config.beta1**ratio, beta2=config.beta2**ratio)


def _adam(module: torch.nn.Module, config: OptimizerConfig, reg_interval: int) -> torch.optim.Optimizer:
    c = lazy_optimizer(config, reg_interval)
    return torch.optim.Adam(module.parameters(), lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)


class AdamMoments:
    """The state of an optimiser: the step and Adam's two moments of each parameter, by the parameter's index.

    Settings, such as the learning rate, are not part of it. They come from the configuration of the current run.
    """

    def __init__(self, opt: torch.optim.Optimizer):
        self.opt = opt

    def state_dict(self) -> dict[int, dict[str, torch.Tensor]]:
        """Empty before the first step."""
        return self.opt.state_dict()["state"]

    def load_state_dict(self, state: dict[int, dict[str, torch.Tensor]]) -> None:
        """Restore the moments, in the memory layout of their parameters, which a fused optimiser needs.

        A state of a run with another --nhwc has another layout.
        """
        params = self.opt.param_groups[0]["params"]
        check(state, {int: dict})
        for number, moments in state.items():
            if not 0 <= number < len(params):
                raise Misfit(str(number))
            like = {"step": torch.zeros([]), "exp_avg": params[number], "exp_avg_sq": params[number]}
            check(moments, like, str(number))
        self.opt.load_state_dict({"state": state, "param_groups": self.opt.state_dict()["param_groups"]})
        for param, own in self.opt.state.items():
            for name, moment in own.items():
                if moment.shape == param.shape and moment.stride() != param.stride():
                    own[name] = torch.empty_like(param).copy_(moment)


def optimizer_moments(phases: Sequence[Phase]) -> dict[str, AdamMoments]:
    """The state of the optimisers of G and D, by "G" and "D"."""
    return {phase.name[0]: AdamMoments(phase.opt) for phase in phases}


class GradientGuard:
    """Averages gradients over ranks in one all-reduce, counts non-finite values, and replaces them.

    Counts stay on the device, so that the host does not wait for it.
    """

    def __init__(self, device: torch.device):
        self._zero = torch.zeros([], dtype=torch.int64, device=device)
        self._bad_now = self._streak = self._zero   # Non-finite values in this iteration; iterations in a row with any.
        self._sent: HostCopies | None = None     # The streak at the last check.

    @torch.no_grad()
    def process(self, module: torch.nn.Module) -> None:
        """Prepare the gradients of `module` for the optimiser. NaN becomes 0, and infinities become +-1e5.

        A parameter that the phase did not reach gets a gradient of 0, as in the published programs. Adam would skip a
        parameter without a gradient, but lazy regularisation (`lazy_optimizer`) assumes that every phase takes a step
        of every parameter.
        """
        params = list(module.parameters())
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        # Flatten in memory order, because a fused optimiser needs gradients in the layout of their parameters.
        flat = torch.cat([p.grad.as_strided([p.numel()], [1]) for p in params])
        distributed.all_reduce_mean_(flat)
        clean = torch.nan_to_num(flat, nan=0, posinf=1e5, neginf=-1e5)
        self._bad_now = self._bad_now + torch.count_nonzero(clean != flat)
        start = 0
        for p in params:
            p.grad = clean.as_strided(p.shape, p.stride(), start)
            start += p.numel()

    def end_iteration(self) -> torch.Tensor:
        """End an iteration. Returns the number of its non-finite gradient values, int64 [] on the device."""
        bad, self._bad_now = self._bad_now, self._zero
        self._streak = (self._streak + 1) * (bad > 0)
        return bad

    def state_dict(self) -> dict[str, Any]:
        """The state between iterations. It is the same on all ranks."""
        return {"streak": self._streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"streak": self._zero})
        self._streak = state["streak"].to(self._zero)
        self._sent = None

    def check(self) -> None:
        """Raise UserError if the streak had reached `MAX_BAD_ITERATIONS` non-finite iterations at the previous check.

        The number of the previous check has reached the host by now, so that nothing waits for the device.
        """
        before, self._sent = self._sent, host_copy(self._streak)
        bad = 0 if before is None else int(before.wait())
        if bad >= MAX_BAD_ITERATIONS:
            raise UserError(
                f"gradients have been non-finite for {bad} iterations in a row: training has diverged. Start again "
                "from an earlier snapshot (--resume) with a higher --gamma, or with --fp32=true"
            )
