"""A run in processes that torchrun started, on any number of machines."""

import contextlib
import os
import sys
from typing import Any, Callable

from dnnlib.util import UserError, is_url

from . import launch
from .config.schema import TrainingConfig
from .runs import resume

PREPARING_SEC = 3600    # The others wait at most this long for the first process, which checks data and downloads nets.


def is_used() -> bool:
    """Whether this is one of several processes that something else started.

    Raises:
        UserError: Some of the variables that tell are missing, or are no numbers.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if given["RANK"] is None or given["WORLD_SIZE"] is None:
        return False
    if given["WORLD_SIZE"] == "1" and given["MASTER_ADDR"] is None:  # of a cluster's job of one process, or a notebook
        return False
    numbers = [given[name] for name in given if name != "MASTER_ADDR"]
    if None in given.values() or not all(map(str.isdecimal, numbers)) or int(numbers[0]) >= int(numbers[1]):
        found = [f"{name} is not set" if value is None else f"{name} is {value!r}" for name, value in given.items()]
        raise UserError("these variables tell the processes of a run apart, and don't fit together: "
                        f"{', '.join(found)}. Start with torchrun, which sets them all, or unset RANK and WORLD_SIZE")
    return True


def processes_here() -> int | None:
    """How many of the processes are on this machine, if it is known and torchrun started them."""
    here = os.environ.get("LOCAL_WORLD_SIZE") if is_used() else None
    return None if here is None else int(here)


Prepare = Callable[[dict[str, Any], dict[str, Any]], launch.Job | None]


def train(prepare: Prepare, command: dict[str, Any], said: dict[str, Any]) -> launch.Job | None:
    """Train as one of the processes. Rank 0 prepares the run; the job is returned there, and None on the other ranks.

    Args:
        prepare: Makes a job of the other two arguments; gives None in a dry run.
        command: The options that were given, by name.
        said:    The same, and the defaults of all other options.
    """
    import torch

    from torch_utils import distributed

    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if command.get("gpus") not in (None, size):
        raise UserError(f"--gpus is {command['gpus']}, but torchrun started {size} processes: leave out --gpus")
    device = said["device"]
    if device == "auto":  # all processes must choose the same one, also those that don't know which run to resume
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
        os._exit(1)  # what is in flight to lost processes can't be waited for
    distributed.leave()
    return job if rank == 0 else None


def _trust_nets(config: TrainingConfig) -> None:
    """What `check_machine` does for the first machine of a run, on another one: the cache may be its own."""
    from torch_utils.formats.feature_nets import trust_net

    for net in (config.perceptual, config.detector):
        if net is not None and (is_url(net) or os.path.isfile(net)):
            trust_net(net)
