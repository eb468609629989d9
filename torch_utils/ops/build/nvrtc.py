"""Compiles kernels with NVRTC, NVIDIA's run-time compiler.

NVRTC comes with PyTorch, and needs neither a CUDA toolkit nor a C++ compiler. A kernel takes 0.05 to 0.2 s.
"""

import ctypes
import functools
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Iterator, Sequence

import torch

from dnnlib.util import num_cores

from . import disk_cache, source
from .source import Built, CompileError, Kernel, Unavailable

OPTIONS = ("--std=c++17",)
_REJECTED = 6           # NVRTC_ERROR_COMPILATION: the source is at fault. Other errors are the compiler's.
_MAX_THREADS = 8

_images: dict[tuple[Kernel, int], bytes] = {}  # Kernels that this process has compiled or read, by architecture.


@functools.lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    if torch.version.cuda is None:
        raise Unavailable("this PyTorch is built without CUDA")
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    reason = f"{name} not found"
    for candidate in (name, *_candidates(name)):  # the plain name finds the library that PyTorch has loaded
        try:
            for builtins in Path(candidate).parent.glob("libnvrtc-builtins.so.*") if "/" in candidate else ():
                ctypes.CDLL(str(builtins))  # some releases look for it only in the system's folders
            return ctypes.CDLL(candidate)
        except OSError as e:
            reason = str(e)
    raise Unavailable(f"no NVRTC: {reason}")


def _candidates(name: str) -> list[str]:
    """Files of that name in NVIDIA's Python packages and in CUDA toolkits."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [f for place in spec.submodule_search_locations
                                       for f in Path(place).glob("*/lib")]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders += [Path(toolkit, "lib64") for toolkit in toolkits if toolkit]
    return [str(folder / name) for folder in folders if (folder / name).is_file()]


def _call(function: str, *args: object) -> None:
    library = _library()
    code = getattr(library, function)(*args)
    if code:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise Unavailable(f"{function}: {library.nvrtcGetErrorString(code).decode()}")


@functools.lru_cache(maxsize=None)
def version() -> str:
    """The version of NVRTC. Raises Unavailable if there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


@functools.lru_cache(maxsize=None)
def architectures() -> tuple[int, ...]:
    """The architectures for which NVRTC compiles; 90 means sm_90."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", numbers)
    return tuple(numbers)


def target(arch: int, known: Sequence[int]) -> str:
    """NVRTC's name of the target for a device, such as `sm_90`.

    For a device that is newer than the compiler, it is the newest target that the compiler knows, such as `compute_90`.
    The driver translates the result for the device.

    Args:
        arch:  Architecture of the device.
        known: Architectures that the compiler knows.

    Raises:
        Unavailable: The device is too old for the compiler.
    """
    older = [a for a in known if a <= arch]
    if not older:
        raise Unavailable(f"a device of architecture sm_{arch} is too old: the compiler begins with sm_{min(known)}")
    return f"sm_{arch}" if arch in known else f"compute_{max(older)}"


def compile_kernel(kernel: Kernel, *, arch: int) -> bytes:
    """Compile to a cubin or, if the device is newer than the compiler, to PTX with a zero byte at its end.

    Raises:
        CompileError: The source is at fault.
        Unavailable:  NVRTC is missing, or fails.
    """
    return _compile(source.unit([kernel]), source.included([kernel]), target(arch, architectures()), str(kernel))


def _compile(unit: str, files: dict[str, bytes], to: str, where: str) -> bytes:
    program, count = ctypes.c_void_p(), len(files)
    _call("nvrtcCreateProgram", ctypes.byref(program), unit.encode(), b"unit.cu", count,
          (ctypes.c_char_p * count)(*files.values()), (ctypes.c_char_p * count)(*(name.encode() for name in files)))
    try:
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={to}")]
        code = _library().nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if code == _REJECTED:
            raise CompileError(where, _result(program, "ProgramLog").rstrip(b"\0").decode(errors="replace"))
        if code:
            log = _result(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise Unavailable(f"nvrtcCompileProgram: error {code} {' '.join(log.split())[:300]}")
        return _result(program, "CUBIN" if to.startswith("sm_") else "PTX")
    finally:
        _library().nvrtcDestroyProgram(ctypes.byref(program))


def _result(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def _entry(kernel: Kernel, arch: int) -> str:
    """Name of the file in the disk cache."""
    to = target(arch, architectures())
    files: list[str | bytes] = [part for item in source.included([kernel]).items() for part in item]
    key = source.digest(version(), to, *OPTIONS, source.unit([kernel]), *files)
    return f"{kernel.symbol}-{to}-{key[:20]}.{'cubin' if to.startswith('sm_') else 'ptx'}"


def find(kernel: Kernel, *, arch: int) -> bytes | None:
    """The kernel if it was compiled before: from memory or from the disk cache."""
    if (kernel, arch) not in _images:
        found = disk_cache.read(_entry(kernel, arch))
        if found is None:
            return None
        _images[kernel, arch] = found
    return _images[kernel, arch]


def image(kernel: Kernel, *, arch: int) -> bytes:
    """The compiled kernel. It is compiled now, unless `find` has it; raises as `compile_kernel`."""
    found = find(kernel, arch=arch)
    if found is None:
        found = _images[kernel, arch] = compile_kernel(kernel, arch=arch)
        disk_cache.write(_entry(kernel, arch), found)
    return found


def _build_one(kernel: Kernel, arch: int) -> Built:
    found = find(kernel, arch=arch)
    if found is not None:
        return Built(kernel, 0, len(found), None)
    start = time.perf_counter()
    try:
        num_bytes, error = len(image(kernel, arch=arch)), None
    except CompileError as e:
        num_bytes, error = 0, e
    return Built(kernel, time.perf_counter() - start, num_bytes, error)


def build(kernels: Sequence[Kernel], *, arch: int) -> Iterator[Built]:
    """Compile the kernels that were not compiled before, several at a time.

    Yields:
        All kernels, in the order in which they are finished.

    Raises:
        Unavailable: NVRTC is missing, or fails.
    """
    with ThreadPoolExecutor(min(num_cores(), _MAX_THREADS)) as pool:
        for future in as_completed([pool.submit(_build_one, kernel, arch) for kernel in kernels]):
            yield future.result()
