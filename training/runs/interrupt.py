"""Ctrl-C, SIGTERM and SIGUSR1. The first one lets the work in hand finish and be saved; a second stops at once."""

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, Iterator, NamedTuple

from dnnlib.util import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Agreed(NamedTuple):
    """What `StopRequest.agree` gives."""

    result: Any                 # Of the work; None = the run stops here.
    problem: str | None = None  # Why it stops, unless somebody asked for it.


class StopRequest:
    """Context manager that catches the signals. `requested` says whether one came.

    Outside the main thread no signal can be caught: `requested` stays False.
    """

    def __init__(self, *, interruptible: bool = True, quiet: bool = False, once: bool = False) -> None:
        self.requested = False
        self._interruptible = interruptible     # False if other processes would wait for this one.
        self._quiet = quiet
        self._once = once                       # True if one request may arrive as several signals.
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # they are blocked when a process of a run starts
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self, work: Callable[[], Any]) -> Agreed:
        """Do what comes next; there is no result if a rank cannot do it (it raised UserError) or was asked to stop.

        All ranks call this together. A training state can be saved after each call.

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
            return Agreed(None, distributed.first_given(problem))
        return Agreed(result)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context of work that may end anywhere: a request raises KeyboardInterrupt inside."""
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
