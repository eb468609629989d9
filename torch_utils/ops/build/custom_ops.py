"""The runtime of the project's CUDA kernels: compiles them when they are first needed, keeps them, launches them."""

import collections
import contextlib
import importlib
import os
import pkgutil
import threading
from types import ModuleType
from typing import Iterator, Sequence

import torch
from tqdm import tqdm

from dnnlib.util import UserError, cache_dir, say_once
from torch_utils import ops

from . import driver, nvrtc
from .disk_cache import DiskCache
from .source import Built, CompileError, Kernel, Launcher, Unavailable

__all__ = ["Kernel", "Launcher", "load", "prepare", "standard_kernels"]

VARIABLE = "GLEAD_OPS"
_CHOICES = ("auto", "native")

_launchers: dict[tuple[Kernel, torch.device], Launcher | None] = {}
_lock = threading.Lock()


def kernels_wanted() -> bool:
    """Whether kernels may be used. The environment variable GLEAD_OPS decides: auto (the default) or native.

    Raises:
        UserError: GLEAD_OPS has another value.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in _CHOICES:
        raise UserError(f"{VARIABLE}={choice}: expected one of {', '.join(_CHOICES)}")
    return choice == "auto"


def kernel_cache() -> DiskCache:
    return DiskCache(cache_dir("kernels"))


def op_modules() -> Iterator[ModuleType]:
    """The modules of torch_utils.ops."""
    for info in pkgutil.iter_modules(ops.__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{ops.__name__}.{info.name}")


def standard_kernels() -> list[Kernel]:
    """The kernels that networks usually need. Each module of an operation lists its own in `standard_kernels`."""
    lists = [module.standard_kernels() for module in op_modules() if hasattr(module, "standard_kernels")]
    return list(dict.fromkeys(kernel for kernels in lists for kernel in kernels))


def load(kernel: Kernel, device: torch.device) -> Launcher | None:
    """Get the function that launches a kernel on a device. The kernel is compiled if it never was.

    Args:
        kernel: Which.
        device: Of the tensors that it works on.

    Returns:
        None where PyTorch's own operations have to do the work: on the CPU, and where no kernel can be had. In the
        latter case, the first call in a process prints the reason.

    Raises:
        UserError: The environment variable GLEAD_OPS is neither auto nor native.
    """
    try:
        return _launchers[kernel, device]
    except KeyError:
        return _load(kernel, device)


def _load(kernel: Kernel, device: torch.device) -> Launcher | None:
    wanted = kernels_wanted()
    if device.type != "cuda":
        _launchers[kernel, device] = None
        return None
    if device.index is None:  # the current device, which may be another one at the next call
        return load(kernel, torch.device("cuda", torch.cuda.current_device()))
    with _lock:
        if (kernel, device) not in _launchers:
            _launchers[kernel, device] = _make_launcher(kernel, device) if wanted else None
            if not wanted:
                _say_native(f"{VARIABLE}=native")
        return _launchers[kernel, device]


def _make_launcher(kernel: Kernel, device: torch.device) -> Launcher | None:
    try:
        image = nvrtc.image(kernel, arch=architecture(device), cache=kernel_cache())
        return driver.launcher(kernel, image, index=device.index)
    except (Unavailable, CompileError) as e:
        _say_native(str(e))
        return None


def _say_native(reason: str) -> None:
    say_once("native", f"CUDA kernels can't be used ({reason}): PyTorch's own operations take their place.")


def all_loaded(device: torch.device) -> bool:
    """Whether every kernel that this process has asked for on a device could be loaded."""
    return all(launch is not None for (_, where), launch in _launchers.items() if where == device)


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Inside, PyTorch's own operations take the kernels' place in this process, for comparisons."""
    global _launchers
    before, _launchers = _launchers, collections.defaultdict(lambda: None)
    try:
        yield
    finally:
        _launchers = before


def architecture(device: torch.device) -> int:
    """90 for a device of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def prepare(device: torch.device) -> None:
    """Compile and load the standard kernels, several at a time, so that training doesn't wait for them later.

    Does nothing on the CPU. Where kernels can't be had, prints the reason as `load` does.

    Raises:
        UserError: As `load`.
    """
    if not kernels_wanted() or device.type != "cuda":
        return
    kernels = standard_kernels()
    with contextlib.suppress(Unavailable):  # `load` prints the reason
        for _ in compile_all(kernels, arch=architecture(device)):
            pass
    for kernel in kernels:
        load(kernel, device)


def compile_all(kernels: Sequence[Kernel], *, arch: int) -> Iterator[Built]:
    """Compile kernels, in the order in which they are finished. Shows progress if that takes more than a second.

    Raises:
        Unavailable: NVRTC is missing, or fails.
    """
    built = nvrtc.build(kernels, arch=arch, cache=kernel_cache())
    yield from tqdm(built, total=len(kernels), desc="Compiling CUDA kernels", unit="kernel", leave=False, delay=1)
