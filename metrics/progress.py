"""The progress bar of commands that calculate scores."""

import contextlib
import time
from typing import Callable, Iterator, NamedTuple, Sequence

from tqdm import tqdm

_FORMAT = "{desc} |{bar}| {percentage:3.0f}%, {elapsed} so far, about {remaining} left"


class Stage(NamedTuple):
    """A part of the work."""

    name: str           # Such as "fid50k_full generated".
    num_items: int
    item_sec: float     # Estimated time for an item, from a short timing of the networks.

    @property
    def of_real(self) -> bool:
        """Whether it processes real images. Further networks don't need it again."""
        return self.name.endswith(" real")

    @property
    def sec(self) -> float:
        return self.num_items * self.item_sec


class ScoreBar:
    """One bar on stderr for everything that a command calculates.

    Generating an image takes longer than reading one, and feature nets differ in speed. The bar therefore counts
    seconds of work, as estimated from a short timing of the networks. This makes the remaining time right even before
    each kind of stage has run.

    Args:
        show:  Whether to show the bar.
        begun: Called once with the estimated time of everything, in seconds, as soon as it is known.
    """

    def __init__(self, *, show: bool = True, begun: Callable[[float], None] | None = None):
        self._show, self._begun = show, begun
        self._stages: list[Stage] = []      # Stages to come.
        self._later_sec = self._done_sec = self._elapsed_sec = self._start_sec = 0.0
        self._bar: tqdm | None = None

    def plan(self, stages: Sequence[Stage], *, times_later: int = 0) -> None:
        """Set the stages to come, in order. Later, all except those of real images are repeated `times_later` times."""
        later_sec = times_later * sum(stage.sec for stage in stages if not stage.of_real)
        self._stages, self._later_sec = list(stages), later_sec
        if self._show:  # leave out the time of the short timing: the bar would take it for slow work
            look_sec = time.monotonic() - self._start_sec
            self._start_sec += look_sec
            # The bar has a clock of its own, which may be a little behind.
            self._bar.start_t = min(self._bar.start_t + look_sec, self._bar._time())
            self._bar.clear()   # for a line that `begun` may print
        if self._begun is not None:
            self._begun(sum(stage.sec for stage in stages) + later_sec)
            self._begun = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the bar is shown. Outside, other lines can be printed."""
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
        """Begin a stage. Planned stages before it are dropped: they turned out not to be needed.

        Returns:
            A function to call with the number of items just done.
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
                bar.refresh()   # a stage without an estimate only changes the numbers

        return update
