"""Writing network pickles and training states while training continues, and deleting the pickles that are not kept."""

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
    """Rules for which network pickles of a run are kept. A pickle is kept if at least one rule holds for it."""

    last: int | None = None     # It is one of this many newest ones; None = all are kept.
    best: bool = False          # It has the best score of the first metric.
    every: int | None = None    # It is the first one in a period of this many snapshots; None = no such rule.

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Read "all", or a list such as "last:3,best,every:10".

        Raises:
            UserError: The text is neither.
        """
        if text == "all":
            return cls()
        values: dict[str, Any] = {"last": 1}  # The newest one is never deleted.
        for part in text.split(","):
            match = re.fullmatch(r"(last|every):([1-9]\d{0,5})|best", part.strip())
            if match is None:
                raise UserError(f"--keep is {text!r}, expected 'all' or a list of last:N, best and every:N")
            values |= {match[1]: int(match[2])} if match[1] else {"best": True}
        return cls(**values)


class PickleNames:
    """Names the network pickles of a run: by whole kimg, or exactly if that name is taken. See `pickle_path`."""

    def __init__(self, run_dir: str | os.PathLike) -> None:
        self.run_dir = Path(run_dir)
        self.last: Path | None = None           # The pickle that was named last.
        self.last_nimg: int | None = None       # Its number of images; None = no pickle, or its number is not known.
        self.plain_kimg: int | None = None      # The kimg of the last name that is not exact.

    def choose(self, nimg: int, next_due_nimg: int | None = None) -> None:
        """Name the pickle to be saved after `nimg` images, and make it `last`.

        Args:
            nimg:          Images shown to D. If this is the number of the last pickle, that keeps its name.
            next_due_nimg: Given for a pickle beside the schedule, as when a run is stopped: the earliest position of
                           the next pickle on schedule. Its name is left free, so that pickles on schedule have the
                           same names as in a run that was not stopped.
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
    """Writes files in a thread. Training waits only if a file of the same kind is still being written. The device
    copies the tensors between two iterations, and the host does not wait for that.

    If a write fails, that is reported, and training continues. The next tick saves a training state anyway, and
    `overdue` tells it to save a network pickle, too.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: Keep, metric: str | None, snapshot_kimg: float,
                 method: str | None = None):
        self.run_dir = Path(run_dir)
        self.method = method                # Name of the method, for network pickles.
        self.keep = keep
        self.snapshot_kimg = snapshot_kimg  # Distance of two pickles on schedule, in thousands of images.
        self.metric = metric                # Name of the metric that decides which pickle is the best one.
        self.overdue = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writes: list[tuple[Path, concurrent.futures.Future]] = []

    def save_networks(
        self, path: Path, *, networks: dict[str, torch.nn.Module | None], training_set_kwargs: dict[str, Any]
    ) -> Path:
        """Copy networks, and write them to a network pickle, whose path is from `pickle_path`. See `wait`."""
        self._make_room(path)
        copied = host_copy(dict(networks, training_set_kwargs=training_set_kwargs, method=self.method))
        self._submit(path, self._write_networks, path, copied)
        return path

    def save_state(self, content: dict[str, Any], *, nimg: int) -> Path:
        """Copy the content of a training state, and write it. See `wait`."""
        path = state_path(self.run_dir, nimg)
        self._make_room(path)
        copied = host_copy(content)
        self._submit(path, lambda: write_state(path, copied.wait()))
        return path

    def save_file(self, path: Path, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call `write(path, ...)` in the thread, after the files that were saved before. This never waits."""
        self._submit(path, write, path, *args, **kwargs)

    def report(self) -> None:
        """Print which files could not be written since the last call."""
        for problem in self._collect():
            print(f"Warning: {problem}; training continues, and tries again with the next tick", flush=True)

    def settle(self) -> None:
        """Wait until everything is written."""
        concurrent.futures.wait([write for _, write in self._writes])

    def wait(self) -> list[str]:
        """Wait until everything is written. Returns a line for each file that failed since the last `report`."""
        self.settle()
        return self._collect()

    def close(self) -> None:
        """Wait until everything is written, print which files failed, and end the thread."""
        for problem in self.wait():
            print(f"Warning: {problem}", flush=True)
        self._thread.shutdown()

    def _make_room(self, path: Path) -> None:
        """Wait until no file of the same kind is being written, so that copies do not pile up in memory."""
        concurrent.futures.wait([write for other, write in self._writes if other.suffix == path.suffix])

    def _submit(self, path: Path, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        self._writes.append((path, self._thread.submit(function, *args, **kwargs)))

    def _collect(self) -> list[str]:
        """Forget the writes that are done. Returns a line for each that failed."""
        done = [entry for entry in self._writes if entry[1].done()]
        self._writes = [entry for entry in self._writes if entry not in done]
        problems = []
        for path, write in done:
            try:
                write.result()
            except OSError as e:
                self.overdue |= path.suffix != ".pt"
                problems.append(f"can't save {e.filename or path}: {e.strerror or e}")
        return problems

    def _write_networks(self, path: Path, copied: HostCopies) -> None:
        save_network_pkl(path, copied.wait())
        self._prune()

    def prune(self) -> None:
        """Delete, in the thread, the pickles that no rule of `keep` holds for. This is needed after new scores, too."""
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
            stay |= {names[numbers.index(number)] for number in numbers}  # The first pickle of each period.
        if self.keep.best and (best := find_best(self.run_dir, self.metric)) is not None:
            stay.add(best.snapshot_pkl)
        for name in set(names) - stay:
            (self.run_dir / name).unlink(missing_ok=True)
