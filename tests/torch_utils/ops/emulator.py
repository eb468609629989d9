"""Runs the CUDA kernels on the CPU: their very source, compiled by a C++ compiler with CUDA's vocabulary emulated."""

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from torch_utils import custom_ops

OPS = Path(custom_ops.__file__).parent / "ops"
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


class Emulator:
    """Stands in for `custom_ops.load`; `launched` lists the kernels that were launched."""

    def __init__(self):
        self.launched: list[custom_ops.Kernel] = []

    def load(self, kernel: custom_ops.Kernel, device: torch.device):
        library = _library(kernel)

        def launch(grid: int, params: ctypes.Structure) -> None:
            self.launched.append(kernel)
            library.emulate(ctypes.c_uint(grid), ctypes.byref(params))

        return launch


@pytest.fixture
def emulator(monkeypatch) -> Emulator:
    if COMPILER is None:
        pytest.skip("no C++ compiler to emulate CUDA kernels with")
    emulator = Emulator()
    monkeypatch.setattr(custom_ops, "load", emulator.load)
    return emulator
