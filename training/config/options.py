"""The options of train.py, each written once.

A field of `Options` is what the user gave for an option; None = left out. The metadata of the field describe the option
(`Option`). From them follow the command line and its help, checks of ranges, the differences that a resumed run may
have, and the names in messages.
"""

import dataclasses
import functools
import math
import operator
import typing
from typing import Any, Callable, Iterable, Literal, Mapping, NamedTuple

from dnnlib.util import UserError

from .presets import ADA_TARGET, PIPES, PRESETS, RESUME_SOURCES
from .rivals import RIVALS, normalise
from .schema import METHOD_NAMES, DecoderAct, DiscriminatorConfig, HalfType, LossConfig, Method, Recipe, TrainingConfig

GENERAL = "General options"
DATA = "Data"
BASIC = "Training settings"
AUGMENTATION = "Augmentation"
METHOD = "Tasks for the discriminator"
NETS = "Networks"
TRANSFER = "Resuming and transfer learning"
SPEED = "Performance"
RELEASED = "Names that the released GLeaD and GGDR programs use"

WITH_TASKS: tuple[Method, ...] = ("ggdr", "glead", "glead+ggdr")
GLEAD: tuple[Method, ...] = ("glead", "glead+ggdr")

LIMITS = {  # By keyword of `option`: the comparison of a number with the limit, and the limit in words.
    "at_least":  (operator.ge, "at least {}"),
    "more_than": (operator.gt, "more than {}"),
    "at_most":   (operator.le, "at most {}"),
    "below":     (operator.lt, "less than {}"),
    "between":   (lambda value, limits: limits[0] <= value <= limits[1], "{0[0]} to {0[1]}"),
}

# Properties of the images that no option sets: words for messages, and the field of the configuration.
OF_IMAGES = {
    "the resolution of the images":         "dataset.resolution",
    "the number of channels of the images": "dataset.num_channels",
}


class Option(NamedTuple):
    """Describes an option."""

    group: str                          # Heading in --help.
    help: str
    name: str = ""                      # Name of the field; on the command line, `-` replaces `_`.
    type: Any = str                     # Type of its value, apart from None.
    default: Any = None                 # None = it is left out.
    metavar: str | None = None          # None = the name of the type.
    shown: str | None = None            # The default in --help, if it differs between runs.
    choices: tuple[str, ...] | None = None
    read: Callable[[str], str] | None = None    # Normalises the text; raises UserError.
    path: bool = False                  # A file or folder, or a name in place of one.
    flag: bool = False                  # Takes no value.
    or_auto: bool = False               # A whole number, or "auto".
    short: str | None = None            # Short spelling, such as "-n".
    early: bool = False                 # Limits are checked while the command line is parsed.
    limits: Mapping[str, Any] = {}      # Limits of the number, by key of LIMITS.
    sets: tuple[str, ...] = ()          # Fields of `TrainingConfig` that get its value, unless it was left out.
    implies: tuple[str, ...] = ()       # Fields that `resolve` fills from it. Messages show the first one.
    shape: tuple[str, ...] = ()         # Those of its fields on which the content of a training state depends.
    free: bool = False                  # A resumed run may have another value: it does not change what is learnt.
    once: bool = False                  # Holds for one command only: an options file can't contain it.
    methods: tuple[Method, ...] = ()    # Methods on which it has an effect; empty = all.
    also: str | None = None             # Its name in the released programs.
    summary: str = ""                   # Name of its line in the summary of a run; empty = no line.
    note: str = ""                      # Addition to messages about differences.

    @property
    def flag_name(self) -> str:
        """`--lambda-real`; the released programs have `_`."""
        return "--" + (self.name if self.group == RELEASED else self.name.replace("_", "-"))

    @property
    def both_names(self) -> str:
        return self.flag_name + (f" (--{self.also})" if self.also else "")

    @property
    def fields(self) -> tuple[str, ...]:
        return self.sets + self.implies

    def check(self, value: float) -> None:
        """Raise UserError if a number is outside the limits of the option."""
        if "between" not in self.limits:
            expect(math.isfinite(value), self.flag_name, value, "a finite number")
        for name, limit in self.limits.items():
            fits, words = LIMITS[name]
            expect(fits(value, limit), self.flag_name, value, words.format(limit))


