"""Methods that --method adds to another one by `+`, and how a composition is read.

A row says what a rival is set to, and what it goes with; its class in `training.rivals` or `training.adversarial` says
what it does.
"""

from typing import Any, Callable, Iterable, Mapping, NamedTuple

from dnnlib.util import UserError

from .schema import METHOD_NAMES, Method, TrainingConfig


class Number(NamedTuple):
    """What an option is unless said otherwise, and its range, both ends included."""

    default: float
    low: float
    high: float


class RivalRow(NamedTuple):
    source: str                                     # Paper, and where the numbers come from.
    options: Mapping[str, Number] = {}
    adversarial: str = "logistic"                   # In `training.adversarial`.
    r1_gamma: float | None = None                   # Weight of the gradient penalty, where it is not R1.
    methods: tuple[Method, ...] = METHOD_NAMES      # To which it can be added.
    changes: str = ""                               # What no second rival can change, too.
    compares: bool = False                          # Images computed at once: these are then `batch_gpu`, no more and
                                                    # no fewer, whatever the memory of the GPU.
    row: str = ""                                   # In the papers' tables.
    # Fields of `DiscriminatorConfig` that differ, by the rival's options and the configuration without it.
    D: Callable[[Mapping[str, float], TrainingConfig], dict[str, Any]] = lambda options, config: {}
    problem: Callable[[TrainingConfig], str] = lambda config: ""    # Why a configuration can't have it, or "".


_WEIGHT = Number(1.0, 0, 1000)
_ADVERSARIAL, _LAMBDA, _HEAD = "the adversarial loss", "the weight of D's tasks", "D's auxiliary head"
_TASKS: tuple[Method, ...] = ("ggdr", "glead", "glead+ggdr")


def _needs_gradient(config: TrainingConfig) -> str:
    if config.loss.r1 == "exact":
        return ""
    return "lets R1 alone train all of D, and can't tell it from D's loss with --r1=finite: leave out one of them"


def _lacks_fake_task(config: TrainingConfig) -> str:
    if config.loss.fake_task is not None:
        return ""
    return "repeats the task on generated images, and --lambda-fake is 0: leave out one"


def _lacks_heads(config: TrainingConfig) -> str:
    rebuilt = any(task and task.kind == "reconstruction" for task in (config.loss.real_task, config.loss.fake_task))
    if rebuilt or config.method == "stylegan2":     # where `latent` has heads of its own
        return ""
    return "needs D's heads for G, and no image is rebuilt: say --lambda-real above 0"


# Where a paper gives no number that carries over, the number is ours, and `source` says so.
RIVALS: dict[str, RivalRow] = {
    "relativistic": RivalRow(
        "Jolicoeur-Martineau, ICLR 2019; with R1 and R2 as in R3GAN (Huang et al., NeurIPS 2024), gamma by --cfg",
        adversarial="relativistic", changes=_ADVERSARIAL),
    "wgan-gp": RivalRow(
        "Gulrajani et al., NIPS 2017: lambda 10", adversarial="wgan-gp", r1_gamma=10, changes=_ADVERSARIAL,
        row="WGAN-GP"),
    "centring": RivalRow(
        "no paper: the weight is ours", {"weight": _WEIGHT._replace(default=0.01)}),
    "zcr": RivalRow(
        "Zhao et al., AAAI 2021 (ICR)",
        {"real": _WEIGHT._replace(default=10.0), "fake": _WEIGHT._replace(default=10.0),
         "dis": _WEIGHT._replace(default=5.0), "gen": _WEIGHT._replace(default=0.5), "sigma": Number(0.03, 0, 10)},
        row="zCR"),
    "ar": RivalRow(
        "Chen et al., CVPR 2019 (SS-GAN): 1 for D, 0.2 for G",
        {"dis": _WEIGHT, "gen": _WEIGHT._replace(default=0.2)}, changes=_HEAD, row="AR",
        D=lambda options, config: {"aux_outputs": 4}),
    "contrad": RivalRow(
        "Jeong and Shin, ICLR 2021 (ContraD)", {"weight": _WEIGHT, "temperature": Number(0.1, 0.001, 1000)},
        changes=_HEAD, compares=True, row="ContraD", D=lambda options, config: {"aux_outputs": 256},
        problem=_needs_gradient),
    "cross-scale": RivalRow(
        "no paper that could be compared: the weight is ours", {"weight": _WEIGHT}),
    "fsmr": RivalRow(
        "Kim et al., CVPR 2022; the weight is ours", {"weight": _WEIGHT}, compares=True, row="FSMR"),
    "pa": RivalRow(
        "Zhang and Khoreva, NeurIPS 2019 (PA-GAN); the schedule is ours",
        {"levels": Number(2, 1, 16), "kimg": Number(1000.0, 0.001, 1e6)}, methods=("stylegan2", "ggdr"),
        row="PA-GAN", D=lambda options, config: {"extra_channels": options["levels"]}),
    "unet": RivalRow(
        "Schoenfeld et al., CVPR 2020: 1 for each", {"weight": _WEIGHT, "cutmix": _WEIGHT}, methods=("stylegan2",),
        D=lambda options, config: {"decoder_res": config.dataset.resolution}),
    "latent": RivalRow(
        "of the kin of Donahue et al., ICLR 2017 (BiGAN); the weight is ours", {"weight": _WEIGHT},
        methods=("stylegan2", "glead", "glead+ggdr"),
        D=lambda options, config: {} if config.D.heads else {"heads": True, "decoder_res": 8, "res_g": 1},
        problem=_lacks_heads),
    "masked": RivalRow(
        "no paper: the share is ours", {"share": Number(0.25, 0, 1)}, methods=("glead", "glead+ggdr")),
    "through-g": RivalRow(
        "an ablation of GLeaD, Section 3.2", {"share": Number(1.0, 0, 1000)}, methods=("glead",),
        problem=_lacks_fake_task),
    "edited": RivalRow(
        "no paper: both numbers are ours", {"share": Number(1.0, 0, 1000), "strength": Number(0.5, -10, 10)},
        methods=("glead",), problem=_lacks_fake_task),
    "g-features": RivalRow(
        "no paper: the weight is ours", {"weight": _WEIGHT}, methods=("glead", "glead+ggdr"), problem=_lacks_heads),
    "ada-lambda": RivalRow(
        "no paper: steered as by Karras et al., NeurIPS 2020 (ADA)",
        {"target": Number(0.6, -1, 1), "gap": Number(0.0, 0, 1000), "kimg": Number(500.0, 0.001, 1e6),
         "most": Number(4.0, 0, 1000)}, methods=_TASKS, changes=_LAMBDA),
    "lambda-schedule": RivalRow(
        "no paper: the schedule is ours",
        {"start": Number(0.0, 0, 1000), "end": Number(1.0, 0, 1000), "kimg": Number(1000.0, 0.001, 1e6)},
        methods=_TASKS, changes=_LAMBDA),
}


