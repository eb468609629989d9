"""A run in processes that torchrun started, on one or more machines."""

import contextlib
import os
import sys
from typing import Any, Callable

from dnnlib.util import UserError, is_url
from training.config.schema import TrainingConfig
from training.runs import resume

from . import launch

PREPARING_SEC = 3600    # The other processes wait at most this long for rank 0, which checks data and downloads nets.


def is_used() -> bool:
    """Whether torchrun, or something like it, started this process.

    Raises:
        UserError: Some of its environment variables are missing or invalid.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if given["RANK"] is None or given["WORLD_SIZE"] is None:
        return False
    if given["WORLD_SIZE"] == "1" and given["MASTER_ADDR"] is None:  # a cluster job of one process, or a notebook
        return False
    numbers = [given[name] for name in given if name != "MASTER_ADDR"]
    if None in given.values() or not all(map(str.isdecimal, numbers)) or int(numbers[0]) >= int(numbers[1]):
        found = [f"{name} is not set" if value is None else f"{name} is {value!r}" for name, value in given.items()]
        raise UserError("these variables tell the processes of a run apart, and don't fit together: "
                        f"{', '.join(found)}. Start with torchrun, which sets them all, or unset RANK and WORLD_SIZE")
    return True


def processes_here() -> int | None:
    """Number of the run's processes on this machine; None if it is unknown, or torchrun did not start this process."""
    here = os.environ.get("LOCAL_WORLD_SIZE") if is_used() else None
    return None if here is None else int(here)


Prepare = Callable[[dict[str, Any], dict[str, Any]], launch.Job | None]


def train(prepare: Prepare, command: dict[str, Any], said: dict[str, Any]) -> launch.Job | None:
    """Train as one of the processes. Rank 0 prepares the run and gets its job. Other ranks get None.

    Args:
        prepare: Makes a job from the other two arguments; returns None in a dry run.
        command: The options that were given, by name.
        said:    All options, with defaults for those that were not given.
    """
    import torch

    from torch_utils import distributed

    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if command.get("gpus") not in (None, size):
        raise UserError(f"--gpus is {command['gpus']}, but torchrun started {size} processes: leave out --gpus")
    device = said["device"]
    if device == "auto":  # all processes must choose the same one, and only rank 0 knows the run to resume
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"gpus": size, "device": device}
    job = prepare({**command, **found}, {**said, **found}) if rank == 0 else None
    if said["dry_run"]:
        return None
    try:
        distributed.join(device=device, timeout_sec=said["timeout"], rank0_sec=max(said["timeout"], PREPARING_SEC))
        job = launch.Job.from_json(distributed.from_rank0(job and job.to_json()))
        if "trust_net" in command:
            _trust_nets(job.config)
        with resume.locked(job.run_dir) if rank == 0 else contextlib.nullcontext():
            launch.run_rank(job)
    except UserError as e:
        if distributed.first_to_report(str(e)):
            print(f"Error: {e}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an ordinary exit would wait for communication with lost processes
    distributed.leave()
    return job if rank == 0 else None


def _trust_nets(config: TrainingConfig) -> None:
    """Remember that nets are trusted. `check_machine` did so on the machine of rank 0; others have their own cache."""
    from torch_utils.formats.feature_nets import trust_net

    for net in (config.perceptual, config.detector):
        if net is not None and (is_url(net) or os.path.isfile(net)):
            trust_net(net)
