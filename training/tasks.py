"""Tasks of D besides telling real from fake. A task computes a loss for each image, from what D extracted from it.

Everything about a task is in its class. A new task is a class with the decorator `task`. The training loop and the
losses need no change for it.
"""

from typing import Any, Callable, ClassVar, Collection, Literal, Mapping, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F

from dnnlib.util import UserError

from .config.presets import published_data
from .config.rivals import NumberOption
from .config.schema import LEGACY_DISTANCES, TaskConfig, TrainingConfig, computes_in_half
from .networks import DiscriminatorOutput, Generator, SynthesisOutput, SynthesisState
from .perceptual import PerceptualLoss, build_perceptual

Tensor = torch.Tensor


class Shown(NamedTuple):
    """Images that D was shown, and what is known about them."""

    img: Tensor                         # As D saw them, after augmentation [N, C, R, R].
    clean: Tensor                       # Before augmentation [N, C, R, R].
    c: Tensor                           # Labels [N, c_dim].
    states: dict[int, SynthesisState]   # Of G, by resolution, with maps augmented like `img`; empty for real images.
    z: Tensor | None = None             # Latents of fake images [N, z_dim].
    ws: Tensor | None = None            # The ws of fake images [N, num_ws, w_dim].


class Context(NamedTuple):
    """What a task is built from, besides `TaskConfig`."""

    config: TrainingConfig
    options: Mapping[str, float]                # The task's own options, complete with defaults.
    G: Generator
    distance: Callable[[str], PerceptualLoss]   # Returns the distance that `TaskConfig.distance` names.


class Task(Protocol):
    kind: ClassVar[str]                     # `TaskConfig.kind`; in statistics, "Loss/D/<real or fake>_<kind>".
    distances: ClassVar[tuple[str, ...]]    # Choices for `TaskConfig.distance`; empty = the task has no choice.
    compared: ClassVar[str]                 # What it compares, for messages, with the released program's name.
    options: ClassVar[Mapping[str, NumberOption]]   # Its own options, by name.
    decodes: ClassVar[bool]                 # Whether it needs the outputs of D's decoder and heads.
    weight: float
    states: Collection[int]                 # Resolutions at which it needs states of G.

    @classmethod
    def from_config(cls, task: TaskConfig, context: Context) -> "Task": ...

    @staticmethod
    def describe(task: TaskConfig, config: TrainingConfig) -> str:
        """A few words on what D has to do, for the summary of a run."""
        ...

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        """Unweighted loss [N] for D's output `out` on the images `shown`."""
        ...


TASKS: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def task(cls: T) -> T:
    """Class decorator: enters the class into `TASKS` under its `kind`."""
    TASKS[cls.kind] = cls
    return cls


@task
class FeatureMatching:
    """D's decoder reproduces G's features of a fake image: cosine distance over channels (GGDR, Lee et al., ECCV 2022).

    If D has a feature head for G (GLeaD+GGDR), the output of that head is compared, else the decoder's level of the
    same resolution.
    """

    kind = "feature"
    distances = ("cosine",)
    compared = "feature maps (gfeat)"
    options: Mapping[str, NumberOption] = {}
    decodes = True

    def __init__(self, *, res: int, weight: float):
        self.res = res
        self.weight = weight
        self.states: Collection[int] = (res,)

    @classmethod
    def from_config(cls, task: TaskConfig, context: Context) -> "FeatureMatching":
        return cls(res=context.config.loss.feature_res, weight=task.weight)

    @staticmethod
    def describe(task: TaskConfig, config: TrainingConfig) -> str:
        res = config.loss.feature_res
        return f"D reproduces G's features at {res}x{res}, compared by {task.distance}, weight {task.weight:g}"

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        source = out.fmaps[self.res] if out.f is None else _resize(out.f, self.res)
        target = shown.states[self.res].x.detach().to(torch.float32)
        return 1 - F.cosine_similarity(source, target, dim=1).mean(dim=[1, 2])


@task
class ImageReconstruction:
    """A frozen G rebuilds the image from what D extracted (GLeaD, Bai et al., CVPR 2023, Eq. 3 to 7).

    Gradients pass through G to D. G's weights get no gradient, because only D's weights require one in D's phases.
    """

    kind = "reconstruction"
    distances = ("perceptual", "mse")
    compared = "images (gfwimage)"
    options: Mapping[str, NumberOption] = {}
    decodes = True
    states: Collection[int] = ()

    def __init__(
        self,
        *,
        G: Generator,
        res_g: int,                                         # Resolution from which G resumes; 1 = its constant input.
        distance: PerceptualLoss,
        weight: float,                                      # Lambda 1 for real images, lambda 2 for fake ones.
        target: Literal["input", "clean"] = "input",        # The image that D was shown, or before augmentation.
    ):
        self.G = G
        self.res_g = res_g
        self.distance = distance
        self.weight = weight
        self.target = target

    @classmethod
    def from_config(cls, task: TaskConfig, context: Context) -> "ImageReconstruction":
        c = context.config
        return cls(G=context.G, res_g=c.D.res_g, distance=context.distance(task.distance), weight=task.weight,
                   target=c.loss.recon_target)

    @staticmethod
    def describe(task: TaskConfig, config: TrainingConfig) -> str:
        res, net = config.D.res_g, config.perceptual if task.distance == "perceptual" else task.distance
        data = published_data(config.dataset)
        note = f" (as published for {data.name})" if data is not None and data.res_g == res else ""
        start = "w alone" if res == 1 else f"f at {res}x{res}{note} and w"
        return f"rebuilt by G from {start}, compared by {net}, weight {task.weight:g}"

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        target = self.distance.embed_target(shown.img if self.target == "input" else shown.clean)
        return self.distance.distance(reconstruct(self.G, out, res_g=self.res_g), target)


