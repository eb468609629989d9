"""What a run has to remember: capturing it as tensors and plain data, and going on from it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dnnlib.util import UserError
from torch_utils import distributed, training_stats

from .config.schema import to_json
from .runs.evaluation import report_sizes, scores_since
from .runs.run_log import Progress
from .runs.training_state import clear_way, find_state, pickle_kimg

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
        **t.pickles.state(),
        "report_sizes": report_sizes(t.config.metrics, t.run_dir),
    }


_MISSING = object()
_NUMBER = (int, float)
_RECORD = {str: {"mean": _NUMBER}}      # Of a tick, in stats.jsonl.
_CONTENT = {                            # Of a state, as `_misfit` reads it.
    "dataset": str,
    "progress": {field.name: int for field in dataclasses.fields(Progress)},
    "networks": {str: {str: torch.Tensor}},
    "optimizers": {str: {int: {str: torch.Tensor}}},
    "pl_mean": torch.Tensor,
    "ada_signs": (torch.Tensor, type(None)),
    "bad_gradients": torch.Tensor,
    "stats": {str: [_NUMBER]},
    "log": {"elapsed_sec": _NUMBER, "tick_start_nimg": int, "start_nimg": int, "record": _RECORD,
            "unwritten": [_RECORD]},
    "unfinished_tick": (bool, type(None)),
    "saved": (str, type(None)),
    "report_sizes": {str: int},
}


def find(run_dir: Path, wanted: str) -> dict[str, Any]:
    """What `find_state` finds.

    Raises:
        UserError: There is no good state; or something is missing in it, or is of another kind than it must be.
    """
    state = find_state(run_dir, wanted)
    misfit = _misfit(state, _CONTENT)
    if misfit is None:
        name = state["saved"]
        fine = {"progress": min(state["progress"].values()) >= 0,
                "stats": all(len(moments) == 3 for moments in state["stats"].values()),
                "saved": not state["unfinished_tick"] if name is None else pickle_kimg(name) is not None}
        misfit = next((name for name, ok in fine.items() if not ok), None)
    _refuse(state, misfit)
    return state


def _refuse(state: dict[str, Any], misfit: str | None) -> None:
    if misfit is not None:
        raise UserError(f"training state {state['path']} does not fit this run: {misfit} is missing, or of another "
                        "kind or shape. Resume from another state (--resume=FILE), or start a new run")


def _misfit(found: Any, expected: Any, where: str = "its content") -> str | None:
    """The name of the first thing that is not as expected, if any.

    Args:
        expected: A type or some types; a tensor, of which shape and type are compared; [x], a list of what x describes;
                  {type: x}, a dict of such keys and of what x describes; or {name: x, ...}, a dict of at least that.
    """
    if isinstance(expected, torch.Tensor):
        like = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
        return None if like else where
    if not isinstance(expected, (dict, list)):
        return None if isinstance(found, expected) else where
    if not isinstance(found, type(expected)):
        return where
    if isinstance(expected, list):
        parts = [(f"{where}[{i}]", item, expected[0]) for i, item in enumerate(found)]
    elif isinstance(kind := next(iter(expected), None), type):
        if not all(isinstance(key, kind) for key in found):
            return where
        parts = [(f"{where}.{key}", value, expected[kind]) for key, value in cast(dict, found).items()]
    else:
        parts = [(f"{where}.{key}", cast(dict, found).get(key, _MISSING), value) for key, value in expected.items()]
    misfits = (_misfit(value, pattern, name.removeprefix("its content.")) for name, value, pattern in parts)
    return next((misfit for misfit in misfits if misfit is not None), None)


def _misfit_of_weights(trainer: Trainer, state: dict[str, Any]) -> str | None:
    t, networks, optimizers = trainer, state["networks"], state["optimizers"]
    ours = {name: dict(net.state_dict()) for name, net in t.parts.items() if net is not None}
    for name in networks.keys() | ours.keys():
        if networks.get(name, {}).keys() != ours.get(name, {}).keys():
            return f"networks.{name}"
    for phase in t.phases:
        params, moments = phase.opt.param_groups[0]["params"], optimizers.get(phase.name[0])
        if moments is None or not set(moments) <= set(range(len(params))):
            return f"optimizers.{phase.name[0]}"
        like = {i: {"step": torch.zeros([]), "exp_avg": params[i], "exp_avg_sq": params[i]} for i in moments}
        if misfit := _misfit(moments, like, f"optimizers.{phase.name[0]}"):
            return misfit
    rest = {"networks": ours, "pl_mean": t.loss.pl_mean, "bad_gradients": t.guard.state(),
            "ada_signs": type(None) if t.ada is None else torch.zeros([2])}
    return _misfit(state, rest)


def restore(trainer: Trainer, state: dict[str, Any], *, anyway: bool) -> None:
    """Bring a trainer with new networks to a state, perhaps on another number of ranks, which call this together.

    Args:
        state:  From `find`.
        anyway: Resume with other images than those of the run, too.

    Raises:
        UserError: The images are not those that the run was trained on, or the state has other networks.
    """
    t = trainer
    _refuse(state, _misfit_of_weights(t, state))
    if state["dataset"] != t.dataset.fingerprint:
        problem = f"the images in {t.dataset.path} are not those that {t.run_dir} was trained on"
        if not anyway:
            hint = (" (needed once after an update, if the run began with a version that compared the times of files)"
                    if os.path.isdir(t.dataset.path) else "")
            raise UserError(f"{problem}: give the right ones with --data, or say --resume-anyway to take these{hint}")
        distributed.print0(f"Warning: {problem}: resuming with these all the same")
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
    t.pickles.restore(state, t.progress.nimg if t.unfinished_tick else None)
    if t.unfinished_tick:
        t.known_scores = distributed.from_rank0(scores_since(state["report_sizes"], t.run_dir, state["saved"]))
    distributed.any_rank(False)     # all of them have restored it
    if first:
        clear_way(t.run_dir, t.progress.nimg)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the layout in memory of their parameters, as a fused optimiser wants it; with another --nhwc, those
    of a state have another one."""
    for param, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == param.shape and moment.stride() != param.stride():
                moments[name] = torch.empty_like(param).copy_(moment)
