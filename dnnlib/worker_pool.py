"""Worker processes: quick to start, and gone when the main process is.

`WorkerPool` is Python's own ProcessPoolExecutor with rules of its own for signals and for the end. The main process
alone handles the signals that a terminal or a job scheduler sends to all processes. Workers end with it, however it
ends. A worker that is killed becomes one line for the user: a decoder may run out of memory, and a damaged database
that is mapped into memory may crash its process.

Modules whose functions run in workers should not import PyTorch: processes without it are small and start quickly.
"""

import collections
import contextlib
import copy
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
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from dnnlib.util import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_CALLS_AHEAD = 4            # `map` gives each worker this many calls in advance.
_WRITE_BYTES = 4 << 20      # `read_images` writes at most this much at a time, which bounds the memory of a worker.
_KILLED = ("a process that reads images was killed, perhaps because memory ran out: start again, with fewer --workers "
           "if it happens again")


class WorkerPool:
    """A fixed number of worker processes. Use it in `with`, or `close()` it.

    Args:
        num_workers: Number of processes.
        state:       First argument of each call; every worker gets it once.
        forked:      Fork the main process, so that workers start in milliseconds and share the memory of `state`. Only
                     for programs that have started neither CUDA nor threads of their own. Else, and on systems
                     other than Linux, workers are new interpreters.
        killed:      Message of the error where a worker is killed.

    Attributes:
        processes: The workers that have been started.
    """

    def __init__(self, num_workers: int, state: Any = None, *, forked: bool = False, killed: str = _KILLED):
        self.num_workers, self._killed = num_workers, killed
        self.processes: list[multiprocessing.process.BaseProcess] = []
        forked = forked and sys.platform == "linux"
        own_context: Any = copy.copy(multiprocessing.get_context("fork" if forked else "spawn"))
        own_context.Process = self._make_process
        self._kind = _ForkedWorker if forked else _SpawnedWorker
        self._executor = ProcessPoolExecutor(num_workers, own_context, _start_worker, (state,))

    def _make_process(self, *args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:
        self.processes.append(self._kind(*args, **kwargs))
        return self.processes[-1]

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Have `function(state, *args)` called in one of the processes."""
        with self._errors():
            return self._executor.submit(_call, function, args)

    def result(self, future: Future) -> Any:
        """What the function returned. Raises what it raised, and UserError where a process was killed."""
        with self._errors():
            return future.result()

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Arguments and result of each call, in order; `arguments` are taken when workers need them.

        Raises:
            UserError: A worker was killed.
        """
        pending: collections.deque[tuple[tuple, Future]] = collections.deque()
        for args in arguments:
            pending.append((args, self.submit(function, *args)))
            if len(pending) >= _CALLS_AHEAD * self.num_workers:
                args, future = pending.popleft()
                yield args, self.result(future)
        for args, future in pending:
            yield args, self.result(future)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as e:
            raise UserError(self._killed) from e

    def close(self) -> None:
        """End the processes at once. What they were doing is lost."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        results: Any = getattr(self._executor, "_result_queue", None)
        if results is not None:  # A worker may have been killed in the middle of a result: don't wait for the rest.
            results._writer.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Worker(multiprocessing.process.BaseProcess):
    def start(self) -> None:
        # Workers inherit the mask, so that signals never reach them: the main process ends them. A new interpreter
        # would import the main script and all that it imports. Workers don't need it, and find an empty one.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def terminate(self) -> None:
        self.kill()  # SIGTERM is blocked. The executor, too, ends workers by this method.


class _SpawnedWorker(_Worker, context.SpawnProcess):
    pass


class _ForkedWorker(_Worker, context.ForkProcess):
    pass


_state: Any = None


def _start_worker(state: Any) -> None:
    global _state
    _state = state
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], args: tuple) -> Any:
    return function(_state, *args)


class SharedBuffer:
    """Bytes that processes hand to each other: a file in memory without a name, so that nothing can be left behind.

    It is written and read as a file, not mapped. Thus the memory of workers doesn't grow by it, and a lack of memory is
    an error that can be reported, not a SIGBUS.
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
        """Write a contiguous array at `offset` bytes. Raises OSError where there is no memory."""
        view = memoryview(array).cast("B")
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def read_into(self, array: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with what was written at `offset` bytes."""
        view = memoryview(array).cast("B")
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                raise EOFError(f"nothing has been written at {offset}")
            view, offset = view[count:], offset + count


def read_images(buffer: SharedBuffer, images: Any, offset: int) -> None:
    """In a worker: put images, one after another, into the buffer.

    Args:
        buffer: State of the pool.
        images: As `training.dataset.Images`: `read(position)` gives uint8 of `shape`; `flips` has an entry for each.
        offset: Where the first image goes, in bytes.

    Raises:
        UserError: An image, which is named, can't be read.
        OSError:   There is no memory.
    """
    count, shape = len(images.flips), images.shape
    together = max(1, _WRITE_BYTES // math.prod(shape))
    for first in range(0, count, together):
        group = np.empty([min(together, count - first), *shape], dtype=np.uint8)
        for i in range(len(group)):
            group[i] = images.read(first + i)
        buffer.write(group, offset)
        offset += group.nbytes
