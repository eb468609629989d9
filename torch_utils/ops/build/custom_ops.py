"""The runtime of the project's CUDA kernels: compiles them when they are first needed, keeps them, launches them.

Two routes compile the same source. NVRTC is tried first: 0.05 to 0.2 s a kernel, with nothing to install. nvcc takes at
least 6 s for the smallest library and needs a toolkit and a C++ compiler; its launches take 0.5 us instead of 1.1 us.
"""

import contextlib
import importlib
import os
import pkgutil
import threading
from types import ModuleType
from typing import Any, Iterator

import torch
from tqdm import tqdm

from dnnlib.util import UserError, cache_dir, say_once
from torch_utils import ops

from . import nvcc, nvrtc
from .disk_cache import DiskCache
from .source import Built, CompileError, Kernel, Launcher, Unavailable

__all__ = ["Kernel", "Launcher", "load", "prepare", "standard_kernels"]

ROUTES = {"nvrtc": nvrtc, "nvcc": nvcc}  # In the order in which they are tried.
VARIABLE = "GLEAD_OPS"

_launchers: dict[tuple[Kernel, torch.device], Launcher | None] = {}
_lock = threading.Lock()


def chosen_routes(choice: str | None = None) -> tuple[str, ...]:
    """The routes to try, in order: those of `choice`, or of the environment variable GLEAD_OPS.

    Raises:
        UserError: It is none of auto, nvrtc, nvcc, native.
    """
    name = f"{VARIABLE}=" if choice is None else "--route="
    choice = choice or os.environ.get(VARIABLE) or "auto"
    routes = {"auto": tuple(ROUTES), "native": (), **{route: (route,) for route in ROUTES}}
    if choice not in routes:
        raise UserError(f"{name}{choice}: expected one of {', '.join(routes)}")
    return routes[choice]


def kernel_cache() -> DiskCache:
    return DiskCache(cache_dir("kernels"))


def op_modules() -> Iterator[ModuleType]:
    """The modules of torch_utils.ops."""
    for info in pkgutil.iter_modules(ops.__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{ops.__name__}.{info.name}")


def standard_kernels() -> list[Kernel]:
    """What the networks usually need: all that the modules of operations name by a function of the same name."""
    lists = [module.standard_kernels() for module in op_modules() if hasattr(module, "standard_kernels")]
    return list(dict.fromkeys(kernel for kernels in lists for kernel in kernels))


def load(kernel: Kernel, device: torch.device) -> Launcher | None:
    """The way to launch a kernel on a device; it is compiled now if it never was.

    Args:
        kernel: Which.
        device: Of the tensors that it works on.

    Returns:
        None where kernels can't be had, so that PyTorch's own operations have to do: on the CPU, of which nothing is
        said, or for a reason that is said once in each process.

    Raises:
        UserError: The environment variable GLEAD_OPS holds something else than auto, nvrtc, nvcc, native.
    """
    try:
        return _launchers[kernel, device]
    except KeyError:
        return _load(kernel, device)


def _load(kernel: Kernel, device: torch.device) -> Launcher | None:
    if device.type != "cuda":
        chosen_routes()
        _launchers[kernel, device] = None
        return None
    if device.index is None:  # the current one, not always the same
        return load(kernel, torch.device("cuda", torch.cuda.current_device()))
    with _lock:
        if (kernel, device) not in _launchers:
            _launchers[kernel, device] = _made(kernel, device)
        return _launchers[kernel, device]


def _made(kernel: Kernel, device: torch.device) -> Launcher | None:
    arch, cache, reasons = architecture(device), kernel_cache(), []
    for route in chosen_routes():
        extra = dict(standard=standard_kernels()) if route == "nvcc" else {}
        try:
            return ROUTES[route].launcher(kernel, arch=arch, index=device.index, cache=cache, **extra)
        except Unavailable as e:
            reasons.append(f"{route}: {e}")
        except CompileError as e:  # another compiler would refuse it, too
            reasons.append(f"{route}: {e}")
            break
    why = "; ".join(reasons) or f"{VARIABLE}=native"
    say_once("native", f"CUDA kernels can't be used ({why}): PyTorch's own operations take their place.")
    return None


class _None(dict):
    """Holds None for every key."""

    def __missing__(self, key: Any) -> None:
        return None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """PyTorch's own operations take the kernels' place in this process, for comparisons."""
    global _launchers
    before, _launchers = _launchers, _None()
    try:
        yield
    finally:
        _launchers = before


def architecture(device: torch.device) -> int:
    """90 for a device of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def prepare(device: torch.device) -> None:
    """Compile and load all that the networks usually need, so that nothing is compiled in the middle of something.

    On the CPU nothing is to be done; what can't be had is said as `load` says it.

    Raises:
        UserError: As `load`.
    """
    routes = chosen_routes()
    if device.type != "cuda":
        return
    kernels = standard_kernels()
    for route in routes:
        try:
            built = ROUTES[route].build(kernels, arch=architecture(device), cache=kernel_cache())
            for _ in progress(built, len(kernels)):
                pass
            break
        except Unavailable:
            continue  # `load` gives the reasons
    for kernel in kernels:
        load(kernel, device)


def progress(built: Iterator[Built], total: int) -> Iterator[Built]:
    """Shows how many kernels are done, unless that takes less than a second."""
    with tqdm(total=total, desc="Compiling CUDA kernels", unit="kernel", leave=False, delay=1) as bar:
        for one in built:
            bar.update(len(one.kernels))
            yield one
