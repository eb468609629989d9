"""Ctrl-C, SIGTERM and SIGUSR1: asked once, the work in hand is finished and saved; asked twice, all stops at once."""

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that catches the signals; `requested` says whether one came.

    Outside the main thread no signal can be caught, and nothing is ever requested.
    """

    def __init__(self, *, interruptible: bool = True, quiet: bool = False) -> None:
        self.requested = False
        self._interruptible = interruptible     # False where other processes would wait for this one.
        self._quiet = quiet
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
        if self._at_once or again and self._interruptible:
            raise KeyboardInterrupt
        if not again and not self._quiet:
            print("\nStopping after this iteration; once more stops at once.", file=sys.stderr, flush=True)
