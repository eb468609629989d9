"""What a run has to remember: capturing it as tensors and plain data, and going on from it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from dnnlib.util import UserError
from torch_utils import distributed, training_stats

from .config import to_json
from .evaluation import report_sizes, scores_since

if TYPE_CHECKING:
    from .training_loop import Trainer


def capture(trainer: Trainer) -> dict[str, Any]:
    """Everything that going on needs. The tensors are those of the run, not copies. All ranks call this together."""
    t = trainer
    if t.ada is not None:
        t.ada.settle()
    return {
        "config": to_json(t.config),
        "dataset": t.dataset.fingerprint,
        "progress": dataclasses.asdict(t.progress),
        "networks": {name: net.state_dict() for name, net in t.parts.items() if net is not None},
        "optimizers": {phase.name[0]: phase.opt.state_dict()["state"] for phase in t.phases},   # G and D have one each
        "pl_mean": t.loss.pl_mean,
        "ada_signs": None if t.ada is None else t.ada.signs(),
        "bad_gradients": t.guard.state(),
        "stats": training_stats.pending(),
        "log": t.log.state(t.progress.nimg),
        "unfinished_tick": t.unfinished_tick,
        "saved": None if t.saved is None else t.saved.name,
        "report_sizes": report_sizes(t.config.metrics, t.run_dir),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Bring a trainer with new networks to the state that `capture` gave, perhaps on another number of ranks.

    Raises:
        UserError: The images are not those that the run was trained on.
    """
    t = trainer
    if state["dataset"] != t.dataset.fingerprint:
        raise UserError(f"the images in {t.dataset.path} are not those that {t.run_dir} was trained on")
    for name, tensors in state["networks"].items():
        t.parts[name].load_state_dict(tensors)
    for phase in t.phases:
        groups = phase.opt.state_dict()["param_groups"]     # settings are those of this run and this device
        phase.opt.load_state_dict({"state": state["optimizers"][phase.name[0]], "param_groups": groups})
        _lay_out(phase.opt)
    t.loss.pl_mean = state["pl_mean"].to(t.device)
    t.guard.restore(state["bad_gradients"])
    first = distributed.rank() == 0     # where what was summed over all ranks goes on
    if t.ada is not None:
        t.ada.restore(state["ada_signs"] if first else torch.zeros(2))
    training_stats.restore(state["stats"] if first else {name: [0.0] * 3 for name in state["stats"]})
    t.unfinished_tick = state["unfinished_tick"]
    t.saved = None if state["saved"] is None else t.run_dir / state["saved"]
    t.known_scores = distributed.from_rank0(scores_since(state["report_sizes"], t.run_dir, state["saved"]))


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the layout in memory of their parameters, as a fused optimiser wants it; with another --nhwc, those
    of a state have another one."""
    for param, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == param.shape and moment.stride() != param.stride():
                moments[name] = torch.empty_like(param).copy_(moment)
