"""What a rival can do, and which there are."""

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
    """What a rival changes; nothing, unless a class overrides it. Terms are weighted losses [N], or None.

    Args:
        options: As in its row of `config.rivals.RIVALS`.
        tasks:   Of D, on real and on fake images.
    """

    kind: ClassVar[str]                     # Its name in --method; in statistics, "Loss/D/<real or fake>_<kind>".
    decodes: ClassVar[tuple[str, ...]] = () # Of "real", "fake" and "G": where it needs D's decoder or heads.
    paired: ClassVar[bool] = False          # The graph of fake images has to live until its term of real ones.
    states: Collection[int] = ()            # Resolutions at which it needs states of G of fake images.

    def __init__(
        self, options: Mapping[str, Any], *, config: TrainingConfig, G: Generator, D: Discriminator,
        tasks: tuple[Sequence[Task], Sequence[Task]] = ((), ()),
    ):
        self.options, self.config, self.G, self.D, self.tasks = options, config, G, D, tasks

    def look(self, judge: Any, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        """What D says of images by `judge(img, c)`, where the rival changes what it sees, or how it is understood."""
        return judge(img, c)

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """D's term on "fake" images, then on "real" ones, from its output on those `shown`."""
        return None

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """G's term, from D's output on fake images."""
        return None


class WithClock(Rival):
    """A rival that changes while D is trained, and has to remember."""

    nimg = 0    # Images that D was trained on.

    def forget(self) -> None:
        """Before the parts of a batch are computed again from the first one on."""

    def step(self) -> None:
        """After D's loss of a batch. All ranks call this."""
        self.nimg += self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"nimg": self.nimg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"nimg": int})
        self.nimg = state["nimg"]


class Term:
    """A rival's term of "real" or "fake" images in D's loss, or of "G"; the losses take it for a task."""

    weight = 1.0

    def __init__(self, rival: Rival, kind: str, judge: Judge):
        self.kind, self.decodes, self.states = rival.kind, kind in rival.decodes, rival.states
        self._term = rival.g if kind == "G" else functools.partial(rival.d, kind)
        self._judge = judge

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor | None:
        return self._term(out, shown, self._judge)


class Judge:
    """D's output for images [N, C, R, R] that it is shown and their labels, as rivals let it see the images."""

    def __init__(self, D: Discriminator, rivals: Sequence[Rival] = ()):
        self.D, self.rivals = D, rivals
        self.augment: Callable[..., AugmentOutput] | None = None    # `StyleGAN2Loss` sets it.

    def show(self, img: Tensor, c: Tensor) -> Shown:
        """Other images than those of the batch, augmented as these are."""
        return Shown(img if self.augment is None else self.augment(img, {}).images, img, c, {})

    def __call__(self, img: Tensor, c: Tensor, *, decode: bool = False) -> DiscriminatorOutput:
        """D's decoder and heads run only if asked for."""
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
        self.parts: Parts = {"rivals": clocks} if clocks else {}    # What has state.
        self._clocks = list(clocks.values())

    def forget(self) -> None:
        """Before the parts of a batch are computed again from the first one on."""
        for clock in self._clocks:
            clock.forget()

    def step(self) -> None:
        """After D's loss of all parts of the batch. All ranks call this."""
        for clock in self._clocks:
            clock.step()


RIVAL_CLASSES: dict[str, type[Rival]] = {}
T = TypeVar("T", bound=type[Rival])


def rival(cls: T) -> T:
    """Class decorator: enters the class into `RIVAL_CLASSES` under its `kind`."""
    RIVAL_CLASSES[cls.kind] = cls
    return cls


def build_extras(config: TrainingConfig, G: Generator, D: Discriminator, **said: Any) -> dict[str, Any]:
    """What a method adds to StyleGAN2's losses: tasks and rivals, as arguments of `StyleGAN2Loss`.

    Args:
        said: For `build_tasks`.
    """
    real, fake = build_tasks(config, G, **said)
    rivals = [RIVAL_CLASSES[name](options, config=config, G=G, D=D, tasks=(real, fake))
              for name, options in config.loss.rivals.items()]
    return {"real_tasks": real, "fake_tasks": fake, "rivals": Rivals(D, rivals)}
