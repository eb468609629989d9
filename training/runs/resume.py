"""Which run a command resumes, and which options may differ from those of the command that started it."""

import contextlib
import dataclasses
import difflib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from dnnlib.util import UserError, check_regular, is_url
from training.config.checks import validate_gpus
from training.config.options import OF_IMAGES, OPTIONS, shown_value
from training.config.presets import PERCEPTUAL, RESUME_SOURCES
from training.config.schema import TrainingConfig, from_json, to_json

from .run_dir import OPTIONS_NAME
from .training_state import list_states, pickle_path

# The file to lock. It is never replaced, and is open for writing: network file systems lock no other files.
_LOCK_NAME = "log.txt"

# Options that may differ when a run resumes, because they change neither what is learnt nor from which images.
FREE_OPTIONS = frozenset(name for name, option in OPTIONS.items() if option.free)
_FREE_FIELDS = {"dataset.path", "fill_gpu"}.union(*(option.fields for option in OPTIONS.values() if option.free))
# Fields that determine the tensors of a training state. A state doesn't fit a run in which one of them differs.
_SHAPE_FIELDS = {"G.z_dim", "G.w_dim", *OF_IMAGES.values()}.union(*(option.shape for option in OPTIONS.values()))
NETWORK_SUFFIXES = (".pkl", ".safetensors", ".onnx")


class ResumableRun(NamedTuple):
    path: str
    command: dict[str, Any]     # The options that were given when it was started, by name. Paths are absolute.
    config: TrainingConfig
    state: str = "newest"       # Path of the training state to resume from; "newest" = the newest good one.
    # Options whose paths are relative, as earlier versions wrote them. They are taken from the current folder.
    relative: tuple[str, ...] = ()


def absolute_paths(command: Mapping[str, Any]) -> dict[str, Any]:
    """The same options, with absolute paths. Names of networks and URLs stay."""
    names = {*RESUME_SOURCES, *PERCEPTUAL.values()}
    result = dict(command)
    for option in ("data", "detector", "perceptual", "resume"):
        path = result.get(option)
        if path and path not in names and (option == "data" or os.path.isfile(path)):
            result[option] = os.path.abspath(path)
        kind, _, file = str(path).partition(":")    # lpips-vgg:FILE
        if option == "perceptual" and kind in names and file:
            result[option] = f"{kind}:{os.path.abspath(file)}"
    return result


def is_run(source: str) -> bool:
    """Whether an existing path is one for `open_run`, and not a network pickle."""
    return os.path.isdir(source) or os.path.basename(source).startswith("training-state-")


def open_run(source: str) -> ResumableRun:
    """The run to resume, from its directory or from one of its training states.

    Raises:
        UserError: There is no run, another version made it, or it has no state.
    """
    path, state = source, "newest"
    if not os.path.isdir(source):
        path, state = os.path.dirname(source) or ".", source
        if not os.path.isfile(source):
            raise UserError(f"there is no training state {source}")
    run = _read_run(path)
    if not list_states(path) and state == "newest":
        raise UserError(f"{path} holds no training state: start a new run, perhaps from a network pickle")
    return run._replace(state=state)


def _read_run(path: str) -> ResumableRun:
    check_regular(*Path(path).glob("*"))
    file = Path(path, OPTIONS_NAME)
    try:
        content = json.loads(file.read_text())
        said, config = dict(content["command"]), from_json(content["config"])
        command = absolute_paths(said)
        _lasting(command)
    except OSError as e:
        raise UserError(f"{path} is no run directory: {file.name} can't be read ({e.strerror})") from e
    except (ValueError, KeyError, TypeError, RecursionError, UserError) as e:
        why = f" ({e})" if isinstance(e, UserError) else ""
        raise UserError(f"{file} is not as this version of train.py writes it, so the run can't resume{why}") from e
    relative = tuple(option for option in command if command[option] != said[option])
    paths = {name: absolute_paths({name: getattr(config, name)})[name] for name in ("perceptual", "detector")}
    return ResumableRun(path, command, dataclasses.replace(config, **paths), relative=relative)


