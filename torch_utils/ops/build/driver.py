"""Calls CUDA's driver through ctypes, to load compiled kernels and launch them.

A launch takes 1.1 us of Python. The package cuda-bindings takes as long, but does not come with every PyTorch.
"""

import ctypes
import functools

import torch

from .source import Kernel, Launcher, Unavailable

_RELAXED = 2    # CU_STREAM_CAPTURE_MODE_RELAXED


@functools.lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise Unavailable(f"no CUDA driver ({e})") from e
    if code := library.cuInit(0):
        raise Unavailable(f"cuInit: {_error_name(library, code)}")
    return library


def _error_name(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {code}"


def _call(function: str, *args: object) -> None:
    if code := getattr(_library(), function)(*args):
        raise Unavailable(f"{function}: {_error_name(_library(), code)}")


@functools.lru_cache(maxsize=None)
def _context(index: int) -> int:
    """The context that PyTorch uses on a device. It is never released."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(device), index)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context.value


def launcher(kernel: Kernel, image: bytes, *, index: int) -> Launcher:
    """Load a compiled kernel into a device.

    Args:
        kernel: The kernel.
        image:  The compiled kernel: a cubin, or PTX with a zero byte at its end.
        index:  Index of the device.

    Raises:
        Unavailable: There is no driver, or it reports an error.
    """
    context = ctypes.c_void_p(_context(index))
    _call("cuCtxPushCurrent_v2", context)
    try:
        return _launcher(kernel, _function(kernel, image), context, index)
    finally:
        _library().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _function(kernel: Kernel, image: bytes) -> ctypes.c_void_p:
    """Load the kernel into the current context, even while this thread captures a CUDA graph."""
    module, function, mode = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int(_RELAXED)
    _call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        _call("cuModuleLoadData", ctypes.byref(module), image)
        _call("cuModuleGetFunction", ctypes.byref(function), module, kernel.symbol.encode())
        # CUDA may load functions lazily, which fails during a capture. Load it now. Drivers before 12.4 have no
        # cuFuncLoad, but load functions in cuModuleGetFunction.
        if hasattr(_library(), "cuFuncLoad"):
            _call("cuFuncLoad", function)
    finally:
        _library().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    return function


def _launcher(kernel: Kernel, function: ctypes.c_void_p, context: ctypes.c_void_p, index: int) -> Launcher:
    # A launch must be fast: everything is looked up and converted beforehand. Without `argtypes`, ctypes takes half the
    # time, but passes integers as C int, and hence pointers must be c_void_p. A launch may wait for the device, and
    # releases the interpreter's lock. Other calls don't wait, and keep the lock (PyDLL).
    library = _library()
    immediate = ctypes.PyDLL(library._name, handle=library._handle)
    start, current_context = library.cuLaunchKernel, immediate.cuCtxGetCurrent
    push, pop = immediate.cuCtxPushCurrent_v2, immediate.cuCtxPopCurrent_v2
    block, expected, stream = kernel.block, context.value, torch._C._cuda_getCurrentRawStream
    pointer, byref, addressof = ctypes.c_void_p, ctypes.byref, ctypes.addressof

    def launch(grid: int, params: ctypes.Structure) -> None:
        if not grid:
            return
        # Another device may be current. A new thread has no context before it first uses PyTorch on a GPU.
        current = pointer()
        current_context(byref(current))
        elsewhere = current.value != expected
        if elsewhere:
            push(context)
        try:
            error = start(function, grid, 1, 1, block, 1, 1, 0, pointer(stream(index)),
                          byref(pointer(addressof(params))), None)
        finally:
            if elsewhere:
                pop(byref(current))
        if error:
            raise RuntimeError(f"{_error_name(library, error)}: launching {kernel} on a grid of {grid} blocks of "
                               f"{block} threads, cuda:{index}")

    return launch
