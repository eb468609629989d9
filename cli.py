"""What the command lines share: error messages, types of options, common options, warnings, loading of networks."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import re
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any, Callable, Collection, Iterator, Sequence

import click

from dnnlib.util import UserError, lies_in, open_url, read_yaml

if TYPE_CHECKING:  # NumPy and PyTorch take long to import: --help and usage errors don't wait for them
    import numpy as np


class Arguments(types.SimpleNamespace):
    """The values of a command's options, as attributes."""


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A click command that reports a UserError as one line on stderr, with exit status 1.

    Options may be spelled with `_` in place of `-`.
    """

    def __init__(self, *args: Any, context_settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        spelling = {"token_normalize_func": lambda name: name.replace("_", "-")}
        super().__init__(*args, context_settings=spelling | (context_settings or {}), **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold characters that stdout can't encode
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with plain_errors():
                return super().invoke(ctx)
        except UserError as e:
            lines = [_one_line(str(line)) for line in e.args]
            title = [f"{len(lines)} things are missing or wrong:"] if len(lines) > 1 else []
            raise click.ClickException("\n  ".join(title + lines)) from e
        except BrokenPipeError:
            silence_stdout()
            sys.exit(1)


def add_options(options: Sequence[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command the options that `training.config.options` describes."""
    return lambda command: functools.reduce(lambda f, option: _declare(option)(f), reversed(options), command)


def _declare(option: Any) -> Callable[..., Any]:
    values: dict[str, Any] = {"type": option.type, "metavar": option.metavar or option.type.__name__.upper()}
    if option.flag:
        values = {"is_flag": True}
    elif option.choices is not None:
        values = {"type": click.Choice(option.choices)}
    elif option.read is not None:
        values["type"] = Read(option.read)
    elif option.path:
        values["type"] = Path()
    elif option.or_auto:
        values["type"] = IntOrAuto()
    elif option.type is tuple:
        values["type"] = CommaList()
    elif option.early:
        values["type"] = FiniteFloat(min=option.limits["more_than"], min_open=True, max=option.limits["at_most"])
    if option.shown is not None:
        values["show_default"] = option.shown
    names = [option.short, option.flag_name] if option.short else [option.flag_name]
    values |= {"group": option.group, "default": option.default, "help": option.help}
    return click.option(*names, cls=GroupedOption, **values)


def given_options(context: click.Context) -> dict[str, Any]:
    """The options that the user gave on the command line, without those at their defaults."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in context.params.items() if context.get_parameter_source(name) == source}


def read_option_file(path: str, context: click.Context, *, without: Collection[str]) -> dict[str, Any]:
    """Read options of the current command from a JSON or YAML file.

    The file maps names of options, with `-` or `_`, to values as on the command line. In a run's
    `training_options.json`, this mapping is the entry "command".

    Args:
        without: Options that a file can't give. They are ignored in a run's `training_options.json`, and an error
                 elsewhere.

    Raises:
        UserError: The file can't be read or holds no mapping, a name is unknown, or a value has the wrong type.
    """
    content = _read_mapping(path)
    if isinstance(content.get("command"), dict):
        content = {name: value for name, value in content["command"].items() if name not in without}
    params = {param.name: param for param in context.command.params}
    values = {}
    for name, value in content.items():
        param = params.get(str(name).replace("-", "_"))
        if param is None or param.name in without:
            raise UserError(f"{path}: {name!r} is no option that a file can give")
        if value is None or isinstance(value, dict):
            raise UserError(f"{path}: {name} is {value!r}, expected a value as on the command line")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            values[param.name] = param.type.convert(text, param, context)
        except click.BadParameter as e:
            raise UserError(f"{path}: {name}: {e.message}") from e
    return values


def _read_mapping(path: str) -> dict[Any, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no mapping of options to values")
    return content


def silence_stdout() -> None:
    """Discard further output. After a BrokenPipeError, flushing stdout at exit would raise the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of the file system into UserErrors: missing or locked files, full disks, names that aren't UTF-8."""
    try:
        yield
    except UnicodeEncodeError as e:
        if e.reason != "surrogates not allowed":  # Python decodes other bytes in file names as surrogates
            raise
        name = e.object[max(e.start - 40, 0):e.end + 40]
        raise UserError(f"{name!a} holds the name of a file that is not UTF-8: rename the file") from e
    except OSError as e:
        if e.filename is None and e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = "" if e.filename is None else f"{os.fsdecode(e.filename)}: "
        raise UserError(f"{place}{e.strerror}") from e


class DefaultGroup(click.Group):
    """A default command with sub-commands. The default runs if the first argument doesn't name a sub-command.

    `--help` shows the help of the default command, with a list of the sub-commands at its end.
    """

    def __init__(self, default: click.Command, *commands: click.Command) -> None:
        super().__init__(default.name, commands=commands)
        self.default = default
        lines = [f"  {command.name:10s} {command.get_short_help_str(100)}" for command in commands]
        default.epilog = "\n".join(["\b", "Other commands, each with a --help of its own:", *lines])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        command = super() if args and args[0] in self.commands else self.default
        return command.make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


