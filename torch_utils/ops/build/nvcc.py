"""Route 2: nvcc and a C++ compiler, by PyTorch's extension builder and ninja: a library of launchers.

The library includes no header of PyTorch, which takes nvcc minutes to read, and is loaded by ctypes. All kernels that
the networks usually need are one library; any other kernel becomes a library of its own.
"""

import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, Sequence

import torch

from . import source
from .disk_cache import DiskCache
from .driver import raw_stream
from .nvrtc import target
from .source import Built, CompileError, Kernel, Launcher, Unavailable

BUILD_SEC = 300     # The most that a build may take; what it started is ended then.
_PROBE_SEC = 60

_COMMON = """\
#include <cuda_runtime.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

struct OnDevice {  // makes a device the current one for a while
    int before = 0;
    cudaError_t error;
    bool elsewhere;
    explicit OnDevice(int device) : error(cudaGetDevice(&before)), elsewhere(before != device) {
        if (error == cudaSuccess && elsewhere) error = cudaSetDevice(device);
    }
    ~OnDevice() { if (elsewhere) cudaSetDevice(before); }
};

cudaError_t reported(cudaError_t error) {  // once, not by PyTorch's next check again
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

cudaError_t load(const void* kernel, int device) {
    OnDevice on(device);
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // a stream that is being captured doesn't mind
    if (on.error == cudaSuccess) on.error = cudaThreadExchangeStreamCaptureMode(&mode);
    if (on.error != cudaSuccess) return reported(on.error);
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    cudaThreadExchangeStreamCaptureMode(&mode);
    return reported(error);
}

cudaError_t launch(const void* kernel, int grid, int block, const void* params, void* stream, int device) {
    OnDevice on(device);
    void* arguments[] = {const_cast<void*>(params)};
    if (on.error == cudaSuccess)
        on.error = cudaLaunchKernel(kernel, dim3(grid), dim3(block), arguments, 0, (cudaStream_t)stream);
    return reported(on.error);
}

}  // namespace

"""

_END_WITH_PARENT = """\
import os, signal, threading, time
def watch(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, args=[os.getppid()], daemon=True).start()
"""
_WORKER = _END_WITH_PARENT + """\
import json, sys
from torch.utils import cpp_extension
cpp_extension.load(is_python_module=False, **json.loads(sys.argv[1]))
"""

_libraries: dict[tuple[tuple[Kernel, ...], int], ctypes.CDLL] = {}  # What this process has loaded.


