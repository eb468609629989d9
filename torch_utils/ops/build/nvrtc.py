"""Compiles kernels with NVRTC, NVIDIA's run-time compiler.

NVRTC comes with PyTorch, and needs neither a CUDA toolkit nor a C++ compiler. It takes 0.05 to 0.2 s for a kernel.
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

from . import source
from .disk_cache import DiskCache
from .source import Built, CompileError, Kernel, Unavailable

OPTIONS = ("--std=c++17",)
_REJECTED = 6           # NVRTC_ERROR_COMPILATION: the source is at fault. All else is a fault of the compiler.
_MAX_THREADS = 8

_images: dict[tuple[Kernel, int], bytes] = {}  # What this process has compiled or read.


@functools.lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    if torch.version.cuda is None:
        raise Unavailable("this PyTorch is built without CUDA")
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    reason = f"{name} not found"
    for candidate in (name, *_candidates(name)):  # the first one is what PyTorch has loaded
        try:
            for builtins in Path(candidate).parent.glob("libnvrtc-builtins.so.*") if "/" in candidate else ():
                ctypes.CDLL(str(builtins))  # some releases search for it only in the system's folders
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
    """Raises Unavailable where there is no NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


@functools.lru_cache(maxsize=None)
def architectures() -> tuple[int, ...]:
    """The architectures that NVRTC compiles for; 90 means sm_90."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", numbers)
    return tuple(numbers)


def target(arch: int, known: Sequence[int]) -> str:
    """NVRTC's name of the target for a device, such as `sm_90`.

    A device that is newer than the compiler gets the newest code that the compiler knows, such as `compute_90`. The
    driver translates that.

    Raises:
        Unavailable: The compiler no longer knows the device.
    """
    older = [a for a in known if a <= arch]
    if not older:
        raise Unavailable(f"a device of architecture sm_{arch} is too old: the compiler begins with sm_{min(known)}")
    return f"sm_{arch}" if arch in known else f"compute_{max(older)}"


def compile_kernel(kernel: Kernel, *, arch: int) -> bytes:
    """Cubin, or PTX with a zero at its end where the compiler is older than the device.

    Raises:
        CompileError: The source is at fault.
        Unavailable:  NVRTC can't be had, or fails.
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
    """Name of the file in the cache."""
    to = target(arch, architectures())
    files: list[str | bytes] = [part for item in source.included([kernel]).items() for part in item]
    key = source.digest(version(), to, *OPTIONS, source.unit([kernel]), *files)
    return f"{kernel.symbol}-{to}-{key[:20]}.{'cubin' if to.startswith('sm_') else 'ptx'}"


def _find(kernel: Kernel, arch: int, cache: DiskCache) -> bytes | None:
    if (kernel, arch) not in _images:
        found = cache.read(_entry(kernel, arch))
        if found is None:
            return None
        _images[kernel, arch] = found
    return _images[kernel, arch]


def is_compiled(kernel: Kernel, *, arch: int, cache: DiskCache) -> bool:
    """Whether `image` finds the kernel in memory or in the cache."""
    return _find(kernel, arch, cache) is not None


def image(kernel: Kernel, *, arch: int, cache: DiskCache) -> bytes:
    """The compiled kernel: from memory, from the cache, or compiled now; see `compile_kernel`."""
    found = _find(kernel, arch, cache)
    if found is None:
        found = _images[kernel, arch] = compile_kernel(kernel, arch=arch)
        cache.write(_entry(kernel, arch), found)
    return found


def _build_one(kernel: Kernel, arch: int, cache: DiskCache) -> Built:
    start = time.perf_counter()
    try:
        num_bytes, error = len(image(kernel, arch=arch, cache=cache)), None
    except CompileError as e:
        num_bytes, error = 0, e
    return Built(kernel, time.perf_counter() - start, num_bytes, error)


def build(kernels: Sequence[Kernel], *, arch: int, cache: DiskCache) -> Iterator[Built]:
    """Compile the kernels that are neither in memory nor in the cache, several at a time.

    Yields:
        The kernels in the order in which they are finished.

    Raises:
        Unavailable: NVRTC is missing, or fails.
    """
    missing = []
    for kernel in kernels:
        found = _find(kernel, arch, cache)
        if found is None:
            missing.append(kernel)
        else:
            yield Built(kernel, 0, len(found), None)
    if missing:
        with ThreadPoolExecutor(min(num_cores(), _MAX_THREADS, len(missing))) as pool:
            for future in as_completed([pool.submit(_build_one, kernel, arch, cache) for kernel in missing]):
                yield future.result()
