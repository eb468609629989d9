"""CUDA's driver by ctypes: loads a compiled kernel into a device and launches it.

A launch takes 1.1 us of Python, the same as with the package cuda-bindings, which does not come with every PyTorch.
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
    _check(library, library.cuInit(0), "cuInit")
    return library


def _error_name(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {code}"


def _check(library: ctypes.CDLL, code: int, function: str) -> None:
    if code:
        raise Unavailable(f"{function}: {_error_name(library, code)}")


@functools.lru_cache(maxsize=None)
def _context(index: int) -> int:
    """The context that PyTorch uses on a device, kept for good."""
    library = _library()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(library, library.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    _check(library, library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    return context.value


def launcher(kernel: Kernel, image: bytes, *, index: int) -> Launcher:
    """Load a compiled kernel into a device.

    Args:
        kernel: What `image` holds.
        image:  Cubin, or PTX with a zero at its end.
        index:  Of the device.

    Raises:
        Unavailable: There is no driver, or it refuses.
    """
    library, context = _library(), ctypes.c_void_p(_context(index))
    _check(library, library.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
    try:
        return _launcher(library, kernel, _function(library, kernel, image), context, index)
    finally:
        library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _function(library: ctypes.CDLL, kernel: Kernel, image: bytes) -> ctypes.c_void_p:
    """Load the kernel in the current context, also while this thread captures a CUDA graph."""
    module, function, mode = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int(_RELAXED)
    _check(library, library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")
    try:
        _check(library, library.cuModuleLoadData(ctypes.byref(module), image), "cuModuleLoadData")
        symbol = kernel.symbol.encode()
        _check(library, library.cuModuleGetFunction(ctypes.byref(function), module, symbol), "cuModuleGetFunction")
        # Functions may be loaded lazily, but not during a capture. Drivers before 12.4 have no cuFuncLoad, and load
        # functions in cuModuleGetFunction.
        if hasattr(library, "cuFuncLoad"):
            _check(library, library.cuFuncLoad(function), "cuFuncLoad")
    finally:
        library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    return function


def _launcher(
    library: ctypes.CDLL, kernel: Kernel, function: ctypes.c_void_p, context: ctypes.c_void_p, index: int,
) -> Launcher:
    # A launch should be quick, so that everything is looked up and converted beforehand. Without `argtypes`, ctypes
    # takes half the time; it passes whole numbers as C int, so that pointers have to be c_void_p. A launch may wait for
    # the device, and lets other threads run meanwhile. Other calls don't wait, and keep the interpreter's lock (PyDLL).
    immediate = ctypes.PyDLL(library._name, handle=library._handle)
    start, current_context = library.cuLaunchKernel, immediate.cuCtxGetCurrent
    push, pop = immediate.cuCtxPushCurrent_v2, immediate.cuCtxPopCurrent_v2
    block, expected, stream = kernel.block, context.value, torch._C._cuda_getCurrentRawStream
    pointer, byref, addressof = ctypes.c_void_p, ctypes.byref, ctypes.addressof

    def launch(grid: int, params: ctypes.Structure) -> None:
        if not grid:
            return
        # Another device may be current. A new thread has no context until PyTorch needs one.
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
