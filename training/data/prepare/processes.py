"""Processes that work for the main one, and signals: nothing that crashes or is killed leaves more than one line.

Images and databases are read in such processes only. A decoder that runs out of memory, or a damaged database that is
mapped into memory, takes its process with it, and the main one says so and cleans up.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Iterable, Iterator

from dnnlib.util import UserError

_SIGNALS = [signal.SIGINT, signal.SIGTERM]


def _context() -> Any:
    """Forked processes start in milliseconds and share what has been read, such as millions of file names."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class WorkerPool:
    """Context manager: processes that call functions as `function(state, *args)`.

    Args:
        state:   What every worker knows; it is not copied where processes are forked.
        workers: Number of processes.
    """

    def __init__(self, state: Any, workers: int):
        context = _context()
        self._workers = workers
        self._stop = context.RawValue(ctypes.c_bool)  # No lock: a worker that is killed must not keep it.
        self._pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (state, self._stop))

    def __enter__(self) -> "WorkerPool":
        with _signals_blocked():  # Until workers have said what signals do to them; they inherit this.
            self._pool.submit(_call, _nothing, ())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.value = True
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable, arguments: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Arguments and result of each call, in order; two calls for each worker are on their way at most.

        Functions give a list, or an iterator, of which the workers make a list; they break it off when all is over.

        Raises:
            UserError: A worker died.
        """
        pending: collections.deque = collections.deque()
        try:
            for args in arguments:
                pending.append((args, self._pool.submit(_call, function, args)))
                if len(pending) >= 2 * self._workers:
                    args, future = pending.popleft()
                    yield args, future.result()
            while pending:
                args, future = pending.popleft()
                yield args, future.result()
        except BrokenProcessPool as e:
            raise UserError(f"one of {self._workers} worker processes was killed: either memory ran out (give fewer "
                            "with --workers), or the source is damaged") from e


_state: Any = None
_stop: Any = None


def _start_worker(state: Any, stop: Any) -> None:
    global _state, _stop
    _state, _stop = state, stop
    _attach_to_main_process()


def _call(function: Callable, args: tuple) -> list:
    results = []
    for result in function(_state, *args):
        if _stop.value:
            break
        results.append(result)
    return results


def _nothing(_state: Any) -> list:
    return []


def _attach_to_main_process() -> None:
    """Leave Ctrl-C, which goes to all processes, to the main one, but don't outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def from_child(produce: Callable[[], Iterator[list]], died: str) -> Iterator[Any]:
    """What a function that runs in a process of its own gives, as it comes.

    Args:
        produce: Gives lists; may raise UserError.
        died:    The message where the process dies.

    Yields:
        The lists' items.

    Raises:
        UserError: As `produce` did, or the process died.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(produce, sender), daemon=True)
    with _signals_blocked():
        process.start()
    sender.close()
    try:
        while (message := _receive(receiver, died)) is not None:
            if isinstance(message, str):
                raise UserError(message)
            yield from message
    finally:
        receiver.close()
        process.kill()
        process.join()


def _receive(receiver: multiprocessing.connection.Connection, died: str) -> list | str | None:
    try:
        return receiver.recv()
    except (EOFError, ConnectionError) as e:
        raise UserError(died) from e


def _send(produce: Callable[[], Iterator[list]], sender: multiprocessing.connection.Connection) -> None:
    _attach_to_main_process()
    try:
        for items in produce():
            sender.send(items)
        sender.send(None)
    except UserError as e:
        sender.send(str(e))
    except BrokenPipeError:
        pass  # Nobody wants more.


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # On Windows, where processes get no signals.
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, as job schedulers send it, raises KeyboardInterrupt like Ctrl-C, so that all is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: came.append(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for came_in in came:
            signal.raise_signal(came_in)