def expect(ok: bool, name: str, value: Any, expected: str) -> None:
    """Raise UserError unless `ok`: the option `name` has this value, and `expected` says what it should be."""
    if not ok:
        raise UserError(f"{name} is {value}, expected {expected}")


def option(group: str, help: str, *, default: Any = None, shape: bool | tuple[str, ...] = False, **known: Any) -> Any:
    """Make a field of `Options`. The arguments are those of `Option`, with these differences:

    Args:
        shape: True = all fields in `sets` and `implies`.
        known: Other fields of `Option`, and keys of `LIMITS`. A string stands for a tuple of one field.
    """
    limits = {name: known.pop(name) for name in LIMITS if name in known}
    for name in ("sets", "implies"):
        if isinstance(known.get(name), str):
            known[name] = (known[name],)
    described = Option(group, help, default=default, limits=limits, **known)
    described = described._replace(shape=described.fields if shape is True else shape or ())
    return dataclasses.field(default=default, metadata={"option": described})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the user gave on the command line; None = left out."""

    outdir: str | None = option(
        GENERAL, "Where to make the run directory.  [required, except to resume a run by its directory]",
        path=True, metavar="DIR", free=True)
    config: str | None = option(
        GENERAL, "Take options from this JSON or YAML file, or from the training_options.json of a run; those of the "
        "command line win.", path=True, metavar="FILE", free=True, once=True)
    gpus: int | None = option(
        GENERAL, "Number of GPUs, or of processes with --device=cpu; a power of two.",
        shown="1, under torchrun as many as it started processes", implies="num_gpus", free=True)
    snap: int | None = option(
        GENERAL, "Ticks between snapshots; 0 = one at the end.", metavar="TICKS", shown="50",
        sets="snapshot_ticks", at_least=0, free=True, summary="Snapshots")
    tick: float | None = option(
        GENERAL, "Length of a tick in thousands of images.", metavar="KIMG", shown="4",
        sets="kimg_per_tick", more_than=0, free=True)
    grid_size: int = option(
        GENERAL, "Largest width and height of grids of images.", metavar="PIXELS",
        default=TrainingConfig.grid_size, sets="grid_size", at_most=1 << 15, free=True)
    metrics: tuple[str, ...] | None = option(
        GENERAL, "Metrics of every snapshot, comma-separated, or none.", metavar="NAMES", shown="fid50k_full",
        sets="metrics", free=True, summary="Metrics")
    detector: str | None = option(
        GENERAL, "Feature net of the metrics.  [default: each metric's standard one]", path=True, metavar="PATH|URL",
        sets="detector", free=True)
    trust_net: bool = option(
        GENERAL, "Trust TorchScript files given by --detector and --perceptual, which can run any code; remembered for "
        "each file.", flag=True, default=False, free=True, once=True)
    seed: int = option(
        GENERAL, "Random seed.", default=TrainingConfig.random_seed, sets="random_seed", implies="dataset.random_seed",
        at_least=0, below=2**31)
    device: Literal["auto", "cpu", "cuda"] = option(
        GENERAL, "Where to train.", default="auto", implies="device", free=True)
    keep: str = option(
        GENERAL, "Network pickles to keep: all, or a list such as last:3,best,every:10. The first of --metrics tells "
        "which is best.", metavar="RULES", default=TrainingConfig.keep, sets="keep", free=True)
    timeout: float = option(
        GENERAL, "How long processes wait for one that hangs.", metavar="SEC", default=TrainingConfig.timeout_sec,
        sets="timeout_sec", more_than=0, at_most=1e6, early=True, free=True)
    log: tuple[str, ...] | None = option(
        GENERAL, "Trackers that show statistics and pictures of the run, comma-separated: tensorboard, wandb, trackio; "
        "or none.", metavar="NAMES", shown="tensorboard", sets="log", free=True)
    outcome: str | None = option(
        GENERAL, "In the end, write finished or stopped to this file; a run that fails writes none.", path=True,
        metavar="FILE", free=True)
    dry_run: bool = option(
        GENERAL, "Print the options, parameter counts and memory, and stop; nothing is downloaded.", flag=True,
        default=False, short="-n", free=True, once=True)

    data: str | None = option(
        DATA, "Training data: folder, zip, or folder of zips.  [required, except to resume a run by its directory]",
        path=True, metavar="PATH", summary="Data")
    cond: bool = option(
        DATA, "Train with the labels of the data set.", default=False,
        implies=("dataset.use_labels", "dataset.label_dim"), shape=True)
    subset: int | None = option(
        DATA, "Train with N images, drawn by --seed.", metavar="N", shown="all", implies="dataset.max_size", shape=True)
    mirror: bool = option(
        DATA, "Add mirrored copies of the images.", default=False, implies="dataset.xflip", shape=True)

    cfg: str = option(
        BASIC, "Published settings to start from.", choices=tuple(PRESETS), default="auto", sets="preset",
        implies=("D.architecture", "loss.style_mixing_prob", "loss.pl_weight", "ema_kimg", "ema_rampup"),
        shape=("D.architecture",))
    gamma: float | None = option(
        BASIC, "Weight of R1.", shown="by --cfg", sets="loss.r1_gamma", at_least=0, summary="R1 gamma")
    kimg: float | None = option(
        BASIC, "Length of training in thousands of images.", metavar="KIMG", shown="by --cfg",
        sets="total_kimg", at_least=0.001, free=True, summary="Length")
    glr: float | None = option(
        BASIC, "Learning rate of G.", shown="by --cfg", sets="G_opt.lr", more_than=0, summary="Learning rate, G")
    dlr: float | None = option(
        BASIC, "Learning rate of D.", shown="by --cfg", sets="D_opt.lr", more_than=0, summary="Learning rate, D")
    batch: int | None = option(
        BASIC, "Images per iteration, over all GPUs.", shown="by --cfg", sets="batch_size", at_most=1 << 20,
        summary="Batch")
    batch_gpu: int | str | None = option(
        BASIC, "Images that a GPU computes at once; auto: the parts of --cfg, as many at once as fit its memory.",
        metavar="INT|auto", shown="auto", or_auto=True, implies=("batch_gpu", "fill_gpu"))
    adversarial: str | None = option(
        BASIC, "How D's scores become the losses of G and D.", shown="logistic; by --method",
        implies="loss.adversarial")
    r1: Literal["exact", "finite"] = option(
        BASIC, "R1 by the gradient, or by finite differences, which are noisy and need float32.",
        default=LossConfig.r1, sets="loss.r1")

    aug: Literal["noaug", "ada", "fixed"] | None = option(
        AUGMENTATION, "Augment what D sees: never, adapted to overfitting (ADA), or with probability --p.",
        shown="ada", implies=("augment.mode", "augment", "augment.ada_kimg", "augment.interval"),
        shape=("augment.mode",), summary="Augmentation")
    p: float | None = option(
        AUGMENTATION, "Probability of each transform; needed for --aug=fixed.", implies="augment.p", between=(0, 1),
        shape=True)
    target: float | None = option(
        AUGMENTATION, "ADA's target of the mean sign of D's scores of real images.", shown=f"{ADA_TARGET:g}",
        implies="augment.target", between=(0, 1))
    augpipe: str | None = option(
        AUGMENTATION, "Transforms.", choices=tuple(PIPES), shown="bgc", implies=("augment.pipe", "augment.transforms"))
    recon_target: Literal["input", "clean"] | None = option(
        AUGMENTATION, "What G rebuilds: what D was shown, or the image before augmentation.",
        shown="input; clean for --recipe=released", sets="loss.recon_target", methods=GLEAD)

    method: str | None = option(
        METHOD, f"Which tasks D has: {', '.join(METHOD_NAMES)}. Add others by +, in any order: "
        f"{', '.join(RIVALS)}.", shown="glead", metavar="NAME[+NAME...]", read=normalise,
        implies=("method", "D.heads", "D.extra_channels", "D.aux_outputs", "loss.real_task.kind",
                 "loss.fake_task.kind"),
        shape=("D.heads", "D.extra_channels", "D.aux_outputs"), summary="Method")
    rival_options: str | None = option(
        METHOD, "Settings of what --method adds by +, such as centring.weight=0.1,zcr.gen=0.2.", shown="as published",
        metavar="NAME.OPTION=NUMBER,...")     # its fields depend on the rivals: see `resume.changed`
    recipe: Recipe | None = option(
        METHOD, "Follow GLeaD's paper, or what its released program does.",
        shown="paper; released for --reg_type=glead", implies=("recipe", "loss.real_task_in_dreg"))
    lambda_real: float | None = option(
        METHOD, "Weight of the task for real images.", shown="10", also="reg_weight_real", methods=GLEAD,
        implies=("loss.real_task.weight", "loss.real_task"), at_least=0, summary="Real images")
    lambda_fake: float | None = option(
        METHOD, "Weight of the task for generated images.", shown="3; 10 for feature maps", also="reg_weight_fake",
        methods=WITH_TASKS, implies=("loss.fake_task.weight", "loss.fake_task"), at_least=0,
        summary="Generated images")
    res_g: int | None = option(
        METHOD, "Resolution of D's feature map, from which G resumes; 1 = D gives w alone.", metavar="RES",
        shown="as published for the data sets of the paper; else 32, 64 for glead+ggdr, at most a quarter of the image",
        also="glead_res_g", methods=GLEAD, implies="D.res_g", shape=True)
    res_decoder: int | None = option(
        METHOD, "Resolution of D's decoder.", metavar="RES", shown="64; at most half of the image", also="glead_res_d",
        methods=GLEAD, implies="D.decoder_res", shape=True, summary="Decoder of D")
    ggdr_res: int | None = option(
        METHOD, "Resolution of the features that GGDR compares.", metavar="RES",
        shown="64; a quarter of images below 64", methods=("ggdr",), implies="loss.feature_res",
        note="--res-g for glead+ggdr")
    decoder_kernel: int | None = option(
        METHOD, "Side of the decoder's convolutions.", shown="1", also="decoder_conv_kernel_size", methods=WITH_TASKS,
        implies="D.decoder_kernel", at_most=15, shape=True)
    decoder_act: DecoderAct | None = option(
        METHOD, "Activation of the decoder.", shown="linear", methods=WITH_TASKS, implies="D.decoder_act")
    perceptual: str | None = option(
        METHOD, "Perceptual net that compares images.", path=True, metavar="NAME|PATH|URL",
        shown="lpips-vgg; lpips-alex for --recipe=released", methods=GLEAD, implies="perceptual")

    cbase: int | None = option(
        NETS, "Channels at resolution r are cbase / r ...", shown="by --cfg",
        sets=("G.channel_base", "D.channel_base"), at_most=1 << 20, shape=True)
    cmax: int | None = option(
        NETS, "... but at most cmax.", shown="by --cfg",
        sets=("G.channel_max", "D.channel_max"), at_least=1, at_most=1 << 14, shape=True)
    map_depth: int | None = option(
        NETS, "Layers of the mapping network.", shown="by --cfg",
        sets="G.map_depth", at_least=1, at_most=64, shape=True)
    mbstd_group: int | None = option(
        NETS, "Images per minibatch deviation.", shown="by --cfg", sets="D.mbstd_group_size", at_least=1)

    resume: str | None = option(
        TRANSFER, "Resume a run (its directory, or one of its training states; auto: the unfinished one in "
        "--outdir that the same command started, if there is one), or start from a network pickle, or one of "
        f"{', '.join(RESUME_SOURCES)}.", path=True, metavar="auto|noresume|PATH|URL|NAME", shown="auto",
        implies="resume", free=True, summary="Start")
    resume_anyway: bool = option(
        TRANSFER, "Resume a run although this command changes what is learnt.", flag=True, default=False, free=True,
        once=True)
    freezed: int = option(
        TRANSFER, "FreezeD: number of D's layers that are not trained, from the image on.",
        default=DiscriminatorConfig.freeze_layers, sets="D.freeze_layers", at_least=0, shape=True)

    fp32: bool = option(
        SPEED, "No half precision.", default=False, note="resolutions in half precision",
        implies=("G.num_fp16_res", "D.num_fp16_res", "G.conv_clamp", "D.conv_clamp"))
    half: HalfType | None = option(
        SPEED, "Type of half precision; float16 is for GPUs only, and a CPU uses float32 instead.", shown="float16",
        implies=("G.half_type", "D.half_type"))
    lpips_fp32: bool = option(SPEED, "No half precision in the perceptual net.", default=False, sets="lpips_fp32")
    nhwc: bool = option(
        SPEED, "Channels-last memory format for half precision on GPUs.", default=False,
        sets=("G.channels_last", "D.channels_last"))
    nobench: bool = option(SPEED, "No cuDNN benchmarking.", default=False, implies="cudnn_benchmark", free=True)
    allow_tf32: bool = option(SPEED, "Let PyTorch use TF32.", default=False, sets="allow_tf32")
    workers: int = option(
        SPEED, "Processes that load images; 0 = the training process does.", default=TrainingConfig.workers,
        sets="workers", at_least=0, at_most=1024, free=True)

    reg_type: Literal["none", "ggdr", "glead"] | None = option(
        RELEASED, "Implies --method; glead: --recipe=released.")
    reg_target_real: Literal["gfwimage", "gfeat", "None"] | None = option(RELEASED, "gfwimage: G rebuilds them.")
    reg_target_fake: Literal["gfwimage", "gfeat", "None"] | None = option(
        RELEASED, "gfwimage: G rebuilds generated images; gfeat: D reproduces G's features (implies glead+ggdr).")
    reg_loss_real: Literal["lpips", "mse", "cos"] | None = option(
        RELEASED, "How real images are compared.", implies="loss.real_task.distance", methods=GLEAD)
    reg_loss_fake: Literal["lpips", "mse", "cos"] | None = option(
        RELEASED, "How generated ones are compared.", implies="loss.fake_task.distance", methods=WITH_TASKS)


def _described(field: dataclasses.Field, hint: Any) -> Option:
    """The option of a field, completed by the name and type of the field."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = kinds[0] if type(None) in typing.get_args(hint) else hint
    described: Option = field.metadata["option"]
    if typing.get_origin(kind) is Literal:
        described = described._replace(choices=typing.get_args(kind))
    return described._replace(name=field.name, type=typing.get_origin(kind) or kind)


