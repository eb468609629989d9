"""Training states: files with everything that resuming a run needs. Files that are damaged are not used.

A state holds tensors and plain data in PyTorch's format, a zip archive. So `torch.load(path, weights_only=True)` reads
it. The last 64 bytes of the file, after the archive, are the SHA-256 of everything before them.
"""

import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, Mapping, NamedTuple

from dnnlib.util import UserError, atomic_write

FORMAT = 2                                  # Version of the content. 1 is translated, others are refused.
_FRAME = ("format", "config", "dataset", "path")    # Entries of a state beside the parts of the trainer.
PICKLE_NAME = re.compile(r"network-snapshot-(\d{6,})(?:_(\d{3}))?\.pkl")    # Groups: kimg, further images.
_NAME = re.compile(r"training-state-(\d{9,})\.pt")  # Group: images.
_KEPT = 2                                   # States that a run keeps: the newest, and another one in case of damage.
_DIGEST_BYTES = 64                          # Length of the checksum, in hexadecimal digits.
_CHUNK = 1 << 22


class StateFile(NamedTuple):
    path: Path
    nimg: int       # Images shown to D when it was written.


class PickleFile(NamedTuple):
    path: Path
    kimg: float     # From the name: whole kimg, unless the name is exact.

    @property
    def name(self) -> str:
        return self.path.name


def state_path(run_dir: str | os.PathLike, nimg: int) -> Path:
    return Path(run_dir, f"training-state-{nimg:09d}.pt")


def pickle_path(run_dir: str | os.PathLike, nimg: int, *, exact: bool = False) -> Path:
    """The path of a network pickle: `network-snapshot-KKKKKK.pkl` (K = kimg).

    Args:
        nimg:  Images shown to D.
        exact: Take the name `network-snapshot-KKKKKK_NNN.pkl` (N = images beyond the whole kimg). Names sorted as
               text are in order of images.
    """
    kimg, images = divmod(nimg, 1000)
    return Path(run_dir, f"network-snapshot-{kimg:06d}{f'_{images:03d}' if exact else ''}.pkl")


def pickle_kimg(name: str) -> float | None:
    """The kimg in the name of a network pickle; None if it is no such name."""
    match = PICKLE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]) * 1000 + int(match[2] or 0)) / 1000


def list_pickles(run_dir: str | os.PathLike) -> list[PickleFile]:
    """The network pickles in a run directory, in order of images. Their content is not checked."""
    found = [PickleFile(Path(run_dir, name), kimg)
             for name in os.listdir(run_dir) if (kimg := pickle_kimg(name)) is not None]
    return sorted(found, key=lambda pickle: (pickle.kimg, pickle.name))


