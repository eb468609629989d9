"""What the command lines share: the error boundary and option types."""

import errno
import math
import os
import re
import sys
from typing import Any

import click

from dnnlib.util import UserError


class Option(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A click command that turns users' mistakes into one line on stderr and exit status 1."""

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
        try:
            return super().invoke(ctx)
        except UserError as e:
            raise click.ClickException(_one_line(str(e))) from e
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # silences the flush at exit
            sys.exit(1)
        except OSError as e:
            if e.filename is None and e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = "" if e.filename is None else f"{os.fsdecode(e.filename)}: "
            raise click.ClickException(_one_line(f"{place}{e.strerror}")) from e


class DefaultGroup(click.Group):
    """Sub-commands, and a command of its own that is taken where the first argument is the name of none of them.

    `--help` is that of the default command, with a list of the others at its end.
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
    """Names of files may hold line breaks and worse; they are shown as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class FiniteFloat(click.FloatRange):
    """A number that float32 can hold, neither infinite nor NaN, perhaps within a range."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number) or abs(number) > 3.4e38:
            self.fail(f"{value} is no finite number", param, ctx)
        return super().convert(number, param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


MAX_NUMBERS = 1_000_000


class IntRanges(click.ParamType):
    """`1,5,10-12` as [1, 5, 10, 11, 12], at most `MAX_NUMBERS` of them."""

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