def _one_line(message: str) -> str:
    """Escape line breaks and control characters, which file names may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class Path(click.Path):
    """A path, a URL, or a name that may stand in its place. A leading `~` is replaced by the home folder."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(readable=False, **kwargs)  # whether it can be read shows when it is opened

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = os.path.expanduser(os.fspath(value))
        try:
            name.encode()
        except UnicodeEncodeError:
            self.fail(f"{name!a} is not UTF-8: rename the file or folder", param, ctx)
        return super().convert(name, param, ctx)


class FiniteFloat(click.FloatRange):
    """A number that is finite in float32, optionally within a range."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number) or abs(number) > 3.4e38:
            self.fail(f"{value} is no finite number", param, ctx)
        return super().convert(number, param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


class Read(click.ParamType):
    """A text that the function `read` checks and brings into its usual form."""

    name = "text"

    def __init__(self, read: Callable[[str], str]):
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return self.read(value)
        except UserError as e:
            self.fail(str(e), param, ctx)


class IntOrAuto(click.ParamType):
    """A whole number of at least 1, or the word `auto`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a whole number from 1 on", param, ctx)
        return int(value)


MAX_NUMBERS = 1_000_000


class IntRanges(click.ParamType):
    """`1,5,10-12` as [1, 5, 10, 11, 12], at most `MAX_NUMBERS` numbers."""

    name = "ranges"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        numbers = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?\s*", part)
            if not match or (match[2] is not None and int(match[2]) < int(match[1])):
                self.fail(f"{str(value)[:80]!r} is no list of numbers and ranges like 0,3,10-20", param, ctx)
            more = range(int(match[1]), int(match[2] or match[1]) + 1)
            if len(numbers) + len(more) > MAX_NUMBERS:
                self.fail(f"{str(value)[:80]!r} holds more than {MAX_NUMBERS} numbers: give it in parts", param, ctx)
            numbers += more
        return numbers


class CommaList(click.ParamType):
    """`a,b` as ["a", "b"]; `none` as []."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        if value.strip().lower() in ("", "none"):
            return []
        return [part.strip() for part in value.split(",") if part.strip()]


class Numbers(click.ParamType):
    """`0.1,0.2` as [0.1, 0.2]. All numbers are finite."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if isinstance(value, list):
            return value
        return [FiniteFloat().convert(part.strip(), param, ctx) for part in value.split(",")]


# ----------------------------------------------------------------------------------------------------------------------
# Options that several command lines have.

network_option = click.option("--network", "network_pkl", type=Path(), metavar="PATH|URL", required=True,
                              help="Network, path or URL: a pickle (TensorFlow's too), safetensors, .pt or .onnx file")
trunc_option = click.option("--trunc", "truncation_psi", type=FiniteFloat(), default=1.0, show_default=True,
                            help="Truncation psi: 1 = no truncation, 0 = the image of the mean w")
class_option = click.option("--class", "class_idx", type=click.IntRange(min=0),
                            help="Index of the class, for conditional networks")
label_option = click.option("--label", type=Numbers(), metavar="X,Y,...",
                            help="Label as a vector, for networks that were trained with vectors as labels")
noise_mode_option = click.option("--noise-mode", type=click.Choice(["const", "random", "none"]), default="const",
                                 show_default=True)
device_option = click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
trust_option = click.option("--trust-pickle", is_flag=True,
                            help="Run the code in the pickle; only for files you trust")
trust_net_option = click.option("--trust-net", is_flag=True,
                                help="Open TorchScript feature nets, which are programs; remembered for each file")

polarity_option = click.option("--polarity", type=FiniteFloat(), default=0.0, show_default=True, metavar="RHO",
                               help="Polarity sampling: below 0 favours modes, above 0 rare images")
candidates_option = click.option("--candidates", type=click.IntRange(2, MAX_NUMBERS), default=10_000, show_default=True,
                                 help="Number of latents that --polarity chooses from")


def warn(message: str) -> None:
    """Write a warning to stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"Warning: {_one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def shown_warnings() -> Iterator[None]:
    """Print each UserWarning in the block by `warn`. Other warnings are for programmers, and are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, category, *_: category is UserWarning and warn(str(message))
        yield


def warn_unused(names: Sequence[str], *, because: str) -> None:
    """Warn of given options that have no effect.

    Args:
        names:   Parameter names of options of the current command.
        because: The end of the sentence "no effect ...", such as "without --polarity".
    """
    ctx = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    given = [param.opts[0] for param in ctx.command.params
             if param.name in names and ctx.get_parameter_source(param.name) != default]
    if given:
        warn(f"{', '.join(given)}: no effect {because}")


