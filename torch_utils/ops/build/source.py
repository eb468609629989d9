"""Kernels as source: which file, which macros, the translation unit that comes of them, and what identifies it."""

import ctypes
import hashlib
import re
from pathlib import Path
from typing import Iterable, NamedTuple, Protocol, Sequence

SOURCES = Path(__file__).resolve().parents[1]
HEADER = "device.h"


class Kernel(NamedTuple):
    """One kernel: a source file of torch_utils/ops and the macros that specialise it."""

    name: str                                   # Of the file: "bias_act".
    macros: tuple[tuple[str, str | int], ...]   # ("T", "float16"), ("BLOCK", 256), ...; BLOCK is always there.

    @property
    def block(self) -> int:
        """Threads of a block."""
        return int(dict(self.macros)["BLOCK"])

    @property
    def symbol(self) -> str:
        """The kernel's name where it is compiled: letters, digits and underscores."""
        return f"{self.name}_{digest(repr(self.macros))[:12]}"

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.macros)})"


class Launcher(Protocol):
    """Launches a kernel on the current stream of its device.

    Any thread may call it, whichever device is current there, also while a CUDA graph is captured.

    Raises:
        RuntimeError: CUDA refuses the launch; names CUDA's error, the kernel and the grid.
    """

    def __call__(self, grid: int, params: ctypes.Structure) -> None: ...


class Built(NamedTuple):
    """A kernel that was compiled now, or before."""

    kernel: Kernel
    seconds: float                  # 0 = before.
    num_bytes: int                  # 0 where it failed.
    error: "CompileError | None"


class Unavailable(Exception):
    """Kernels can't be compiled or loaded here. The message is the reason, in one line."""


class CompileError(Exception):
    """The compiler refuses a source. The message is the first error in one line; `log` is all that it printed."""

    def __init__(self, where: str, log: str) -> None:
        lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
        complaint = next((line for line in lines if re.search(r"\berror\b", line, re.I)), "".join(lines[:1]))
        super().__init__(f"{where}: {complaint[:300]}")
        self.log = log


def digest(*parts: str | bytes) -> str:
    """SHA-256 of several parts, in hexadecimal. The places where parts end count, too."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(b"%d:" % len(data) + data)
    return h.hexdigest()


def included(kernels: Iterable[Kernel]) -> dict[str, bytes]:
    """The files that the translation unit of these kernels includes, by name."""
    names = [HEADER, *sorted({f"{kernel.name}.cu" for kernel in kernels})]
    return {name: (SOURCES / name).read_bytes() for name in names}


def unit(kernels: Sequence[Kernel]) -> str:
    """The translation unit of these kernels."""
    text = f'#include "{HEADER}"\n'
    for kernel in kernels:
        macros = (("GLEAD_KERNEL", kernel.symbol), *kernel.macros)
        text += "".join(f"#define {name} {value}\n" for name, value in macros)
        text += f'#include "{kernel.name}.cu"\n'
        text += "".join(f"#undef {name}\n" for name, _ in macros)
    return text
