"""Compiled kernels on disk. Files are written whole or not at all.

Several processes may use the folder. If two compile the same kernel at the same time, both write it, which does no
harm. If the folder can't be used, one line says so, and each process compiles for itself.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from dnnlib.util import atomic_write, cache_dir, say_once


def folder() -> Path:
    return cache_dir("kernels")


def read(name: str) -> bytes | None:
    """A file of the folder; None if it doesn't exist or can't be read."""
    try:
        return (folder() / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        say_once("cache", f"Compiled kernels can't be read from {folder()}: {e.strerror or e}")
        return None


def write(name: str, body: bytes) -> None:
    """Write a file, if possible."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(folder() / name) as f:
            f.write(body)
    except OSError as e:
        say_once("cache", f"Compiled kernels can't be kept in {folder()} ({e.strerror or e}): "
                          "they are compiled again in each process.")


class Usage(NamedTuple):
    entries: int
    num_bytes: int


def usage() -> Usage:
    """The number of kernels in the folder, and their total size."""
    with contextlib.suppress(OSError):
        sizes = [p.stat().st_size for p in folder().iterdir() if p.suffix in (".cubin", ".ptx")]
        return Usage(len(sizes), sum(sizes))
    return Usage(0, 0)