def list_states(run_dir: str | os.PathLike) -> list[StateFile]:
    """The states in a run directory, the newest first. Their content is not checked."""
    try:
        names = os.listdir(run_dir)
    except OSError:
        return []
    found = [StateFile(Path(run_dir, name), int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda state: state.nimg, reverse=True)


def write_state(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a state, whole or not at all. Then keep one older state in its folder, and delete the others.

    Args:
        path:    From `state_path`.
        content: Tensors on the CPU, and plain data: dicts, lists, strings, numbers, None.

    Raises:
        OSError: It can't be written. A file that was there before stays.
    """
    import torch  # Here, because it takes a second, for which --help should not wait.

    path = Path(path)
    with atomic_write(path) as f:
        signed = _SignedFile(f)
        try:
            torch.save(dict(content, format=FORMAT), signed)  # type: ignore[arg-type]
        except RuntimeError as e:  # PyTorch's writer hides the error of the file.
            raise signed.error or e from e
        signed.finish()
    for old in list_states(path.parent)[_KEPT:]:
        old.path.unlink(missing_ok=True)


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """Read a state after checking that it is whole and unaltered.

    Raises:
        UserError: It is damaged, has an unknown format, or can't be read.
    """
    import torch

    try:
        with open(path, "rb") as f:
            if not _is_whole(f):
                raise UserError(f"training state {path} is damaged: its content is not what its checksum says")
            f.seek(0)
            content = torch.load(f, map_location="cpu", weights_only=True)
    except OSError as e:
        raise UserError(f"can't read training state {path}: {e.strerror or e}") from e
    except (pickle.UnpicklingError, ValueError, LookupError, EOFError, RuntimeError, AttributeError, TypeError) as e:
        if isinstance(e, (UserError, torch.OutOfMemoryError)):
            raise
        raise UserError(f"training state {path} is not as train.py writes it: its checksum is right, but it does not "
                        "hold tensors and plain data alone") from e
    found = content.get("format") if isinstance(content, dict) else None
    if found == 1:
        try:
            return _from_format_1(content)
        except (LookupError, TypeError, AttributeError) as e:
            raise UserError(f"training state {path} is not as versions with format 1 wrote it: {e!r}") from e
    if found != FORMAT:
        raise UserError(f"training state {path} has format {found}, expected {FORMAT}: another version wrote it")
    return content


def _from_format_1(old: dict[str, Any]) -> dict[str, Any]:
    """Translate a state of version 0.1 to the present format."""
    saved, snapshot_due = old["saved"], old["unfinished_tick"]
    kept = ("config", "dataset", "progress", "networks", "optimizers", "stats")
    return {name: old[name] for name in kept} | {
        "loss": {"pl_mean": old["pl_mean"]},
        "guard": {"streak": old["bad_gradients"]},
        **({} if old["ada_signs"] is None else {"ada": {"signs": old["ada_signs"]}}),
        "log": {"step_nimg": 1000} | {name: value for name, value in old["log"].items() if name != "start_nimg"},
        "pickles": {
            "last": saved,
            "last_nimg": old["progress"]["nimg"] if snapshot_due else None,
            "plain_kimg": old["plain_kimg"] if "plain_kimg" in old else saved and int(pickle_kimg(saved)),
        },
        "tick": {"pending": snapshot_due is not None, "snapshot_pkl": saved if snapshot_due else None,
                 "report_sizes": old["report_sizes"]},
        "format": FORMAT,
    }


def find_state(run_dir: str | os.PathLike, wanted: str) -> dict[str, Any]:
    """The content of a training state, and its "path". Rank 0 chooses the file, and all ranks read it.

    Args:
        wanted: Path of a state, or "newest": the newest undamaged one in `run_dir`.

    Raises:
        UserError: There is no undamaged state.
    """
    from torch_utils import distributed

    path = content = None
    if distributed.rank() == 0:
        if wanted == "newest":
            path, content = newest_good_state(run_dir) or (None, None)
        else:
            path, content = Path(wanted), read_state(wanted)
    chosen = distributed.from_rank0(path and str(path))
    if chosen is None:
        raise UserError(f"{run_dir} holds no good training state: start a new run, perhaps from a network pickle")
    distributed.print0(f"Resuming from {chosen}")
    return {**(content or read_state(chosen)), "path": chosen}


def resume_from(
    state: dict[str, Any], parts: Mapping[str, Any], *, run_dir: str | os.PathLike, dataset: Any, anyway: bool
) -> None:
    """Restore the parts of a new trainer from a state. All ranks call this together; their number may have changed.

    Args:
        state:   From `find_state`.
        parts:   The parts by their names in the state; see `torch_utils.state`.
        run_dir: The run directory. Files that would be in the way of new ones are moved or deleted.
        dataset: The images to train on.
        anyway:  Resume even if these are not the images of the run.

    Raises:
        UserError: The state does not fit, or the images are not those that the run was trained on.
    """
    from torch_utils import distributed
    from torch_utils.state import Misfit, restore

    try:
        restore(parts, {name: part for name, part in state.items() if name not in _FRAME})
    except Misfit as e:
        raise UserError(f"training state {state['path']} does not fit this run: {e} is missing, or of another kind or "
                        "shape. Resume from another state (--resume=FILE), or start a new run") from e
    if state.get("dataset") != dataset.fingerprint:
        problem = f"the images in {dataset.path} are not those that {run_dir} was trained on"
        if not anyway:
            hint = (" (needed once after an update, if the run began with a version that compared the times of files)"
                    if os.path.isdir(dataset.path) else "")
            raise UserError(f"{problem}: give the right ones with --data, or say --resume-anyway to take these{hint}")
        distributed.print0(f"Warning: {problem}: resuming with these all the same")
    distributed.any_rank(False)     # Wait until all ranks have read the state.
    if distributed.rank() == 0:
        clear_way(run_dir, state["progress"]["nimg"])


def clear_way(run_dir: str | os.PathLike, nimg: int) -> None:
    """Prepare to resume at `nimg` images: set later states aside, and delete half-written files of a killed run."""
    for path in Path(run_dir).glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for state in list_states(run_dir):
        if state.nimg > nimg:  # It would be taken for the newest one.
            aside = state.path.with_suffix(".pt.unused")
            print(f"Setting aside {state.path} as {aside.name}")
            os.replace(state.path, aside)


def newest_good_state(run_dir: str | os.PathLike) -> tuple[Path, dict[str, Any]] | None:
    """The path and content of the newest undamaged state; None if there is none. Prints warnings of damaged ones."""
    for state in list_states(run_dir):
        try:
            return state.path, read_state(state.path)
        except UserError as e:
            print(f"Warning: {e}; trying the one before")
    return None


class _SignedFile:
    """Writes to a file, and computes the checksum of what is written."""

    def __init__(self, f: BinaryIO):
        self._file = f
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        """Write the checksum after the archive."""
        self._file.write(self._digest.hexdigest().encode())


def _is_whole(f: BinaryIO) -> bool:
    """Whether the checksum at the end of a file is right."""
    left = f.seek(0, os.SEEK_END) - _DIGEST_BYTES
    f.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := f.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return left == 0 and f.read() == digest.hexdigest().encode()
