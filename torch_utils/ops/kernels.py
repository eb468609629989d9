"""Shared parts of the operations with CUDA kernels: registration, element types, sizes of vectors, parameters."""

import ctypes
from typing import Any, Callable, Sequence

import torch
from torch.autograd import forward_ad

from .build import custom_ops

TYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
BLOCK = 256             # Threads of a block.
VECTOR_BYTES = 16       # Largest size that one instruction reads or writes.
MAX_GRID = 2**31 - 1

library = torch.library.Library("glead", "FRAGMENT")  # Holds the operators `torch.ops.glead.<name>`.


def register(
    name: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,   # as in torch.library.register_autograd
    backward: Callable[..., tuple] | None = None,       # None = not differentiable
) -> None:
    """Register the implementations of an operator that is defined in `library`. `cpu` also serves fake tensors."""
    library.impl(name, cpu, "CompositeExplicitAutograd")  # for all devices without kernels
    library.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"glead::{name}", cpu, lib=library)
    if backward is not None:
        op = getattr(torch.ops.glead, name).default
        library.impl(name, _differentiable(op, setup_context=setup_context, backward=backward), "Autograd")


def _differentiable(
    op: torch._ops.OpOverload, *, setup_context: Callable[..., None], backward: Callable[..., tuple]
) -> Callable[..., Any]:
    """Like `torch.library.register_autograd`, but with a third of its overhead, which slows down small networks."""

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            out = op(*args)
        setup_context(ctx, args, out)
        return out

    function: Any = type(f"{op.__name__}_function", (torch.autograd.Function,),
                    dict(forward=staticmethod(forward), backward=staticmethod(backward)))

    def differentiable(*args: Any) -> Any:
        if (torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
                or forward_ad._current_level >= 0):  # forward derivatives: `apply` raises an error
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return differentiable


def params(**fields: Any) -> type[ctypes.Structure]:
    """The ctypes structure for a kernel's `struct Params`: types by field name, in the same order."""
    return type("Params", (ctypes.Structure,), {"_fields_": list(fields.items())})


def kernel(
    name: str, params: type[ctypes.Structure], *, dtype: torch.dtype, block: int = BLOCK, **macros: int | str
) -> custom_ops.Kernel:
    """The kernel in `name`.cu for elements of type `dtype`. `params` is the structure of its parameters."""
    common: dict[str, int | str] = dict(T=TYPES[dtype], BLOCK=block, PARAMS_BYTES=ctypes.sizeof(params))
    return custom_ops.Kernel(name, tuple((common | macros).items()))


def index_type(numel: int) -> str:
    """An unsigned C++ type that can count `numel` elements."""
    return "unsigned" if numel < 2**31 else "unsigned long long"


def check_devices(x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device: a kernel can't read the memory of another one."""
    for other in others:
        if other is not None and other.device != x.device:
            raise ValueError(f"all tensors must be on one device, got {x.device} and {other.device}")


def address(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels compute: float16 and bfloat16 are widened to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def vector_size(dtype: torch.dtype, length: int, tensors: Sequence[torch.Tensor | None]) -> int:
    """Elements per memory access: the largest power of two that divides `length`, and to which tensors are aligned."""
    size = VECTOR_BYTES // dtype.itemsize
    addresses = [t.data_ptr() for t in tensors if t is not None]
    while size > 1 and (length % size or any(a % (size * dtype.itemsize) for a in addresses)):
        size //= 2
    return size


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its memory has no gaps, otherwise a copy. A copy keeps channels last."""
    if x.is_contiguous() or is_channels_last(x):
        return x
    last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the memory format is channels last. False for tensors that are also contiguous, as with one channel."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