@functools.lru_cache(maxsize=None)
def _nvcc() -> Path:
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    found = [Path(home, "bin", "nvcc") for home in homes] + [Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    raise Unavailable(f"no nvcc: not at {' or '.join(map(str, found))}; set CUDA_HOME")


def _ask(*arguments: str) -> str:
    """What nvcc prints."""
    try:
        done = subprocess.run([_nvcc(), *arguments], capture_output=True, text=True, timeout=_PROBE_SEC)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{_nvcc()} can't be run: {e}") from e
    if done.returncode:
        raise Unavailable(f"{_nvcc()} {' '.join(arguments)}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout + done.stderr


@functools.lru_cache(maxsize=None)
def _home() -> Path:
    """The toolkit's folder, which is not above nvcc where that is a link or a script."""
    top = next((line.split("=", 1)[1] for line in _ask("--dryrun", "-x", "cu", "-c", os.devnull).splitlines()
                if line.startswith("#$ TOP=")), None)
    return Path(top or _nvcc().parents[1]).resolve()


@functools.lru_cache(maxsize=None)
def version() -> str:
    """Raises Unavailable where a part of what is needed lacks."""
    if torch.version.cuda is None:
        raise Unavailable("this PyTorch is built without CUDA")
    words = _ask("--version").split()
    release = next((word[1:] for word in words if word[0] == "V" and word[1:2].isdigit()), "of an unknown version")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise Unavailable(f"no C++ compiler: {compiler} not found")
    if shutil.which("ninja", path=_environment()["PATH"]) is None:
        raise Unavailable("no ninja: pip install ninja")
    return f"nvcc {release}"


@functools.lru_cache(maxsize=None)
def architectures() -> tuple[int, ...]:
    """What it compiles for: 90 is sm_90."""
    codes = _ask("--list-gpu-code").split()
    return tuple(sorted(int(code[3:]) for code in codes if code.startswith("sm_") and code[3:].isdigit()))


def _environment(arch: int | None = None) -> dict[str, str]:
    """Of the process that builds. Programs that pip installed are found, though their environment is not active."""
    environment = dict(os.environ, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if arch is not None:
        number = int(target(arch, architectures()).split("_")[1])
        exact = "" if number == arch else "+PTX"
        environment |= dict(CUDA_HOME=str(_home()), TORCH_CUDA_ARCH_LIST=f"{number // 10}.{number % 10}{exact}")
    return environment


def _unit(kernels: Sequence[Kernel]) -> str:
    def follow(kernel: Kernel) -> str:
        name = kernel.symbol
        return f"""EXPORTED int load_{name}(int device) {{ return load((const void*)&{name}, device); }}
EXPORTED int launch_{name}(int grid, const void* params, void* stream, int device) {{
    return launch((const void*)&{name}, grid, BLOCK, params, stream, device);
}}
"""

    return _COMMON + source.unit(kernels, follow=follow)


def _units(kernels: Sequence[Kernel]) -> dict[str, bytes]:
    """One file for each operation, which ninja compiles at the same time."""
    by_name: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
    units = {f"launch_{name}.cu": _unit(some).encode() for name, some in sorted(by_name.items())}
    names = "EXPORTED const char* error_name(int error) { return cudaGetErrorName((cudaError_t)error); }\n"
    return {**units, "names.cu": (_COMMON + names).encode()}


def _entry(kernels: Sequence[Kernel], arch: int) -> str:
    """Name of the file in the cache."""
    files = source.included(kernels) | _units(kernels)
    parts: list[str | bytes] = [part for item in files.items() for part in item]
    key = source.digest(version(), target(arch, architectures()), torch.__version__, *parts)
    return f"{kernels[0].symbol if len(kernels) == 1 else 'standard'}-sm_{arch}-{key[:20]}.so"


def _compile(kernels: Sequence[Kernel], arch: int, folder: Path, seconds: float) -> bytes:
    for name, text in (source.included(kernels) | _units(kernels)).items():
        (folder / name).write_bytes(text)
    settings = dict(
        name="kernels", sources=[str(folder / name) for name in _units(kernels)], build_directory=str(folder),
        extra_include_paths=[str(folder)], extra_ldflags=[f"-Wl,-rpath,{_home() / 'lib64'}"],
    )
    code, log = run_limited([sys.executable, "-c", _WORKER, json.dumps(settings)], seconds=seconds, cwd=folder,
                            env=_environment(arch))
    if code is None:
        raise Unavailable(f"building the library took more than {seconds:.0f} s and was ended")
    if code or not (folder / "kernels.so").is_file():
        raise CompileError("nvcc", log)
    return (folder / "kernels.so").read_bytes()


def run_limited(command: Sequence[str], *, seconds: float, cwd: Path, env: dict[str, str]) -> tuple[int | None, str]:
    """Run a program, and end it and all that it started when its time is over, or ours.

    Returns:
        Its exit status, None if it was ended, and what it printed.
    """
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _find(kernels: tuple[Kernel, ...], arch: int, cache: DiskCache) -> Built | None:
    """The library, loaded; None if it isn't built."""
    entry = _entry(kernels, arch)
    body = cache.read(entry)
    if body is None:
        return None
    if (kernels, arch) not in _libraries:
        _libraries[kernels, arch] = _opened(cache.path(entry))
    return Built(kernels, 0, len(body), None)


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise Unavailable(f"a library that nvcc built can't be loaded: {e}") from e


def build(
    kernels: Sequence[Kernel], *, arch: int, cache: DiskCache, seconds: float | None = None,
) -> Iterator[Built]:
    """Compile and load a library of these kernels, unless it is loaded or in the cache.

    Raises:
        Unavailable: Something that is needed lacks, or the time is over.
    """
    kernels, seconds = tuple(kernels), BUILD_SEC if seconds is None else seconds
    built = _find(kernels, arch, cache)
    if built is None:
        with cache.lock(seconds + _PROBE_SEC) as locked:
            # Another process may have built it meanwhile.
            built = _find(kernels, arch, cache) or _build(kernels, arch, cache, locked, seconds)
    yield built


def _build(kernels: tuple[Kernel, ...], arch: int, cache: DiskCache, locked: bool, seconds: float) -> Built:
    start = time.perf_counter()
    with cache.build_folder(locked=locked) as folder:
        try:
            body = _compile(kernels, arch, folder, seconds)
        except CompileError as e:
            return Built(kernels, time.perf_counter() - start, 0, e)
        kept = cache.write(_entry(kernels, arch), body)
        # In memory it stays when its file is removed.
        _libraries[kernels, arch] = _opened(cache.path(_entry(kernels, arch)) if kept else folder / "kernels.so")
    return Built(kernels, time.perf_counter() - start, len(body), None)


def launcher(
    kernel: Kernel, *, arch: int, index: int, cache: DiskCache, standard: Sequence[Kernel] = (),
) -> Launcher:
    """Load a kernel into a device, compiled before or now, together with all `standard` ones if it is of them.

    Raises:
        CompileError: A source is at fault.
        Unavailable:  Something that is needed lacks, or CUDA refuses.
    """
    kernels = tuple(standard) if kernel in standard else (kernel,)
    if (kernels, arch) not in _libraries:
        for built in build(kernels, arch=arch, cache=cache):
            if built.error is not None:
                raise built.error
    library = _libraries[kernels, arch]
    library.error_name.restype = ctypes.c_char_p
    error = library[f"load_{kernel.symbol}"](index)
    if error:
        raise Unavailable(f"loading {kernel}: {library.error_name(error).decode()}")
    return _launcher(library, kernel, index)


def _launcher(library: ctypes.CDLL, kernel: Kernel, index: int) -> Launcher:
    start, stream, byref, pointer = library[f"launch_{kernel.symbol}"], raw_stream(), ctypes.byref, ctypes.c_void_p

    def launch(grid: int, params: ctypes.Structure) -> None:
        if not grid:
            return
        error = start(grid, byref(params), pointer(stream(index)), index)
        if error:
            raise RuntimeError(f"{library.error_name(error).decode()}: launching {kernel} on a grid of {grid} blocks "
                               f"of {kernel.block} threads, cuda:{index}")

    return launch
