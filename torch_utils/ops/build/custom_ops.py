"""The runtime of the project's CUDA kernels. It compiles a kernel when it is first needed, and keeps it."""

import collections
import contextlib
import os
import threading
from typing import Iterator, Sequence

import torch
from tqdm import tqdm

from dnnlib.util import UserError, say_once

from . import driver, nvrtc
from .source import Built, CompileError, Kernel, Launcher, Unavailable

VARIABLE = "GLEAD_OPS"
_CHOICES = ("auto", "native")

_launchers: dict[tuple[Kernel, torch.device], Launcher | None] = {}
_lock = threading.Lock()


def kernels_wanted() -> bool:
    """Whether kernels may be used: the environment variable GLEAD_OPS is auto (the default), not native.

    Raises:
        UserError: GLEAD_OPS has another value.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in _CHOICES:
        raise UserError(f"{VARIABLE}={choice}: expected one of {', '.join(_CHOICES)}")
    return choice == "auto"


def standard_kernels() -> list[Kernel]:
    """The kernels that networks usually need."""
    from .. import bias_act, modconv_epilogue, upfirdn2d  # these modules import this one

    return [kernel for op in (bias_act, modconv_epilogue, upfirdn2d) for kernel in op.standard_kernels()]


def load(kernel: Kernel, device: torch.device) -> Launcher | None:
    """Get the function that launches a kernel on a device. The kernel is compiled if necessary.

    Args:
        kernel: The kernel.
        device: Device of the tensors on which it works.

    Returns:
        The function, or None if PyTorch's own operations have to do the work: on the CPU, and if the kernel can't be
        compiled or loaded. In the latter case, the first call in a process prints the reason.

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
    if device.index is None:  # means the current device, which may change before the next call
        return load(kernel, torch.device("cuda", torch.cuda.current_device()))
    with _lock:
        if (kernel, device) not in _launchers:
            _launchers[kernel, device] = _make_launcher(kernel, device) if wanted else None
            if not wanted:
                _say_native(f"{VARIABLE}=native")
        return _launchers[kernel, device]


def _make_launcher(kernel: Kernel, device: torch.device) -> Launcher | None:
    try:
        image = nvrtc.image(kernel, arch=architecture(device))
        return driver.launcher(kernel, image, index=device.index)
    except (Unavailable, CompileError) as e:
        _say_native(str(e))
        return None


def _say_native(reason: str) -> None:
    say_once("native", f"CUDA kernels can't be used ({reason}): PyTorch's own operations take their place.")


def all_loaded(device: torch.device) -> bool:
    """Whether every kernel that this process has requested for a device could be loaded."""
    return all(launch is not None for (_, where), launch in _launchers.items() if where == device)


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Inside, this process uses PyTorch's own operations instead of kernels, for comparisons."""
    global _launchers
    before, _launchers = _launchers, collections.defaultdict(lambda: None)
    try:
        yield
    finally:
        _launchers = before


def architecture(device: torch.device) -> int:
    """The architecture of a device, such as 90 for compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def prepare(device: torch.device) -> None:
    """Compile and load the standard kernels, several at a time, so that training doesn't wait for them later.

    Does nothing on the CPU. If kernels can't be compiled or loaded, prints the reason like `load`.

    Raises:
        UserError: As in `load`.
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
    """`nvrtc.build`, with a progress bar if it takes more than a second."""
    built = nvrtc.build(kernels, arch=arch)
    yield from tqdm(built, total=len(kernels), desc="Compiling CUDA kernels", unit="kernel", leave=False, delay=1)
