"""Processes that read images: small, quick to start, and gone when the main process is.

They are Python's own ProcessPoolExecutor, in interpreters started anew that import neither PyTorch nor the main script.
What they import of this project must not import PyTorch either. Signals that go to a whole group, from a terminal or a
job scheduler, are left to the main process; readers end with it, however it ends.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import types
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import context, reduction
from typing import Any, Callable, Iterator

import numpy as np

from dnnlib.util import UserError, num_cores

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_WRITE_BYTES = 4 << 20  # So much is written at a time, which bounds the memory of a reader.


class SharedBuffer:
    """Bytes that processes hand to each other: a file in memory that has no name, so that nothing can be left behind.

    It is written and read as a file, not mapped: readers' memory doesn't grow by it, and a lack of memory is an error
    that can be reported, not a SIGBUS.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("images")
        else:
            with tempfile.TemporaryFile() as f:
                self._fd = os.dup(f.fileno())

    def __getstate__(self) -> dict[str, Any]:
        return {"fd": reduction.DupFd(self._fd)}  # For a process that is being started.

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fd = state["fd"].detach()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def write(self, array: np.ndarray, offset: int) -> None:
        """Raises OSError where there is no memory."""
        view = memoryview(array).cast("B")
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def read_into(self, array: np.ndarray, offset: int) -> None:
        view = memoryview(array).cast("B")
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                raise EOFError(f"nothing has been written at {offset}")
            view, offset = view[count:], offset + count


class ReaderPool:
    """A fixed number of reader processes; use it in `with`, or `close()` it.

    Args:
        num_workers: Processes, at most one for each core.
        shared:      Where `read_images` puts them.
    """

    def __init__(self, num_workers: int, *, shared: SharedBuffer | None = None):
        self.num_workers = max(1, min(num_workers, num_cores()))
        self._context = _ReaderContext()
        self._executor = ProcessPoolExecutor(
            self.num_workers, mp_context=self._context, initializer=_start_reader, initargs=(shared,)
        )

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Have `function`, of a module that doesn't import PyTorch, called in one of the processes."""
        with _told_in_one_line():
            return self._executor.submit(function, *args)

    def result(self, future: Future) -> Any:
        """What the function returned. Raises what it raised, and UserError where a process was killed."""
        with _told_in_one_line():
            return future.result()

    def close(self) -> None:
        """End the processes at once; what they were doing is lost."""
        for process in self._context.started:
            if process.is_alive():
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as e:
        raise UserError("a process that reads images was killed, perhaps because memory ran out: start again, with "
                        "fewer --workers if it happens again") from e


class _ReaderProcess(context.SpawnProcess):
    def start(self) -> None:
        # The mask is inherited and keeps signals from readers from the start: the main process ends them. Children of
        # "spawn" import the main script, and all that it imports: readers don't need it, and find an empty one.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def terminate(self) -> None:
        self.kill()  # SIGTERM would wait for ever; the executor, too, ends readers by this method


class _ReaderContext(context.SpawnContext):
    """Processes that never descend from one that has started CUDA or threads."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_ReaderProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> _ReaderProcess:  # The name is multiprocessing's.
        process = _ReaderProcess(*args, **kwargs)
        self.started.append(process)
        return process


_shared: SharedBuffer | None = None


def read_images(images: Any, offset: int) -> None:
    """In a reader process: put images, one after another, into the shared buffer.

    Args:
        images: As `training.dataset.Images`: `read(position)` gives uint8 of `shape`, `flips` has an entry for each.
        offset: Where in the buffer.

    Raises:
        UserError: An image, which is named, can't be read.
        OSError:   There is no memory.
    """
    assert _shared is not None
    count, shape = len(images.flips), images.shape
    together = max(1, _WRITE_BYTES // math.prod(shape))
    for first in range(0, count, together):
        group = np.empty([min(together, count - first), *shape], dtype=np.uint8)
        for i in range(len(group)):
            group[i] = images.read(first + i)
        _shared.write(group, offset)
        offset += group.nbytes


def _start_reader(shared: SharedBuffer | None) -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
