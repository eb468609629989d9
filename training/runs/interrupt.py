"""Ctrl-C, SIGTERM and SIGUSR1. The first one stops a run after its present iteration, a second one at once."""

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, Iterator, NamedTuple

from dnnlib.util import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Agreed(NamedTuple):
    """What `StopRequest.agree` returns."""

    result: Any                 # What the work returned; None = the run stops here.
    problem: str | None = None  # Why it stops; None = it was requested.


class StopRequest:
    """Context manager that catches the signals.

    Args:
        interruptible: A second signal, or one within `at_once`, raises KeyboardInterrupt; False = it does not, because
                       other processes would wait for this one.
        quiet:         Print nothing.
        once:          Ignore all signals but the first, because one request may arrive as several signals.

    Attributes:
        requested: Whether a signal came. Outside the main thread no signal can be caught, so it stays False there.
    """

    def __init__(self, *, interruptible: bool = True, quiet: bool = False, once: bool = False) -> None:
        self.requested = False
        self._interruptible, self._quiet, self._once = interruptible, quiet, once
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # Processes of a run start with blocked signals.
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self, work: Callable[[], Any]) -> Agreed:
        """Call `work`, and stop on all ranks if it raised UserError on one rank, or one rank was requested to stop.

        All ranks call this together. A training state can be saved after each call.

        Raises:
            LostRank: A process is missing.
        """
        from torch_utils import distributed  # Here, because it imports PyTorch, for which --help should not wait.

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
        """A context for work that may stop anywhere. A request raises KeyboardInterrupt inside."""
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
