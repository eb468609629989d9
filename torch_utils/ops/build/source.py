"""Kernels as source: a file and macros, the translation unit made of them, and names and digests that identify it."""

import ctypes
import hashlib
import re
from pathlib import Path
from typing import Callable, Iterable, NamedTuple, Sequence

SOURCES = Path(__file__).resolve().parents[1]
HEADER = "device.h"


class Kernel(NamedTuple):
    """One kernel: a source file of torch_utils/ops and the macros that specialise it."""

    name: str                                   # Name of the file without suffix, such as "bias_act".
    macros: tuple[tuple[str, str | int], ...]   # ("T", "float16"), ("BLOCK", 256), ... BLOCK is required.

    @property
    def block(self) -> int:
        """Threads of a block."""
        return int(dict(self.macros)["BLOCK"])

    @property
    def symbol(self) -> str:
        """The kernel's name in compiled code: letters, digits and underscores."""
        return f"{self.name}_{digest(repr(self.macros))[:12]}"

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.macros)})"


# Called with (number of blocks, parameters), it launches a kernel on the current stream of its device. Any thread may
# call it, with any current device, and during the capture of a CUDA graph. It raises a RuntimeError if that fails.
Launcher = Callable[[int, ctypes.Structure], None]


class Built(NamedTuple):
    """The result of compiling a kernel."""

    kernel: Kernel
    seconds: float                  # 0 = it was compiled before.
    num_bytes: int                  # 0 = compilation failed.
    error: "CompileError | None"


class Unavailable(Exception):
    """Kernels can't be compiled or loaded here. The message is the reason, in one line."""


class CompileError(Exception):
    """The compiler rejects a source. The message is the first error in one line; `log` is the compiler's output."""

    def __init__(self, where: str, log: str) -> None:
        lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
        complaint = next((line for line in lines if re.search(r"\berror\b", line, re.I)), "".join(lines[:1]))
        super().__init__(f"{where}: {complaint[:300]}")
        self.log = log


def digest(*parts: str | bytes) -> str:
    """SHA-256 of several parts, in hexadecimal. It depends on where each part ends."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(b"%d:" % len(data) + data)
    return h.hexdigest()


def included(kernels: Iterable[Kernel]) -> dict[str, bytes]:
    """The files that the translation unit of these kernels includes: {name: content}."""
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