class Found(NamedTuple):
    """The result of `find_run`."""

    run: ResumableRun | None    # The run to resume; None = start a new one.
    busy: str | None = None     # A fitting run that another program is training; None = there is none.


def find(command: Mapping[str, Any]) -> Found:
    """The run that --resume names, or that the same command left unfinished; none for a new run.

    Args:
        command: The options that were given, by name.

    Raises:
        UserError: --resume names something that does not exist, or a run that can't resume.
    """
    wanted = command.get("resume", "auto")
    if wanted == "auto":
        return find_run(command["outdir"], command) if command.get("outdir") else Found(None)
    if wanted == "noresume" or wanted in RESUME_SOURCES or is_url(wanted) or wanted.endswith(NETWORK_SUFFIXES):
        return Found(None)  # Networks are checked elsewhere.
    check_exists(wanted)
    if not is_run(wanted):
        return Found(None)
    try:
        return Found(open_run(wanted))
    except UserError as e:
        raise UserError(f"--resume: {e}") from e


def check_exists(source: str) -> None:
    """Raise UserError if --resume names a path that does not exist."""
    if not is_url(source) and not os.path.exists(source):
        raise UserError(f"--resume: {_describe_missing(source)}; give the folder of a run, one of its training states, "
                        f"a network pickle (path or URL), or one of {', '.join(RESUME_SOURCES)}")


def _describe_missing(path: str) -> str:
    """A text that says that a path does not exist, and names similar ones that do."""
    folder, name = os.path.split(os.path.normpath(path))
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder}"
    there = [*sorted(os.listdir(folder or ".")), *RESUME_SOURCES]
    names = difflib.get_close_matches(name, there) or [n for n in there if n.split("-")[0] == name.split("-")[0]][:3]
    near = [name if name in RESUME_SOURCES else os.path.join(folder, name) for name in names]
    return f"there is no {path or repr(path)}" + (f" (there is {', '.join(near)})" if near else "")


def find_run(outdir: str, command: Mapping[str, Any]) -> Found:
    """The newest unfinished run in `outdir` that the same command started, has a state, and isn't being trained."""
    busy = None
    try:
        names = sorted((entry.name for entry in os.scandir(outdir) if entry.is_dir()), reverse=True)
    except OSError:
        return Found(None)
    for name in names:
        path = os.path.join(outdir, name)
        states = list_states(path)
        if not states:
            continue
        try:
            run = _read_run(path)
        except UserError:
            continue
        total_kimg = command.get("kimg", run.config.total_kimg)
        if _lasting(run.command) != _lasting(command) or is_finished(path, total_kimg):
            continue
        try:
            with locked(path):
                return Found(run)
        except OSError:     # This user can't write to it.
            continue
        except UserError:
            busy = busy or path
    return Found(None, busy)


def is_finished(run_dir: str, total_kimg: float) -> bool:
    """Whether a run has shown all images to D, and written its last network pickle."""
    states = list_states(run_dir)
    nimg = states[0].nimg if states else -1
    return nimg >= int(total_kimg * 1000) and any(
        os.path.exists(pickle_path(run_dir, nimg, exact=exact)) for exact in (False, True))


def _lasting(command: Mapping[str, Any]) -> dict[str, Any]:
    """The options that may not change when a run resumes, as read from JSON."""
    kept = {name: value for name, value in absolute_paths(command).items() if name not in FREE_OPTIONS}
    return json.loads(json.dumps(kept))


