"""Rivals: what --method can add to a method by `+`, such as `zcr` in `stylegan2+zcr`.

The row of a rival has its options, and the methods that it can be added to. Its class in `training.rivals` or
`training.adversarial` implements it.
"""

from typing import Any, Callable, Iterable, Mapping, NamedTuple

from dnnlib.util import UserError

from .schema import METHOD_NAMES, Method, TrainingConfig


class NumberOption(NamedTuple):
    """A numeric option: its default, and its range, both ends included. It is an integer if the default is one."""

    default: float
    low: float
    high: float


class RivalRow(NamedTuple):
    source: str                                     # Paper, and where the numbers come from.
    options: Mapping[str, NumberOption] = {}
    adversarial: str = "logistic"                   # Name in `training.adversarial`.
    r1_gamma: float | None = None                   # Weight of the gradient penalty, if it is not R1.
    methods: tuple[Method, ...] = METHOD_NAMES      # Methods that it can be added to.
    changes: str = ""                               # Two rivals that change the same can't go together.
    compares: bool = False                          # It compares the images of a pass. Their number is then always
                                                    # `batch_gpu`, even if the GPU has memory for more.
    row: str = ""                                   # Name of its row in the papers' tables.
    # From the rival's options and the configuration without it, the fields of `DiscriminatorConfig` that it changes.
    D: Callable[[Mapping[str, float], TrainingConfig], dict[str, Any]] = lambda options, config: {}
    problem: Callable[[TrainingConfig], str] = lambda config: ""    # Why it does not fit a configuration; "" = it fits.


_ADVERSARIAL, _LAMBDA, _HEAD = "the adversarial loss", "the weight of D's tasks", "D's auxiliary head"
_TASKS: tuple[Method, ...] = ("ggdr", "glead", "glead+ggdr")


def _weight(default: float) -> NumberOption:
    return NumberOption(default, 0, 1000)


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
    if rebuilt or config.method == "stylegan2":     # there, `latent` adds its own heads
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
        "no paper: the weight is ours", {"weight": _weight(0.01)}),
    "zcr": RivalRow(
        "Zhao et al., AAAI 2021 (ICR)",
        {"real": _weight(10.0), "fake": _weight(10.0),
         "dis": _weight(5.0), "gen": _weight(0.5), "sigma": NumberOption(0.03, 0, 10)}, row="zCR"),
    "ar": RivalRow(
        "Chen et al., CVPR 2019 (SS-GAN): 1 for D, 0.2 for G",
        {"dis": _weight(1.0), "gen": _weight(0.2)}, changes=_HEAD, row="AR",
        D=lambda options, config: {"aux_outputs": 4}),
    "contrad": RivalRow(
        "Jeong and Shin, ICLR 2021 (ContraD)", {"weight": _weight(1.0), "temperature": NumberOption(0.1, 0.001, 1000)},
        changes=_HEAD, compares=True, row="ContraD", D=lambda options, config: {"aux_outputs": 256},
        problem=_needs_gradient),
    "cross-scale": RivalRow(
        "no paper to compare with: the weight is ours", {"weight": _weight(1.0)}),
    "fsmr": RivalRow(
        "Kim et al., CVPR 2022; the weight is ours", {"weight": _weight(1.0)}, compares=True, row="FSMR"),
    "pa": RivalRow(
        "Zhang and Khoreva, NeurIPS 2019 (PA-GAN); the schedule is ours",
        {"levels": NumberOption(2, 1, 16), "kimg": NumberOption(1000.0, 0.001, 1e6)}, methods=("stylegan2", "ggdr"),
        row="PA-GAN", D=lambda options, config: {"extra_channels": options["levels"]}),
    "unet": RivalRow(
        "Schoenfeld et al., CVPR 2020: 1 for each", {"weight": _weight(1.0), "cutmix": _weight(1.0)},
        methods=("stylegan2",), D=lambda options, config: {"decoder_res": config.dataset.resolution}),
    "latent": RivalRow(
        "similar to Donahue et al., ICLR 2017 (BiGAN); the weight is ours", {"weight": _weight(1.0)},
        methods=("stylegan2", "glead", "glead+ggdr"),
        D=lambda options, config: {} if config.D.heads else {"heads": True, "decoder_res": 8, "res_g": 1},
        problem=_lacks_heads),
    "masked": RivalRow(
        "no paper: the share is ours", {"share": NumberOption(0.25, 0, 1)}, methods=("glead", "glead+ggdr")),
    "through-g": RivalRow(
        "an ablation of GLeaD, Section 3.2", {"share": _weight(1.0)}, methods=("glead",),
        problem=_lacks_fake_task),
    "edited": RivalRow(
        "no paper: both numbers are ours", {"share": _weight(1.0), "strength": NumberOption(0.5, -10, 10)},
        methods=("glead",), problem=_lacks_fake_task),
    "g-features": RivalRow(
        "no paper: the weight is ours", {"weight": _weight(1.0)}, methods=("glead", "glead+ggdr"),
        problem=_lacks_heads),
    "ada-lambda": RivalRow(
        "no paper: steered as by Karras et al., NeurIPS 2020 (ADA)",
        {"target": NumberOption(0.6, -1, 1), "gap": NumberOption(0.0, 0, 1000),
         "kimg": NumberOption(500.0, 0.001, 1e6), "most": NumberOption(4.0, 0, 1000)},
        methods=_TASKS, changes=_LAMBDA),
    "lambda-schedule": RivalRow(
        "no paper: the schedule is ours",
        {"start": _weight(0.0), "end": _weight(1.0), "kimg": NumberOption(1000.0, 0.001, 1e6)},
        methods=_TASKS, changes=_LAMBDA),
}


def read_method(text: str) -> tuple[Method, tuple[str, ...]]:
    """Split a composition such as `centring+glead+ggdr` into the method and its rivals. The order does not matter.

    Raises:
        UserError: A name is unknown or occurs twice, or some of the names can't go together.
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
    """The name of a composition, with the rivals in alphabetical order."""
    return "+".join([method, *sorted(rivals)])


def name_of(config: TrainingConfig) -> str:
    """The name of a configuration's method with its rivals."""
    return method_name(config.method, names_in(vars(config.loss)))


def full_name(config: Mapping[str, Any]) -> str:
    """As `name_of`, for a configuration in its JSON form.

    Raises:
        KeyError: It has no method.
    """
    return method_name(config["method"], names_in(config.get("loss", {})))


def names_in(loss: Mapping[str, Any]) -> list[str]:
    """The names of the rivals in a `LossConfig`, given as a mapping. Those of old runs have no "rivals"."""
    return sorted({*loss.get("rivals", ()), loss.get("adversarial", "logistic")} - {"logistic"})


def normalise(text: str) -> str:
    """The usual form of a composition, such as `glead+ggdr+centring`. Raises UserError as `read_method`."""
    return method_name(*read_method(text))


def read_options(text: str | None, rivals: Iterable[str]) -> dict[str, dict[str, float]]:
    """The options of those rivals that have any, by rival. Defaults complete them.

    Args:
        text:   Options that differ from the defaults, such as `zcr.gen=0.2,centring.weight=1`.
        rivals: Names of the rivals.

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


def _number(name: str, text: str, expected: NumberOption) -> float:
    kind = type(expected.default)
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not expected.low <= value <= expected.high:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"--rival-options: {name} is {text!r}, expected {words} from {expected.low} to {expected.high}")
    return value