def validate_tasks(config: TrainingConfig) -> None:
    """Raise UserError if a task is unknown, or has not the configured distance or options."""
    for images, task in (("real", config.loss.real_task), ("fake", config.loss.fake_task)):
        if task is None:
            continue
        if task.kind not in TASKS:
            known = ", ".join(sorted(TASKS))
            raise UserError(f"D has no task {task.kind!r} on {images} images: expected one of {known}")
        fits = TASKS[task.kind].distances
        if task.distance not in (fits or (None,)):
            names = " or ".join(LEGACY_DISTANCES[name] for name in fits) or "nothing else than the task itself"
            came, what = LEGACY_DISTANCES.get(task.distance), TASKS[task.kind].compared
            raise UserError(f"--reg_loss_{images} is {came}, but {what} are compared by {names}")
        _options_of(task, images)


def _options_of(task: TaskConfig, images: str) -> dict[str, float]:
    """The task's own options, with defaults for those that were left out. `images` ("real", "fake") is for messages."""
    known, where = TASKS[task.kind].options, f"D's task {task.kind!r} on {images} images"
    for name, value in task.options.items():
        if name not in known:
            raise UserError(f"{where} has no option {name!r}: expected {', '.join(known) or 'none'}")
        default, low, high = known[name]
        integer = isinstance(default, int)
        if type(value) not in ((int,) if integer else (int, float)) or not low <= value <= high:
            kind = "an integer" if integer else "a number"
            raise UserError(f"option {name} of {where} is {value!r}, expected {kind} from {low} to {high}")
    return {name: option.default for name, option in known.items()} | task.options


def build_tasks(
    config: TrainingConfig, G: Generator, *, build_distance: Callable[..., PerceptualLoss] = build_perceptual
) -> tuple[list[Task], list[Task]]:
    """Build the tasks of D on real and on fake images. Tasks with the same distance share one net.

    Args:
        build_distance: Called like `build_perceptual`.

    Raises:
        UserError: As `validate_tasks`.
    """
    validate_tasks(config)
    distances: dict[str, PerceptualLoss] = {}

    def distance(name: str) -> PerceptualLoss:
        spec = config.perceptual if name == "perceptual" else name
        if spec not in distances:
            # LPIPS computes in the type of D's highest resolution, unless the user asked for float32.
            half = computes_in_half(config) and not config.lpips_fp32
            distances[spec] = build_distance(
                spec, device=next(G.parameters()).device, img_channels=config.dataset.num_channels,
                dtype=getattr(torch, config.D.half_type) if half else torch.float32)
        return distances[spec]

    real, fake = (
        [] if task is None else
        [TASKS[task.kind].from_config(task, Context(config, _options_of(task, images), G, distance))]
        for images, task in (("real", config.loss.real_task), ("fake", config.loss.fake_task)))
    return real, fake


def reconstruct(G: Generator, out: DiscriminatorOutput, *, res_g: int, noise_mode: str = "random") -> Tensor:
    """Images [N, C, R, R] that G makes from D's (f, basis image, w), resuming at resolution `res_g` (Eq. 5 and 6)."""
    return resynthesise(G, out, res_g=res_g, noise_mode=noise_mode).img


def resynthesise(G: Generator, out: DiscriminatorOutput, *, res_g: int, **run_kwargs: Any) -> SynthesisOutput:
    """As `reconstruct`, but returns states of G, too. `run_kwargs` go to `SynthesisNetwork.run`."""
    start = None
    if out.f is not None:
        start = SynthesisState(res_g, _resize(out.f, res_g), _resize(out.img, res_g))
    ws = out.w.unsqueeze(1).repeat(1, G.synthesis.num_ws_from(res_g if start else 0), 1)  # one w for all layers
    return G.synthesis.run(ws, start=start, **run_kwargs)


def _resize(x: Tensor, res: int) -> Tensor:
    if x.shape[-1] == res:
        return x
    return F.interpolate(x, size=(res, res), mode="bilinear", align_corners=False)
