"""Writing what a run saves, beside training: network pickles, of which not all are kept, and training states."""

import concurrent.futures
import copy
import math
import os
import re
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import torch

from dnnlib.util import UserError, say_once
from torch_utils.formats.network_pickle import save_network_pkl

from .best import find_best
from .training_state import list_pickles, state_path, write_state


class Keep(NamedTuple):
    """Which network pickles of a run stay; those that any of these rules names."""

    last: int | None = None     # So many of the newest; None = all of them.
    best: bool = False          # The one with the best score of the first metric.
    every: int | None = None    # One of so many; None = no such rule.

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


class Checkpoints:
    """Writes in a thread of its own. Training waits for a write only if another is due; the copies that are written are
    made by the device between two iterations, while the host goes on.

    A write that fails is reported, and training goes on: the next state follows with the next tick, and `overdue` says
    that a network pickle should.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep: Keep, metric: str | None, snapshot_kimg: float):
        self.run_dir = Path(run_dir)
        self.keep = keep
        self.snapshot_kimg = snapshot_kimg  # From one pickle to the next.
        self.metric = metric                # By which the best pickle is found.
        self.overdue = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writes: list[tuple[Path, concurrent.futures.Future]] = []
        self._problems: list[str] = []

    def save_networks(
        self, path: Path, *, networks: dict[str, torch.nn.Module | None], training_set_kwargs: dict[str, Any]
    ) -> Path:
        """Hand over copies for a network pickle, whose path is from `pickle_path`; the file is there after `wait`."""
        self._make_room(path)
        copied = host_copy(dict(networks, training_set_kwargs=training_set_kwargs))
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
        """Have `write(path, ...)` called beside training, before whatever is handed over later is written.

        It never waits: the pickle that belongs to a snapshot's pictures does, for the one before.
        """
        self._submit(path, write, path, *args, **kwargs)

    def _failed(self, path: Path, error: OSError) -> None:
        """Take note of a file of a snapshot that can't be written."""
        self.overdue |= path.suffix != ".pt"
        self._problems.append(f"can't save {error.filename or path}: {error.strerror or error}")

    def report(self) -> None:
        """Say what has failed so far, and begin a tick in which it is tried again."""
        for problem in self._collect():
            print(f"Warning: {problem}; training goes on, and tries again with the next tick", flush=True)

    def settle(self) -> None:
        """Wait until everything is written."""
        concurrent.futures.wait([write for _, write in self._writes])

    def wait(self) -> list[str]:
        """Until everything is written; what went wrong since the last `report`, a line for each file."""
        self.settle()
        return self._collect()

    def close(self) -> None:
        """Wait for what is being written."""
        for problem in self.wait():
            print(f"Warning: {problem}", flush=True)
        self._thread.shutdown()

    def _make_room(self, path: Path) -> None:
        """Copies are not heaped up in memory: one that is still being written comes first."""
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

    def _write_networks(self, path: Path, copied: "HostCopies") -> None:
        save_network_pkl(path, copied.wait())
        self._prune()

    def prune(self) -> None:
        """Have the pickles deleted that no rule of `keep` names; the scores may have changed."""
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


class HostCopies(NamedTuple):
    """Copies that are on their way from the device; other threads may wait for them."""

    content: Any
    arrival: torch.cuda.Event | None    # None = they are there.

    def wait(self) -> Any:
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.content


def host_copy(value: Any) -> HostCopies:
    """A deep copy of dicts, lists, tensors and modules, tensors on the CPU.

    Those of a GPU come in page-locked memory, all in one piece. The GPU copies them before whatever it is told to do
    next, and the host doesn't wait for it.
    """
    tensors = {id(tensor): tensor.detach() for tensor in _tensors(value)}
    on_gpu = [tensor for tensor in tensors.values() if tensor.is_cuda]
    memory = _HostMemory(sum(map(_HostMemory.room, on_gpu))) if on_gpu else None
    copies = {key: memory.take(tensor) if tensor.is_cuda else tensor.clone() for key, tensor in tensors.items()}
    return HostCopies(_rebuild(value, copies), torch.cuda.current_stream().record_event() if on_gpu else None)


class _HostMemory:
    """Page-locked memory for many tensors, each of which gets a storage of its own: files hold storages whole."""

    def __init__(self, num_bytes: int):
        try:
            memory = torch.empty([num_bytes], dtype=torch.uint8, pin_memory=True)
        except RuntimeError as e:  # a container, or the machine, has no more of it
            say_once("pinned", f"Warning: can't lock {num_bytes:,} bytes of memory for copies of what is saved "
                               f"({str(e).strip().splitlines()[0]}): training waits for these copies")
            memory = torch.empty([num_bytes], dtype=torch.uint8)
        self._bytes = memory.numpy()
        self._used = 0

    @staticmethod
    def room(tensor: torch.Tensor) -> int:
        """Bytes, up to where the next tensor may begin."""
        return math.ceil(tensor.numel() * tensor.element_size() / 64) * 64

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor, in the same layout, once the device has come to it."""
        part = self._bytes[self._used : self._used + tensor.numel() * tensor.element_size()]
        self._used += self.room(tensor)
        layout = torch.empty_like(tensor, device="meta").stride()
        host = torch.from_numpy(part).view(tensor.dtype).as_strided(tensor.shape, layout)
        return host.copy_(tensor, non_blocking=True)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _rebuild(value: Any, copies: dict[int, torch.Tensor]) -> Any:
    """`value`, with the copy of each tensor by its id."""
    if isinstance(value, torch.Tensor):
        return copies[id(value)]
    if isinstance(value, torch.nn.Module):
        parameters = {id(p): torch.nn.Parameter(copies[id(p)], p.requires_grad) for p in value.parameters()}
        return copy.deepcopy(value, copies | parameters)
    if isinstance(value, dict):
        return {key: _rebuild(item, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rebuild(item, copies) for item in value)
    return value
