"""Ctrl-C, SIGTERM and SIGUSR1: asked once, the work in hand is finished and saved; asked twice, all stops at once."""

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, Iterator, TypeVar

from dnnlib.util import UserError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that catches the signals; `requested` says whether one came.

    Outside the main thread no signal can be caught, and nothing is ever requested.
    """

    def __init__(self, *, interruptible: bool = True, quiet: bool = False, once: bool = False) -> None:
        self.requested = False
        self._interruptible = interruptible     # False where other processes would wait for this one.
        self._quiet = quiet
        self._once = once                       # True where a request may come as several signals, here and by others.
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # processes of a run start with them blocked
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        """Do what comes next if all ranks can and none was asked to stop: the result, or None, and what failed, if any.

        All ranks call this together, and what they do between two calls together is whole: a state can be saved.

        Raises:
            LostRank: A process is missing.
        """
        from torch_utils import distributed  # PyTorch, for which train.py --help need not wait

        result = problem = None
        try:
            result = work()
        except UserError as e:
            problem = str(e)
        if distributed.any_rank(self.requested or problem is not None):
            return None, distributed.first_given(problem)
        return result, None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be broken off anywhere: a request raises KeyboardInterrupt here."""
        if not self._interruptible:
            yield
            return
        if self.requested:
            raise KeyboardInterrupt
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again and self._once:
            return
        if self._at_once or again and self._interruptible:
            raise KeyboardInterrupt
        if not again and not self._quiet:
            print("\nStopping after this iteration; once more stops at once.", file=sys.stderr, flush=True)
