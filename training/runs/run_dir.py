"""Run directories: their numbers, the file of options, and a log of everything that is printed."""

import contextlib
import fcntl
import json
import os
import platform
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Iterator, TextIO

import dnnlib.util

OPTIONS_NAME = "training_options.json"


def create_run_dir(outdir: str | os.PathLike, description: str) -> str:
    """Make the folder `OUT/00000-<description>`, with the next free number, and return its path.

    Several programs may call this at once. Then one waits for the other.
    """
    os.makedirs(outdir, exist_ok=True)
    fd = os.open(outdir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # The file system may have no locks.
            fcntl.flock(fd, fcntl.LOCK_EX)
        numbers = [int(match[1]) for name in os.listdir(outdir) if (match := re.match(r"(\d+)(-|$)", name))]
        run_dir = Path(outdir, f"{max(numbers, default=-1) + 1:05d}-{description}")
        run_dir.mkdir()
    finally:
        os.close(fd)
    return str(run_dir)


def write_options(run_dir: str | os.PathLike, options: dict[str, Any]) -> None:
    """Write `training_options.json`, whole or not at all."""
    with dnnlib.util.atomic_write(Path(run_dir, OPTIONS_NAME)) as f:
        f.write((json.dumps(options, indent=2) + "\n").encode())


def find_options(run_dir: str | os.PathLike) -> dict[str, Any]:
    """The content of `training_options.json`; empty if there is no such file, or it is damaged."""
    try:
        content = json.loads(Path(run_dir, OPTIONS_NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_machine(device: str) -> dict[str, str]:
    """Versions and hardware that a run is trained with, for its options. Nothing names the machine or its user.

    Args:
        device: "cpu" or "cuda".
    """
    import torch  # Here, because it takes a second, for which --help should not wait.

    cpu = f"{platform.machine()}, {dnnlib.util.num_cores()} cores"
    gpu = {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system(), "cpu": cpu,
            **gpu}


@contextlib.contextmanager
def _full_disks_ignored() -> Iterator[None]:
    """Inside, errors of a full disk are ignored: a run should not end because a line can't be printed."""
    try:
        yield
    except OSError as e:
        if e.errno not in dnnlib.util.DISK_ERRORS:
            raise


class _Tee:
    """A text stream that also writes finished lines to a log. Of a progress bar, the log gets only the last state."""

    def __init__(self, stream: TextIO, log: "_Log") -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        with _full_disks_ignored():
            self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        self._line = self._line[self._line.rstrip("\r").rfind("\r") + 1 :]
        if lines:
            self.keep("".join(line.rstrip("\r").rpartition("\r")[2] + "\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        with _full_disks_ignored():
            self._stream.flush()

    def finish(self) -> None:
        if self._line.strip():
            self.keep(self._line.rstrip("\r") + "\n")

    def keep(self, text: str) -> None:
        with _full_disks_ignored():
            self._log.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Log:
    """A text file to append to. Until it is opened, lines are kept in memory."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._waiting: list[str] = []

    def open(self) -> None:
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")
            self.write("".join(self._waiting))

    def write(self, text: str) -> None:
        if self._file is None:
            self._waiting.append(text)
        else:
            self._file.write(text)
            self._file.flush()  # People read the log while the run trains.

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def tee_output(path: str | os.PathLike, *, errors: bool = True, wait: bool = False) -> Iterator[Callable[[], None]]:
    """A context inside which the file at `path` also gets what is printed on stdout and stderr, and exceptions.

    Args:
        path:   File to append to. Other processes may write to it, too.
        errors: Write a UserError to the file; False = don't, because another process does so.
        wait:   Keep the text in memory until the function that this context gives is called. Without a call, the file
                stays as it was.
    """
    log = _Log(path)
    if not wait:
        log.open()
    try:
        stdout, stderr = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                yield log.open
        finally:
            stdout.finish()
            stderr.finish()
    except dnnlib.util.UserError as e:
        if errors:
            stderr.keep(f"Error: {e}\n")
        raise
    except Exception:
        stderr.keep(traceback.format_exc())
        raise
    finally:
        with _full_disks_ignored():
            log.close()
