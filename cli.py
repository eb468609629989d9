"""What the command lines share: the error boundary and option types."""

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
            raise click.ClickException(str(e)) from e
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # silences the flush at exit
            sys.exit(1)
        except OSError as e:
            if e.filename is None:
                raise
            raise click.ClickException(f"{e.filename}: {e.strerror}") from e


class IntRanges(click.ParamType):
    """`1,5,10-12` as [1, 5, 10, 11, 12]."""

    name = "ranges"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        numbers = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
            if not match or (match[2] is not None and int(match[2]) < int(match[1])):
                self.fail(f"{value!r} is no list of numbers and ranges like 0,3,10-20", param, ctx)
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
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
