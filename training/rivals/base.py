"""What a rival can do, and which there are."""

from __future__ import annotations

from typing import Any, Callable, ClassVar, Collection, Mapping, Sequence, TypeVar

import torch

from torch_utils.state import check

from ..config.schema import TrainingConfig
from ..networks import Discriminator, DiscriminatorOutput, Generator
from ..tasks import Shown, Task, build_tasks

Tensor = torch.Tensor
Judge = Callable[..., DiscriminatorOutput]  # Of images that D is shown, and labels; with `decode`, heads run, too.


class Rival:
    """Hooks into `StyleGAN2Loss`, which do nothing unless a class overrides them. Terms are weighted losses [N].

    Args:
        options: As in its row of `config.rivals.RIVALS`.
        tasks:   Of D, on real and on fake images.
    """

    kind: ClassVar[str]                 # Its name in --method; in statistics, "Loss/D/<real or fake>_<kind>".
    paired: ClassVar[bool] = False      # It has a `pair`.
    decodes: ClassVar[bool] = False     # It needs D's decoder or heads.
    remembers: ClassVar[bool] = False   # It has state.
    states: Collection[int] = ()        # Resolutions at which it needs states of G of fake images.

    def __init__(
        self, options: Mapping[str, Any], *, config: TrainingConfig, G: Generator, D: Discriminator,
        tasks: tuple[Sequence[Task], Sequence[Task]] = ((), ()),
    ):
        self.options, self.config, self.G, self.D, self.tasks = options, config, G, D, tasks
        self.nimg = 0   # Images that D was trained on.

    def look(self, judge: Judge, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        """What D says of images, where the rival changes what it sees, or how it is understood."""
        return judge(img, c)

    def d(self, kind: str, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """D's term on "fake" images, then on "real" ones, from its output on those `shown`."""
        return None

    def pair(self, fake: Tensor, real: Tensor) -> Tensor | None:
        """D's term of logits [N, 1] of fake and of real images."""
        return None

    def g(self, out: DiscriminatorOutput, shown: Shown, judge: Judge) -> Tensor | None:
        """G's term, from D's output on fake images."""
        return None

    def step(self) -> None:
        """After D's loss of a batch. All ranks call this."""
        self.nimg += self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        """What it remembers; empty for most."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {})


class WithClock(Rival):
    """A rival that changes with the number of images that D was trained on."""

    remembers = True

    def state_dict(self) -> dict[str, Any]:
        return {"nimg": self.nimg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"nimg": int})
        self.nimg = state["nimg"]


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
    return {"real_tasks": real, "fake_tasks": fake, "rivals": rivals}
