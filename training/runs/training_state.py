"""Training state: everything that going on with a run needs, in files that are whole and checked, or not used.

A state is tensors and plain data in PyTorch's own format, a zip archive, so that `torch.load(path, weights_only=True)`
reads it. The archive's comment, its last 64 bytes, is the SHA-256 of all that stands before.
"""

import hashlib
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dnnlib.util import UserError, atomic_write

FORMAT = 1                                  # Of what a state holds; another number is refused.
PICKLE_NAME = re.compile(r"network-snapshot-(\d{6,})(?:_(\d{3}))?\.pkl")    # Of network pickles: kimg, further images.
_NAME = re.compile(r"training-state-(\d{9,})\.pt")
_KEPT = 2                                   # States that a run keeps: the newest, and one in case it is damaged.
_DIGEST_BYTES = 64                          # Of the checksum, in hexadecimal digits.
_ZIP_END = struct.Struct("<4s16sH")         # Last record of an archive without comment: mark, ..., comment length.
_CHUNK = 1 << 22


class StateFile(NamedTuple):
    path: Path
    nimg: int       # Images shown when it was written.


class PickleFile(NamedTuple):
    path: Path
    kimg: float     # As the name says: whole kimg, unless the name has the further images, too.

    @property
    def name(self) -> str:
        return self.path.name


def state_path(run_dir: str | os.PathLike, nimg: int) -> Path:
    return Path(run_dir, f"training-state-{nimg:09d}.pt")


def pickle_path(run_dir: str | os.PathLike, nimg: int, *, exact: bool = False) -> Path:
    """`network-snapshot-KKKKKK.pkl` (K = kimg); exactly, `network-snapshot-KKKKKK_NNN.pkl` (N = further images).

    As text, the exact names of a kimg come after the other one, in order, and before those of the next kimg.
    """
    kimg, images = divmod(nimg, 1000)
    return Path(run_dir, f"network-snapshot-{kimg:06d}{f'_{images:03d}' if exact else ''}.pkl")


def pickle_kimg(name: str) -> float | None:
    """Thousands of images that the name of a network pickle tells; None if it is no such name."""
    match = PICKLE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]) * 1000 + int(match[2] or 0)) / 1000


class PickleNames:
    """Names of the network pickles that a run saves one after the other: by kimg, unless that is another one's name."""

    def __init__(self, run_dir: str | os.PathLike) -> None:
        self.run_dir = Path(run_dir)
        self.last: Path | None = None           # The pickle that was named last ...
        self.last_nimg: int | None = None       # ... and its position, if it is known; there it keeps the name.
        self.plain_kimg: int | None = None      # The kimg that was last used up as a name.

    def choose(self, nimg: int, next_due_nimg: int | None = None) -> None:
        """Let `last` be a pickle to be saved after `nimg` images.

        Args:
            next_due_nimg: Of a pickle beside the schedule, as when a run is stopped: where the next one is due, at the
                           earliest. So due ones have the same names as in a run that was not stopped.
        """
        if nimg == self.last_nimg:
            return
        kimg, self.last_nimg = nimg // 1000, nimg
        exact = kimg == self.plain_kimg or next_due_nimg is not None and kimg >= next_due_nimg // 1000
        if not exact:
            self.plain_kimg = kimg
        self.last = pickle_path(self.run_dir, nimg, exact=exact)

    def state(self) -> dict[str, Any]:
        return {"saved": None if self.last is None else self.last.name, "plain_kimg": self.plain_kimg}

    def restore(self, state: dict[str, Any], nimg: int | None) -> None:
        """Go on from what `state` gave.

        Args:
            nimg: Position of the last pickle; None = unknown.
        """
        name = state["saved"]
        self.last, self.last_nimg = None if name is None else self.run_dir / name, nimg
        known = None if name is None else int(pickle_kimg(name))    # earlier versions named all of them so
        self.plain_kimg = state.get("plain_kimg", known)


def list_pickles(run_dir: str | os.PathLike) -> list[PickleFile]:
    """The network pickles in a run directory, in order; their content is not looked at."""
    found = [PickleFile(Path(run_dir, name), kimg)
             for name in os.listdir(run_dir) if (kimg := pickle_kimg(name)) is not None]
    return sorted(found, key=lambda pickle: (pickle.kimg, pickle.name))


def list_states(run_dir: str | os.PathLike) -> list[StateFile]:
    """The states in a run directory, the newest first; their content is not looked at."""
    try:
        names = os.listdir(run_dir)
    except OSError:
        return []
    found = [StateFile(Path(run_dir, name), int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda state: state.nimg, reverse=True)


def write_state(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write a state, whole or not at all, and delete older ones in its folder but for one.

    Args:
        path:    From `state_path`.
        content: Tensors on the CPU, and plain data: dicts, lists, strings, numbers, None.

    Raises:
        OSError: It can't be written; what was there stays.
    """
    import torch  # takes a second, for which --help does not wait

    path = Path(path)
    with atomic_write(path) as f:
        signed = _SignedWriter(f)
        try:
            torch.save(dict(content, format=FORMAT), signed)  # type: ignore[arg-type]
        except RuntimeError as e:  # PyTorch's writer hides what went wrong
            raise signed.error or e from e
        signed.finish()
    for old in list_states(path.parent)[_KEPT:]:
        old.path.unlink(missing_ok=True)


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """Read a state after checking that it is whole and unaltered.

    Raises:
        UserError: It is not; it was written in another format; or it can't be read.
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
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"training state {path} has format {found}, expected {FORMAT}: another version wrote it")
    return content


def clear_way(run_dir: str | os.PathLike, nimg: int) -> None:
    """Before a run is resumed at `nimg` images: set later states aside, delete what a killed program was writing."""
    for path in Path(run_dir).glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for state in list_states(run_dir):
        if state.nimg > nimg:  # it would pass for the newest again
            aside = state.path.with_suffix(".pt.unused")
            print(f"Setting aside {state.path} as {aside.name}")
            os.replace(state.path, aside)


def find_state(run_dir: str | os.PathLike, wanted: str) -> dict[str, Any]:
    """The content of a state and its "path", the same one on all ranks: rank 0 looks for it. Nothing is changed.

    Args:
        wanted: Path of a state, or "newest": the newest good one in `run_dir`.

    Raises:
        UserError: There is no good one.
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


def newest_good_state(run_dir: str | os.PathLike) -> tuple[Path, dict[str, Any]] | None:
    """The path of the newest undamaged state, and its content; None if there is none. Says which ones are damaged."""
    for state in list_states(run_dir):
        try:
            return state.path, read_state(state.path)
        except UserError as e:
            print(f"Warning: {e}; trying the one before")
    return None


class _SignedWriter:
    """Passes an archive on, with a checksum of all of it as its comment."""

    def __init__(self, f: BinaryIO):
        self._file = f
        self._digest = hashlib.sha256()
        self._held = b""                    # The last bytes so far: in the end, the record that gets the comment.
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._held += data
        ready = max(len(self._held) - _ZIP_END.size, 0)
        self._pass_on(self._held[:ready])
        self._held = self._held[ready:]
        return len(data)

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        mark, rest, comment_length = _ZIP_END.unpack(self._held)
        assert mark == b"PK\5\6" and comment_length == 0
        self._pass_on(_ZIP_END.pack(mark, rest, _DIGEST_BYTES))
        self._file.write(self._digest.hexdigest().encode())

    def _pass_on(self, data: bytes) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as e:
            self.error = e
            raise


def _is_whole(f: BinaryIO) -> bool:
    left = f.seek(0, os.SEEK_END) - _DIGEST_BYTES
    f.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := f.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return left == 0 and f.read() == digest.hexdigest().encode()
