"""How far a command is that calculates scores, and how long it will take."""

import contextlib
import time
from typing import Callable, Iterator, NamedTuple, Sequence

from tqdm import tqdm

_FORMAT = "{desc} |{bar}| {percentage:3.0f}%, {elapsed} so far, about {remaining} left"


class Stage(NamedTuple):
    """A part of the work."""

    name: str           # Such as "fid50k_full generated".
    num_items: int
    item_sec: float     # As a first look at the networks had it.

    @property
    def of_real(self) -> bool:
        """Whether it is about real images: other networks don't need it again."""
        return self.name.endswith(" real")

    @property
    def sec(self) -> float:
        return self.num_items * self.item_sec


class ScoreBar:
    """One bar on stderr for all that a command calculates.

    An image that is generated takes longer than one that is read, and each feature net has its own speed. So the bar
    counts seconds of work, as a first look at the networks had them. The time that is left is then right before all
    stages have been seen.

    Args:
        show:  Whether to show it.
        begun: Called with the seconds that all will take, when that is known.
    """

    def __init__(self, *, show: bool = True, begun: Callable[[float], None] | None = None):
        self._show, self._begun = show, begun
        self._stages: list[Stage] = []      # Those to come.
        self._later_sec = self._done_sec = self._elapsed_sec = self._start_sec = 0.0
        self._bar: tqdm | None = None

    def plan(self, stages: Sequence[Stage], *, times_later: int = 0) -> None:
        """Say what comes, in order, and how many times all but what is done with real images comes again later."""
        later_sec = times_later * sum(stage.sec for stage in stages if not stage.of_real)
        self._stages, self._later_sec = list(stages), later_sec
        if self._show:  # the time of the look at the networks is no rate
            look_sec = time.monotonic() - self._start_sec
            self._start_sec += look_sec
            # The clock of the bar is another one, and may be a little behind.
            self._bar.start_t = min(self._bar.start_t + look_sec, self._bar._time())
            self._bar.clear()   # for a line that `begun` may print
        if self._begun is not None:
            self._begun(sum(stage.sec for stage in stages) + later_sec)
            self._begun = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While work is done; between such times, other lines can be printed."""
        self._start_sec = time.monotonic()
        with tqdm(desc="first look", total=self._total(), bar_format=_FORMAT, smoothing=0, leave=False,
                  dynamic_ncols=True, disable=not self._show) as self._bar:
            if self._show:
                self._bar.start_t -= self._elapsed_sec
                self._bar.n = self._done_sec
            try:
                yield
            finally:
                self._elapsed_sec += time.monotonic() - self._start_sec

    def _total(self) -> float:
        return self._done_sec + sum(stage.sec for stage in self._stages) + self._later_sec

    def start(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a stage; stages that should have come before it are not needed, it seems.

        Returns:
            A function to be called with the number of items just done.
        """
        names = [stage.name for stage in self._stages]
        item_sec = 0.0
        if name in names:
            item_sec = self._stages[names.index(name)].item_sec
            del self._stages[:names.index(name) + 1]
        bar, done = self._bar, 0
        bar.total = self._total() + total * item_sec
        bar.set_description_str(f"{name} 0/{total}")

        def update(count: int) -> None:
            nonlocal done
            count = min(count, total - done)  # the processes' shares may differ by one item
            done += count
            self._done_sec += count * item_sec
            bar.set_description_str(f"{name} {done}/{total}", refresh=False)
            if item_sec:
                bar.update(count * item_sec)
            else:
                bar.refresh()   # what takes no time by the plan moves the numbers alone

        return update
