"""Helpers for networks and devices. Network definitions use some of them, by the names of StyleGAN2-ADA's `misc`."""

import contextlib
import functools
import warnings
from typing import Any, Callable, Iterator, Sequence, TypeVar, cast

import numpy as np
import torch

from dnnlib.util import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


def pick_device(name: str | None) -> torch.device:
    """The device named by `--device`. Without a name: the GPU if there is one, otherwise the CPU.

    Raises:
        UserError: PyTorch doesn't know the device, or the machine doesn't have it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as e:  # a build without CUDA asserts
        reason = " ".join(str(e).split())[:120]
        raise UserError(f"--device={name} can't be used here: {reason}; try cpu, cuda or cuda:1") from e
    return device


_IMAGES = ("c_dim", "img_resolution", "img_channels", "init_kwargs")
_LATENTS = ("z_dim", "w_dim", "mapping", "synthesis")
_ATTRIBUTES = {"D": _IMAGES, "G": (*_IMAGES, *_LATENTS), "G_ema": (*_IMAGES, *_LATENTS)}


def check_network(network: torch.nn.Module, source: str, key: str) -> None:
    """Check that a network from a file can be used.

    Args:
        network: A network of this project's class, or of a class that a trusted file defines.
        source:  Name of the file in messages.
        key:     Name of the network in the file: `G`, `D`, `G_ema` or `augment_pipe`.

    Raises:
        UserError: The network lacks attributes of its kind, or has weights that are not finite.
    """
    lacking = [name for name in _ATTRIBUTES.get(key, ()) if not hasattr(network, name)]
    if lacking:
        kind = type(network).__name__
        raise UserError(f"{source}: {key} is of class {kind}, which can't be used: it has no {lacking[0]}")
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {key} holds weights that are not finite ({name}), so its training has "
                            "diverged: take an earlier snapshot")


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation from a to b: a, b [N, D] of any length, t [N, 1] in 0..1. Returns unit vectors [N, D]."""
    a, b = _unit(a), _unit(b)
    cosine = (a * b).sum(dim=-1, keepdim=True)
    angle = t * cosine.clamp(-1, 1).acos()
    return _unit(a * angle.cos() + _unit(b - cosine * a) * angle.sin())


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Scale vectors to unit length. Zero vectors, as between equal directions, stay as they are."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device, through page-locked memory, so that the host doesn't wait."""
    if device.type != "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@functools.lru_cache(maxsize=512)
def _constant(value: bytes, shape: tuple, np_dtype: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    array = np.frombuffer(value, dtype=np_dtype).reshape(shape)
    with torch.inference_mode(False):
        return upload(torch.tensor(array, dtype=dtype), device)


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A tensor of fixed values. It is copied to the device once, and all callers share it: don't modify it."""
    array = np.asarray(value)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    device = torch.device("cpu" if device is None else device)
    tensor = _constant(array.tobytes(), array.shape, array.dtype.str, dtype, device)
    if shape is not None:
        tensor = tensor.expand(tuple(shape))
    return tensor if memory_format is None else tensor.contiguous(memory_format=memory_format)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """Raise AssertionError unless `tensor` has the given shape; None matches any size."""
    if tensor.ndim != len(ref_shape):
        raise AssertionError(f"{tensor.ndim} dimensions {tuple(tensor.shape)}, expected {len(ref_shape)}")
    for dim, (size, expected) in enumerate(zip(tensor.shape, ref_shape)):
        if expected is not None and not isinstance(expected, torch.Tensor) and size != expected:
            raise AssertionError(f"size {size} in dimension {dim} of {tuple(tensor.shape)}, expected {expected}")


def profiled_function(fn: Function) -> Function:
    """Decorator: the function appears under its name in the PyTorch profiler."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return cast(Function, wrapper)


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silences the tracer's warnings about values that are constant by design (shapes, gains)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield
