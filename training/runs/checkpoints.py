"""Writes network pickles and training states beside training, and deletes the pickles that are not to be kept."""

import concurrent.futures
import os
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch

from dnnlib.util import UserError
from torch_utils.formats.network_pickle import save_network_pkl
from torch_utils.host_copy import HostCopies, host_copy
from torch_utils.state import Misfit, check

from .best import find_best
from .training_state import list_pickles, pickle_kimg, pickle_path, state_path, write_state


class Keep(NamedTuple):
    """Rules for which network pickles of a run stay. A pickle stays if one of the rules names it."""

    last: int | None = None     # This number of the newest ones; None = all.
    best: bool = False          # The one with the best score of the first metric.
    every: int | None = None    # The first one in each period of this number; None = no such rule.

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """From "all", or a list such as "last:3,best,every:10".

        Raises:
            UserError: It is neither.
        """
        if text == "all":
            return cls()
        values: dict[str, Any] = {"last": 1}  # the newest is never deleted
        for part in text.split(","):
            match = re.fullmatch(r"(last|every):([1-9]\d{0,5})|best", part.strip())
            if match is None:
                raise UserError(f"--keep is {text!r}, expected 'all' or a list of last:N, best and every:N")
            values |= {match[1]: int(match[2])} if match[1] else {"best": True}
        return cls(**values)


class PickleNames:
    """Names the network pickles of a run. A name is that of the kimg, or an exact one if the former is taken."""

    def __init__(self, run_dir: str | os.PathLike) -> None:
        self.run_dir = Path(run_dir)
        self.last: Path | None = None           # The pickle that was named last.
        self.last_nimg: int | None = None       # Its position. None = there is none, or it is not known.
        self.plain_kimg: int | None = None      # The kimg of the last name that is not an exact one.

    def choose(self, nimg: int, next_due_nimg: int | None = None) -> None:
        """Name the pickle to be saved after `nimg` images, and make it `last`. A position keeps its name.

        Args:
            next_due_nimg: For a pickle beside the schedule, as when a run is stopped: the earliest position of the next
                           one that is due. Its name is left free, so that those on schedule have the same names as in
                           a run that was not stopped.
        """
        if nimg == self.last_nimg:
            return
        kimg, self.last_nimg = nimg // 1000, nimg
        exact = kimg == self.plain_kimg or next_due_nimg is not None and kimg >= next_due_nimg // 1000
        if not exact:
            self.plain_kimg = kimg
        self.last = pickle_path(self.run_dir, nimg, exact=exact)

    def state_dict(self) -> dict[str, Any]:
        return {"last": None if self.last is None else self.last.name, "last_nimg": self.last_nimg,
                "plain_kimg": self.plain_kimg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"last": (str, type(None)), "last_nimg": (int, type(None)), "plain_kimg": (int, type(None))})
        name = state["last"]
        if name is not None and pickle_kimg(name) is None:
            raise Misfit("last")
        self.last = None if name is None else self.run_dir / name
        self.last_nimg = state["last_nimg"]
        self.plain_kimg = state["plain_kimg"]


class Checkpoints:
    """Writes in a thread of its own. Training waits only if a file of the same kind is still being written. The device
    copies what is to be written between two iterations, and the host does not wait for that.

    A write that fails is reported, and training continues: the next tick saves a state anyway, and `overdue` asks it
    for a network pickle as well.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: Keep, metric: str | None, snapshot_kimg: float,
                 method: str | None = None):
        self.run_dir = Path(run_dir)
        self.method = method                # Its name, for network pickles.
        self.keep = keep
        self.snapshot_kimg = snapshot_kimg  # Distance of two pickles on schedule.
        self.metric = metric                # Decides which pickle is the best one.
        self.overdue = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writes: list[tuple[Path, concurrent.futures.Future]] = []
        self._problems: list[str] = []

    def save_networks(
        self, path: Path, *, networks: dict[str, torch.nn.Module | None], training_set_kwargs: dict[str, Any]
    ) -> Path:
        """Hand over copies for a network pickle, whose path is from `pickle_path`; the file is there after `wait`."""
        self._make_room(path)
        copied = host_copy(dict(networks, training_set_kwargs=training_set_kwargs, method=self.method))
        self._submit(path, self._write_networks, path, copied)
        return path

    def save_state(self, content: dict[str, Any], *, nimg: int) -> Path:
        """Hand over a copy of a training state; the file is there after `wait`."""
        path = state_path(self.run_dir, nimg)
        self._make_room(path)
        copied = host_copy(content)
        self._submit(path, lambda: write_state(path, copied.wait()))
        return path

    def save_file(self, path: Path, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call `write(path, ...)` in the thread, before the files that are handed over later. It never waits."""
        self._submit(path, write, path, *args, **kwargs)

    def _failed(self, path: Path, error: OSError) -> None:
        """Note a file that could not be written."""
        self.overdue |= path.suffix != ".pt"
        self._problems.append(f"can't save {error.filename or path}: {error.strerror or error}")

    def report(self) -> None:
        """Print what has failed since the last call."""
        for problem in self._collect():
            print(f"Warning: {problem}; training continues, and tries again with the next tick", flush=True)

    def settle(self) -> None:
        """Wait until everything is written."""
        concurrent.futures.wait([write for _, write in self._writes])

    def wait(self) -> list[str]:
        """Wait until everything is written; a line for each file that has failed since the last `report`."""
        self.settle()
        return self._collect()

    def close(self) -> None:
        """Wait for what is being written."""
        for problem in self.wait():
            print(f"Warning: {problem}", flush=True)
        self._thread.shutdown()

    def _make_room(self, path: Path) -> None:
        """Wait for a file of the same kind that is still being written, so that copies do not pile up in memory."""
        concurrent.futures.wait([write for other, write in self._writes if other.suffix == path.suffix])

    def _submit(self, path: Path, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self._writes.append((path, self._thread.submit(function, *args, **kwargs)))

    def _collect(self) -> list[str]:
        done = [(path, write) for path, write in self._writes if write.done()]
        self._writes = [(path, write) for path, write in self._writes if not write.done()]
        for path, write in done:
            try:
                write.result()
            except OSError as e:
                self._failed(path, e)
        problems, self._problems = self._problems, []
        return problems

    def _write_networks(self, path: Path, copied: HostCopies) -> None:
        save_network_pkl(path, copied.wait())
        self._prune()

    def prune(self) -> None:
        """Delete, in the thread, the pickles that no rule of `keep` names. The scores may have changed."""
        self._submit(self.run_dir, self._prune)

    def _prune(self) -> None:
        if self.keep.last is None:
            return
        pickles = list_pickles(self.run_dir)
        names = [pickle.name for pickle in pickles]
        stay = set(names[-self.keep.last :])
        if self.keep.every is not None:
            period = round(self.keep.every * self.snapshot_kimg * 1000)
            numbers = [round(pickle.kimg * 1000) // period for pickle in pickles]
            stay |= {names[numbers.index(number)] for number in numbers}  # the first of each period
        if self.keep.best and (best := find_best(self.run_dir, self.metric)) is not None:
            stay.add(best.snapshot_pkl)
        for name in set(names) - stay:
            (self.run_dir / name).unlink(missing_ok=True)