def read_method(text: str) -> tuple[Method, tuple[str, ...]]:
    """The method and its rivals, of a composition such as `centring+glead+ggdr`; the order does not matter.

    Raises:
        UserError: A name is unknown or comes twice, or some of them can't go together.
    """
    names = text.split("+")
    rivals = tuple(sorted(name for name in names if name in RIVALS))
    rest = [name for name in names if name not in RIVALS]
    if set(rest) == {"glead", "ggdr"} or not rest:
        rest = ["glead+ggdr"] if rest else ["stylegan2"]
    for name in rest:
        if name not in METHOD_NAMES:
            raise UserError(f"{name!r} is no method: expected one of {', '.join(METHOD_NAMES)}, and, joined by +, any "
                            f"of {', '.join(RIVALS)}")
    if len(rest) > 1 or len(set(names)) < len(names):
        raise UserError(f"{text} names more than one method: expected one of {', '.join(METHOD_NAMES)}"
                        if len(rest) > 1 else f"{text} names the same twice")
    (method,) = rest
    _check_together(method, rivals)
    return method, rivals  # type: ignore[return-value]  # it is one of METHOD_NAMES


def _check_together(method: str, rivals: Iterable[str]) -> None:
    changed: dict[str, str] = {}
    for name in rivals:
        row = RIVALS[name]
        if method not in row.methods:
            raise UserError(f"{name} can't be added to {method}: it goes with {', '.join(row.methods)}")
        if row.changes and row.changes in changed:
            raise UserError(f"{changed[row.changes]} and {name} both change {row.changes}: leave out one of them")
        changed[row.changes] = name


def method_name(method: str, rivals: Iterable[str]) -> str:
    """The name of a composition, whatever the order in which it was said."""
    return "+".join([method, *sorted(rivals)])


def name_of(config: TrainingConfig) -> str:
    """The composition that a configuration is of."""
    return method_name(config.method, names_in(vars(config.loss)))


def full_name(config: Mapping[str, Any]) -> str:
    """The same of a configuration as JSON has it.

    Raises:
        KeyError: It names no method.
    """
    return method_name(config["method"], names_in(config.get("loss", {})))


def names_in(loss: Mapping[str, Any]) -> list[str]:
    """What is added to the method, of the losses of a configuration, as JSON has them. Old ones have no rivals."""
    return sorted({*loss.get("rivals", ()), loss.get("adversarial", "logistic")} - {"logistic"})


def normalise(text: str) -> str:
    return method_name(*read_method(text))


def read_options(text: str | None, rivals: Iterable[str]) -> dict[str, dict[str, float]]:
    """Options of the rivals that have any, by rival; `text` is such as `zcr.gen=0.2,centring.weight=1`.

    Raises:
        UserError: There is no such option, or its value is no number or out of range.
    """
    options = {name: {option: number.default for option, number in RIVALS[name].options.items()} for name in rivals}
    said: set[str] = set()
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        if name in said:
            raise UserError(f"--rival-options: {name} is set twice: leave out one of them")
        said.add(name)
        rival, _, option = name.partition(".")
        if option not in options.get(rival, ()):
            known = [f"{rival}.{option}" for rival in options for option in options[rival]]
            raise UserError(f"--rival-options: {part!r} sets no option of this --method: expected "
                            + (f"NAME=NUMBER, with {', '.join(known)} as NAME" if known else "none"))
        options[rival][option] = _number(name, value, RIVALS[rival].options[option])
    return {name: values for name, values in options.items() if values}


def _number(name: str, text: str, expected: Number) -> float:
    kind = type(expected.default)
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not expected.low <= value <= expected.high:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"--rival-options: {name} is {text!r}, expected {words} from {expected.low} to {expected.high}")
    return value
