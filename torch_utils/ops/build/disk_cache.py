"""Compiled kernels on disk: written whole or not at all.

Several processes may use one folder. Two that compile the same kernel at the same time both write it, which does no
harm.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

from dnnlib.util import atomic_write, say_once


class Usage(NamedTuple):
    entries: int
    num_bytes: int


class DiskCache:
    """A folder of compiled kernels. If it can't be written, each process compiles for itself; one line says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """An entry; None if there is none, or it can't be read, which one line says."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            say_once("cache", f"Compiled kernels can't be read from {self.folder}: {e.strerror or e}")
            return None

    def write(self, name: str, body: bytes) -> None:
        """Keep an entry, if the folder can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / name) as f:
                f.write(body)
        except OSError as e:
            say_once("cache", f"Compiled kernels can't be kept in {self.folder} ({e.strerror or e}): "
                              "they are compiled again in each process.")

    def usage(self) -> Usage:
        """How many kernels the folder holds, and their size."""
        with contextlib.suppress(OSError):
            sizes = [p.stat().st_size for p in self.folder.iterdir() if p.suffix in (".cubin", ".ptx")]
            return Usage(len(sizes), sum(sizes))
        return Usage(0, 0)
