"""Worker processes: quick to start, and gone when the main process is.

`WorkerPool` is Python's ProcessPoolExecutor with two additions. Workers ignore the signals that a terminal or a job
scheduler sends to all processes, and end when the main process ends, even if that is killed. If a worker is killed, the
user gets an error of one line: a decoder may run out of memory, and a damaged database that is mapped into memory may
crash the process that reads it.

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
        state:       First argument of each call. It is sent to every worker once.
        forked:      Fork the main process, so that workers start in milliseconds and share the memory of `state`. Only
                     for programs that have started neither CUDA nor threads of their own. If False, and on systems
                     other than Linux, workers are new interpreters.
        killed:      Message of the UserError that is raised after a worker was killed.

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
        """Call `function(state, *args)` in one of the processes."""
        with self._errors():
            return self._executor.submit(_call, function, args)

    def result(self, future: Future) -> Any:
        """Wait for what the function returns. Raises what it raised, and UserError if a process was killed."""
        with self._errors():
            return future.result()

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Arguments and result of each call, in order. `arguments` are taken one by one, when workers need them.

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
        if results is not None:  # A worker killed while it sent a result never sends the rest: don't wait for that.
            results._writer.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Worker(multiprocessing.process.BaseProcess):
    def start(self) -> None:
        # Workers inherit the mask of blocked signals, and only the main process ends them. A new interpreter would
        # import the main script with all its imports. Workers don't need it, so they get an empty module instead.
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
    """Bytes that processes share: a file in memory. It has no name, so that no file is left behind by a killed program.

    It is written and read as a file, not mapped. So it doesn't add to the memory of workers, and a lack of memory is an
    OSError that can be reported, not a SIGBUS.
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
        """Write a contiguous array at `offset` bytes. Raises OSError if memory runs out."""
        view = memoryview(array).cast("B")
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def read_into(self, array: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with what was written at `offset` bytes. Raises EOFError if that is too little."""
        view = memoryview(array).cast("B")
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                raise EOFError(f"nothing has been written at {offset}")
            view, offset = view[count:], offset + count


def read_images(buffer: SharedBuffer, images: Any, offset: int) -> None:
    """Read images, and write them one after another into the buffer. Runs in a worker.

    Args:
        buffer: State of the pool.
        images: A `training.data.dataset.Images`: `read(i)` gives uint8 [C, H, W], `flips` has an entry for each image.
        offset: Where the first image goes, in bytes.

    Raises:
        UserError: An image can't be read. The message names it.
        OSError:   Memory runs out.
    """
    count = len(images.flips)
    together = max(1, _WRITE_BYTES // math.prod(images.shape))
    for first in range(0, count, together):
        group = np.stack([images.read(i) for i in range(first, min(first + together, count))])
        buffer.write(group, offset)
        offset += group.nbytes
