"""The base classes of rivals, and how a run uses them."""

from __future__ import annotations

import functools
from typing import Any, Callable, ClassVar, Collection, Mapping, Sequence, TypeVar

import torch

from torch_utils.state import Parts, check

from ..augment import AugmentOutput
from ..config.schema import TrainingConfig
from ..networks import Discriminator, DiscriminatorOutput, Generator
from ..tasks import Shown, Task, build_tasks

Tensor = torch.Tensor


class Rival:
    """A rival that changes nothing. Subclasses override methods. The terms are weighted losses [N], or None.

    Args:
        options: Values of the options in its row of `config.rivals.RIVALS`.
        tasks:   The tasks of D on real and on fake images.
    """

    kind: ClassVar[str]                     # Its name in --method; in statistics, "Loss/D/<real or fake>_<kind>".
    decodes: ClassVar[tuple[str, ...]] = () # Which of its terms ("real", "fake", "G") need D's decoder or heads.
    paired: ClassVar[bool] = False          # Its term of real images needs the graph of fake ones.
    states: Collection[int] = ()            # Resolutions at which it needs states of G, for fake images.

    def __init__(
        self, options: Mapping[str, Any], *, config: TrainingConfig, G: Generator, D: Discriminator,
        tasks: tuple[Sequence[Task], Sequence[Task]],
    ):
        self.options, self.config, self.G, self.D, self.tasks = options, config, G, D, tasks

    def look(self, judge: Any, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        """D's output for images, by `judge(img, c)`. A rival can change the images, or the output."""
        return judge(img, c)

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """A term of D's loss, from D's output for the images `shown`. Called for `kind` "fake", then for "real"."""
        return None

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """A term of G's loss, from D's output for the fake images `shown`."""
        return None


class WithClock(Rival):
    """A rival that changes in the course of training, and has state."""

    nimg = 0    # Number of images that D was trained on.

    def forget(self) -> None:
        """Discard what the parts of a batch left so far. The batch is then computed again from its first part."""

    def step(self) -> None:
        """Called after D's loss of all parts of a batch, on all ranks."""
        self.nimg += self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"nimg": self.nimg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"nimg": int})
        self.nimg = state["nimg"]


class Term:
    """A rival's term in D's loss (`kind` "real" or "fake") or in G's loss ("G"), with the interface of a task."""

    weight = 1.0

    def __init__(self, rival: Rival, kind: str, judge: Judge):
        self.kind, self.decodes, self.states = rival.kind, kind in rival.decodes, rival.states
        self._term = rival.g if kind == "G" else functools.partial(rival.d, kind)
        self._judge = judge

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor | None:
        return self._term(out, shown, self._judge)


class Judge:
    """Computes D's output for images [N, C, R, R] and labels, with the changes of all rivals (`Rival.look`)."""

    def __init__(self, D: Discriminator, rivals: Sequence[Rival]):
        self.D, self.rivals = D, rivals
        self.augment: Callable[..., AugmentOutput] | None = None    # `StyleGAN2Loss` sets it.

    def show(self, img: Tensor, c: Tensor) -> Shown:
        """Augment images that are not those of the batch."""
        return Shown(img if self.augment is None else self.augment(img, {}).images, img, c, {})

    def __call__(self, img: Tensor, c: Tensor, *, decode: bool = False) -> DiscriminatorOutput:
        """D's output; its decoder and heads run only with `decode`."""
        ask = self.D.run if decode else self._score
        for rival in self.rivals:
            ask = functools.partial(rival.look, ask)
        return ask(img, c)

    def _score(self, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(self.D(img, c), {}, None, None, None)


class Rivals:
    """All rivals of a run, as `StyleGAN2Loss` uses them."""

    def __init__(self, D: Discriminator, rivals: Sequence[Rival] = ()):
        clocks = {rival.kind: rival for rival in rivals if isinstance(rival, WithClock)}
        self.judge = Judge(D, rivals)
        self.terms = {kind: [Term(rival, kind, self.judge) for rival in rivals] for kind in ("real", "fake", "G")}
        self.paired = any(rival.paired for rival in rivals)
        self.parts: Parts = {"rivals": clocks} if clocks else {}    # Rivals with state.
        self._clocks = list(clocks.values())

    def forget(self) -> None:
        """See `WithClock.forget`."""
        for clock in self._clocks:
            clock.forget()

    def step(self) -> None:
        """See `WithClock.step`."""
        for clock in self._clocks:
            clock.step()


RIVAL_CLASSES: dict[str, type[Rival]] = {}
T = TypeVar("T", bound=type[Rival])


def rival(cls: T) -> T:
    """Class decorator: enters the class into `RIVAL_CLASSES` under its `kind`."""
    RIVAL_CLASSES[cls.kind] = cls
    return cls


def build_extras(config: TrainingConfig, G: Generator, D: Discriminator, **task_kwargs: Any) -> dict[str, Any]:
    """Build the tasks and rivals of a run, as arguments of `StyleGAN2Loss`. `task_kwargs` go to `build_tasks`."""
    real, fake = build_tasks(config, G, **task_kwargs)
    rivals = [RIVAL_CLASSES[name](options, config=config, G=G, D=D, tasks=(real, fake))
              for name, options in config.loss.rivals.items()]
    return {"real_tasks": real, "fake_tasks": fake, "rivals": Rivals(D, rivals)}