def changed(run: ResumableRun, new: TrainingConfig, *, num_gpus: int, anyway: bool) -> TrainingConfig:
    """The configuration with which a run resumes.

    Args:
        run:      The run. Settings that follow from the number of GPUs at its start, such as the batch size, stay.
        new:      The configuration that the command asks for, resolved for that number of GPUs.
        num_gpus: The number of GPUs now.
        anyway:   Accept changes of options that are not free, unless no state would fit.

    Raises:
        UserError: There are changes that are not accepted. The message lists all of them.
    """
    validate_gpus(num_gpus)
    then = _share_out(new, run.config.num_gpus)     # With the number of GPUs that the run used last.
    differences = _differences(run.config, then)
    unfit = [text for text, fields in differences.items() if fields & _SHAPE_FIELDS]
    if unfit and anyway:
        raise UserError(f"no training state of {run.path} fits: {'; '.join(unfit)}. Leave these as they were, or start "
                        "a new run, perhaps from a network pickle")
    if differences and not anyway:
        raise UserError(f"this command differs from the one that started {run.path}: {'; '.join(differences)}. Leave "
                        "these as they were, or say --resume-anyway")
    return dataclasses.replace(_share_out(new, num_gpus), resume=run.config.resume)


def _share_out(config: TrainingConfig, num_gpus: int) -> TrainingConfig:
    """The same training on another number of GPUs. No GPU gets more images at once than before."""
    share, group = config.batch_size // num_gpus, config.D.mbstd_group_size
    fitting = [size for size in range(1, min(share, config.batch_gpu) + 1)
               if share % size == 0 and size % min(group, size) == 0]
    return dataclasses.replace(config, num_gpus=num_gpus, batch_gpu=max(fitting, default=1))


def _differences(old: TrainingConfig, new: TrainingConfig) -> dict[str, set[str]]:
    """Differences that are not free: for each option, a text, and the fields of the option that differ."""
    before, now = flat(to_json(old)), flat(to_json(new))
    changed = [name for name in {**before, **now} if name not in _FREE_FIELDS and before.get(name) != now.get(name)]
    fields_of = {option.flag_name + (f" ({option.note})" if option.note else ""): option.fields
                 for option in OPTIONS.values()}
    fields_of |= {words: (name,) for words, name in OF_IMAGES.items()}
    rivals = "loss.rivals."
    fields_of |= {f"--rival-options={name.removeprefix(rivals)}": (name,)
                  for name in changed if name.startswith(rivals)}
    texts = {}
    for option, fields in {**fields_of, **{name: (name,) for name in changed}}.items():
        found = [name for name in fields if name in changed]
        if found:
            name = option if found[0] == fields[0] else f"{found[0]} ({option})"
            was, is_now = (shown_value(values.get(found[0])) for values in (before, now))
            texts[f"{name} was {was}, is {is_now}"] = set(found)
            changed = [name for name in changed if name not in found]
    return texts


def differing_fields(a: TrainingConfig, b: TrainingConfig) -> list[str]:
    """Fields in which two runs differ, except the seed and fields that don't change what is learnt."""
    ignored = _FREE_FIELDS - {"total_kimg"} | {"batch_gpu", "random_seed", "dataset.random_seed"}
    values, others = flat(to_json(a)), flat(to_json(b))
    return sorted(name for name in {**values, **others} if name not in ignored and values.get(name) != others.get(name))


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loss": {"r1_gamma": 1}}` as `{"loss.r1_gamma": 1}`."""
    result: dict[str, Any] = {}
    for name, value in data.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


# ----------------------------------------------------------------------------------------------------------------------
# One program at a time in a run directory.


@contextlib.contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Keep other programs from training in `run_dir`. The lock ends with this process, even if it is killed.

    Raises:
        UserError: Another program is training there.
    """
    with open(os.path.join(run_dir, _LOCK_NAME), "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"another program is training in {run_dir}: wait for it, or stop it first") from e
        except OSError:
            pass  # The file system has no locks.
        yield


def is_busy(run_dir: str | os.PathLike) -> bool:
    """Whether a program is training in `run_dir`; True if the system can't tell.

    This holds the lock for microseconds. A program that starts to train in that time is refused.
    """
    try:
        with open(os.path.join(run_dir, _LOCK_NAME), "rb") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # Another program holds the lock, or the file system has none.
        return True
    return False