def check_outdir(outdir: str | None, *, images: Sequence[str] = ()) -> None:
    """Raise a UserError if --outdir is empty, or lies in one of the folders `images`: results would mix with inputs."""
    if not outdir:
        raise UserError("--outdir is empty: give the name of a folder")
    for path in images:
        if lies_in(outdir, path):
            raise UserError(f"--outdir={outdir} lies in {path}, so the results would join the images there: choose an "
                            "--outdir outside")


def check_seeds(option: str, seeds: Sequence[int]) -> None:
    """Raise a UserError if a seed is too large for NumPy."""
    if max(seeds) >= 1 << 32:
        raise UserError(f"{option} holds {max(seeds)}; seeds go up to {(1 << 32) - 1}")


PAIR = ("G", "D", "G_ema")


def load_networks(network_pkl: str, *, trust: bool, only: Sequence[str] = ("G_ema",)) -> dict[str, Any]:
    """Load networks in eval mode, without gradients, on the CPU.

    Args:
        network_pkl: Path or URL of a network file.
        trust:       Run the code in the pickle.
        only:        The networks to load, of `G`, `D` and `G_ema`.

    Returns:
        The networks by name; None for those that the file lacks.

    Raises:
        UserError: The file can't be read, weights are not finite, or images have neither 1 nor 3 channels.
    """
    from torch_utils import misc
    from torch_utils.formats import read_networks

    with shown_warnings(), open_url(network_pkl) as f:
        networks = read_networks(f, trust=trust, only=only)
    networks = {key: networks[key] for key in only}
    for key, network in networks.items():
        if network is not None:
            misc.check_network(network, network_pkl, key)
            network.eval().requires_grad_(False)
            if network.img_channels not in (1, 3):
                raise UserError(f"{network_pkl}: {key} is for images of {network.img_channels} channels; only 1 and 3 "
                                "can be read and written")
    return networks


def load_generator(network_pkl: str, *, trust: bool) -> Any:
    """Load G_ema by `load_networks`. A UserError says if there is none."""
    return need_generator(load_networks(network_pkl, trust=trust), network_pkl)


def need_generator(networks: dict[str, Any], network_pkl: str) -> Any:
    """G_ema of the result of `load_networks`. A UserError says if there is none."""
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    return networks["G_ema"]


def load_pair(network_pkl: str, *, trust: bool, purpose: str) -> tuple[Any, Any]:
    """Load G and D by `load_networks`; see `need_pair`."""
    return need_pair(load_networks(network_pkl, trust=trust, only=PAIR), network_pkl, purpose=purpose)


def need_pair(networks: dict[str, Any], network_pkl: str, *, purpose: str) -> tuple[Any, Any]:
    """G and D of the result of `load_networks(only=PAIR)`. G_ema takes the place of a missing G, with a warning.

    Args:
        networks:    The networks.
        network_pkl: Their file, for messages.
        purpose:     What needs them, for messages, such as "rebuilding images".

    Raises:
        UserError: There is no D, or neither G nor G_ema.
    """
    if networks["D"] is None:
        raise UserError(f"{network_pkl}: holds no D; {purpose} needs a network pickle of train.py, which has one")
    if networks["G"] is None and networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds neither G nor G_ema")
    if networks["G"] is None:
        warn(f"{network_pkl} holds no G, only its average, which takes its place")
    return networks["G"] or networks["G_ema"], networks["D"]


def check_one_size(networks: Sequence[tuple[str, Any]]) -> None:
    """Raise a UserError if networks, given as (path, network), are for images of different sizes."""
    sizes = {f"{net.img_channels}x{net.img_resolution}x{net.img_resolution}": path for path, net in networks}
    if len(sizes) > 1:
        raise UserError("all networks must be for images of one size: "
                        + ", ".join(f"{path} is for {size}" for size, path in sizes.items()))


def pick_label(G: Any, class_idx: int | None, vector: list[float] | None) -> np.ndarray | None:
    """The label that --class or --label gives, float32 [c_dim]; None for an unconditional network.

    Raises:
        UserError: Both are given, a conditional network gets none, or the label doesn't fit the network.
    """
    import numpy as np

    if class_idx is not None and vector is not None:
        raise UserError("--class and --label both give the label: leave out one of them")
    if G.c_dim == 0:
        if class_idx is not None or vector is not None:
            warn(f"--{'label' if class_idx is None else 'class'} has no effect: the network is unconditional")
        return None
    if vector is not None:
        if len(vector) != G.c_dim:
            raise UserError(f"--label has {len(vector)} numbers, the labels of this network have {G.c_dim}")
        return np.array(vector, dtype=np.float32)
    if class_idx is None:
        raise UserError(f"the network is conditional: give --class, from 0 to {G.c_dim - 1}, or --label=X,Y,... "
                        f"with {G.c_dim} numbers")
    if class_idx >= G.c_dim:
        raise UserError(f"--class={class_idx} is out of range: the network knows the classes 0 to {G.c_dim - 1}")
    return np.eye(G.c_dim, dtype=np.float32)[class_idx]
