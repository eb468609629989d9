"""Which run a command goes on with, and what may change on the way."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from dnnlib.util import UserError

from .config import TrainingConfig, from_json, to_json
from .training_state import list_states

try:
    import fcntl
except ImportError:  # not on Windows, where two programs in one run directory go unnoticed
    fcntl = None

OPTIONS_NAME = "training_options.json"

# Command-line options that may be others when a run goes on: they change neither what is learnt nor from what.
FREE_OPTIONS = frozenset((
    "outdir", "gpus", "snap", "tick", "metrics", "detector", "device", "dry_run", "workers", "resume", "resume_anyway",
    "kimg", "nobench", "timeout", "keep",
))
_FREE_FIELDS = ("snapshot_ticks", "kimg_per_tick", "metrics", "detector", "device", "workers", "total_kimg",
                "cudnn_benchmark", "timeout_sec", "keep")


class Run(NamedTuple):
    path: str
    command: dict[str, Any]     # The options that were said when it was started, by name.
    config: TrainingConfig


def open_run(path: str | os.PathLike) -> Run:
    """A run directory.

    Raises:
        UserError: It is none, or another version made it.
    """
    file = Path(path, OPTIONS_NAME)
    try:
        content = json.loads(file.read_text())
        return Run(str(path), content["command"], from_json(content["config"]))
    except OSError as e:
        raise UserError(f"{path} is no run directory: {file.name} can't be read ({e.strerror})") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is not as this version of train.py writes it, so the run can't go on") from e


def find_run(outdir: str, command: Mapping[str, Any]) -> Run | None:
    """The newest run in `outdir` that the same command started, that has a state, is unfinished, and is not going on."""
    try:
        names = sorted((entry.name for entry in os.scandir(outdir) if entry.is_dir()), reverse=True)
    except OSError:
        return None
    for name in names:
        path = os.path.join(outdir, name)
        states = list_states(path)
        if not states:
            continue
        try:
            run = open_run(path)
        except UserError:
            continue
        wanted = command.get("kimg", run.config.total_kimg)
        if _lasting(run.command) == _lasting(command) and states[0].nimg < wanted * 1000 and not is_locked(path):
            return run
    return None


def _lasting(command: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, without the options that may change."""
    return json.loads(json.dumps({name: value for name, value in command.items() if name not in FREE_OPTIONS}))


def changed(run: Run, new: TrainingConfig, *, num_gpus: int, anyway: bool) -> TrainingConfig:
    """The configuration with which a run goes on.

    Args:
        run:      It keeps what follows from the number of GPUs that it was started with, such as its batch size.
        new:      What the command says now, resolved for that number of GPUs.
        num_gpus: How many there are now.
        anyway:   Take over changes of what is learnt, too.

    Raises:
        UserError: Such a change was made, and not `anyway`; it lists all of them.
    """
    differences = list(_differences(to_json(run.config), to_json(new)))
    if differences and not anyway:
        raise UserError(f"this command differs from the one that started {run.path}: {'; '.join(differences)}. Leave "
                        "these as they were, or say --resume-anyway")
    base = new if anyway else run.config
    free = {name: getattr(new, name) for name in _FREE_FIELDS}
    share = base.batch_size // num_gpus
    batch_gpu = base.batch_gpu if share and share % base.batch_gpu == 0 else share
    dataset = dataclasses.replace(base.dataset, path=new.dataset.path)
    return dataclasses.replace(base, **free, num_gpus=num_gpus, batch_gpu=batch_gpu, dataset=dataset)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            field = f"{name}.{key}" if name else key
            if field not in _FREE_FIELDS and field not in ("num_gpus", "resume", "dataset.path"):
                yield from _differences(old.get(key), new.get(key), field)
    elif old != new:
        yield f"{name} was {old}, is {new}"


# ----------------------------------------------------------------------------------------------------------------------
# One program at a time in a run directory.


@contextlib.contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Keep other programs from training in `run_dir`; ends with this process, however that ends.

    Raises:
        UserError: Another one does.
    """
    with open(os.path.join(run_dir, OPTIONS_NAME), "rb") as f:
        if fcntl is not None:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise UserError(f"another program is training in {run_dir}: wait for it, or stop it first") from e
            except OSError:
                pass  # a file system without locks
        yield


def is_locked(run_dir: str) -> bool:
    try:
        with locked(run_dir):
            return False
    except (UserError, OSError):
        return True