_HINTS = typing.get_type_hints(Options)
OPTIONS = {field.name: _described(field, _HINTS[field.name]) for field in dataclasses.fields(Options)}
SECOND_NAMES = {known.also: name for name, known in OPTIONS.items() if known.also}
ONCE = {name for name, known in OPTIONS.items() if known.once}


def on_command_line(**choices: Iterable[str]) -> list[Option]:
    """All options, in the order of --help. Second names are options of their own.

    Args:
        choices: By option, choices that this package can't know.
    """
    seconds = [
        OPTIONS[name]._replace(name=second, group=RELEASED, help=OPTIONS[name].flag_name, shown=None, also=None)
        for second, name in SECOND_NAMES.items()
    ]
    chosen = {name: OPTIONS[name]._replace(choices=tuple(names)) for name, names in choices.items()}
    return [*{**OPTIONS, **chosen}.values(), *seconds]


def get(config: TrainingConfig, path: str) -> Any:
    """A field of the configuration, such as `loss.r1_gamma`; None if the object that should hold it is None."""
    return functools.reduce(lambda value, name: getattr(value, name, None), path.split("."), config)


def shown_value(value: Any) -> str:
    """Format a value of the configuration for messages: `none`, `0.0025`, `true`, `fid50k_full, is50k`."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown_value, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def apply(options: Options, config: TrainingConfig) -> TrainingConfig:
    """Set the fields that options set (`Option.sets`), unless an option was left out."""
    for name, known in OPTIONS.items():
        value = getattr(options, name)
        for path in known.sets if value is not None else ():
            config = replaced(config, path, value)
    return config


def replaced(config: Any, path: str, value: Any) -> Any:
    """A copy of the configuration with another value of one field, such as `loss.r1_gamma`."""
    first, _, rest = path.partition(".")
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


def check_ranges(config: TrainingConfig) -> None:
    """Raise UserError if a number of the configuration is outside the limits of its option."""
    for known in OPTIONS.values():
        for value in (get(config, path) for path in known.fields if known.limits):
            if isinstance(value, (int, float)):
                known.check(value)
