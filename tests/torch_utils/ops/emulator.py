"""Runs the CUDA kernels on the CPU: their very source, compiled by a C++ compiler with CUDA's vocabulary emulated."""

import ctypes
import functools
import hashlib
import mmap
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from torch_utils.ops import kernels
from torch_utils.ops.build import custom_ops

OPS = Path(kernels.__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")


@functools.lru_cache(maxsize=None)
def _library(kernel: custom_ops.Kernel) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="emulated-kernels-"))
    symbol = f"{kernel.name}_{hashlib.sha256(repr(kernel).encode()).hexdigest()[:8]}"
    macros = dict(kernel.macros, GLEAD_KERNEL=symbol, GLEAD_EMULATE=1)
    source = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    source += f"""#include "{kernel.name}.cu"
extern "C" void emulate(unsigned grid, const void* params) {{ emulation::run({symbol}, grid, BLOCK, params); }}
"""
    (folder / "kernel.cpp").write_text(source)
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fsanitize=bounds",
               f"-I{OPS}", f"-I{Path(__file__).parent}", "kernel.cpp", "-o", "kernel.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "kernel.so"))
    shutil.rmtree(folder)
    return library


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Guarded:
    """A copy of a tensor's memory between pages that can't be touched: who reads or writes beyond it crashes."""

    def __init__(self, tensor: torch.Tensor, *, at_end: bool):
        self.tensor = tensor
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        self.bytes = (last + 1) * tensor.element_size()
        inside = -(-self.bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.mapped = inside + 2 * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.base = _libc.mmap(None, self.mapped, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert self.base != ctypes.c_void_p(-1).value
        first = self.base + mmap.PAGESIZE
        self.address = first + (inside - self.bytes if at_end else 0)
        ctypes.memmove(self.address, tensor.data_ptr(), self.bytes)
        for page in (self.base, first + inside):
            assert _libc.mprotect(page, mmap.PAGESIZE, 0) == 0

    def release(self) -> None:
        """What was written becomes the tensor's."""
        ctypes.memmove(self.tensor.data_ptr(), self.address, self.bytes)
        assert _libc.munmap(self.base, self.mapped) == 0


class Emulator:
    """Stands in for `custom_ops.load` and `kernels.address`; `launched` lists the kernels that were launched."""

    def __init__(self):
        self.launched: list[custom_ops.Kernel] = []
        self.arguments: list[Guarded] = []      # Of the launch to come.

    def address(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.arguments.append(Guarded(tensor, at_end=len(self.launched) % 2 == 0))
        return self.arguments[-1].address

    def load(self, kernel: custom_ops.Kernel, device: torch.device):
        library = _library(kernel)

        def launch(grid: int, params: ctypes.Structure) -> None:
            self.launched.append(kernel)
            library.emulate(ctypes.c_uint(grid), ctypes.byref(params))
            while self.arguments:
                self.arguments.pop().release()

        return launch


@pytest.fixture
def emulator(monkeypatch) -> Emulator:
    if COMPILER is None:
        pytest.skip("no C++ compiler to emulate CUDA kernels with")
    emulator = Emulator()
    monkeypatch.setattr(custom_ops, "load", emulator.load)
    monkeypatch.setattr(kernels, "address", emulator.address)
    return emulator
