"""Bias, activation, gain and clamp as one operation."""

import ctypes
import functools
from typing import Any, Callable, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from . import kernels
from .build import custom_ops

Tensor = torch.Tensor


class Activation(NamedTuple):
    func: Callable[[Tensor, float], Tensor]     # (x, alpha) -> y
    def_alpha: float                            # Default of alpha, the slope of the negative side of `lrelu`.
    def_gain: float                             # Keeps the second moment of the output near 1 for normal input.
    slope: float | None = None                  # Negative slope if piecewise linear; -1 = alpha. Otherwise None.


activation_funcs = {  # bias_act.cu numbers the piecewise linear ones in this order
    "linear":   Activation(lambda x, alpha: x,                      0.0, 1.0,        slope=1.0),
    "relu":     Activation(lambda x, alpha: F.relu(x),              0.0, np.sqrt(2), slope=0.0),
    "lrelu":    Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, np.sqrt(2), slope=-1.0),
    "tanh":     Activation(lambda x, alpha: torch.tanh(x),          0.0, 1.0),
    "sigmoid":  Activation(lambda x, alpha: torch.sigmoid(x),       0.0, 1.0),
    "elu":      Activation(lambda x, alpha: F.elu(x),               0.0, 1.0),
    "selu":     Activation(lambda x, alpha: F.selu(x),              0.0, 1.0),
    "softplus": Activation(lambda x, alpha: F.softplus(x),          0.0, 1.0),
    "swish":    Activation(lambda x, alpha: torch.sigmoid(x) * x,   0.0, np.sqrt(2)),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: Literal["cuda", "ref"] = "cuda",
) -> Tensor:
    """`clamp(gain * act(x + b))`, differentiable any number of times.

    Args:
        x:     Any shape and floating-point dtype.
        b:     [x.shape[dim]], the dtype of `x`; None = no bias.
        dim:   Dimension of `x` to which `b` belongs.
        act:   A key of `activation_funcs`.
        alpha: Negative slope of `lrelu`; None = 0.2. Other activations have no parameter.
        gain:  Factor after the activation; None = the activation's default, sqrt(2) for the ReLU family.
        clamp: Limit for the absolute value of the result; None = no limit.
        impl:  "ref" composes plain operations, for tests to compare with. "cuda" takes the fastest available path.
               Smooth activations, which StyleGAN2 doesn't use, have only plain operations.

    Returns:
        A tensor of the shape and dtype of `x`.

    Raises:
        ValueError: There is no such activation, or the bias does not fit.
    """
    if act not in activation_funcs:
        raise ValueError(f"activation {act!r} is none of {', '.join(activation_funcs)}")
    spec = activation_funcs[act]
    alpha = float(spec.def_alpha if alpha is None else alpha)
    gain = float(spec.def_gain if gain is None else gain)
    if b is not None and (b.ndim != 1 or b.shape[0] != x.shape[dim]):
        raise ValueError(f"bias {tuple(b.shape)} does not fit dimension {dim} of {tuple(x.shape)}")
    # Exported graphs may hold only plain operations. The operator's derivative reads the input's sign from its result.
    if impl == "ref" or spec.slope is None or gain == 0 or alpha < 0 or torch.compiler.is_exporting():
        return _reference(x, b, dim, spec.func, alpha, gain, clamp)
    if act == "linear" and gain == 1 and clamp is None:
        return x if b is None else x + _along(b, x, dim)
    return torch.ops.glead.bias_act(x, b, dim % max(x.ndim, 1), act, alpha, gain,
                                    -1.0 if clamp is None else float(clamp))


def _along(b: Tensor, x: Tensor, dim: int) -> Tensor:
    """Reshape the bias so that it broadcasts over `x`."""
    return b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])


def _reference(x, b, dim, func, alpha, gain, clamp) -> Tensor:
    if b is not None:
        x = x + _along(b, x, dim)
    x = func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def _slope(act: str, alpha: float) -> float:
    """The slope of the negative side."""
    slope = activation_funcs[act].slope
    assert slope is not None
    return alpha if slope == -1 else slope


# The operators, for piecewise linear activations. clamp < 0 = no limit. The derivative bias_act_grad follows from `y`,
# the result of bias_act. It is linear in dy, and hence is its own derivative.

_SETTINGS = "str act, float alpha, float gain, float clamp"
kernels.library.define(f"bias_act(Tensor x, Tensor? b, int dim, {_SETTINGS}) -> Tensor")
kernels.library.define(f"bias_act_grad(Tensor dy, Tensor y, {_SETTINGS}) -> Tensor")


def _native(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    """The operation by PyTorch's own operations, in place where possible."""
    slope = _slope(act, alpha)
    early = gain if gain > 0 else 1.0  # (leaky) ReLUs commute with a positive factor
    y = x * early if b is None else torch.add(_along(b, x, dim) * early, x, alpha=early)
    if slope == 0:
        y.relu_()  # 0 * -inf would not be a number
    elif slope != 1:
        F.leaky_relu_(y, slope)
    if gain != early:
        y.mul_(gain)
    if clamp >= 0:
        limit = _as_held(clamp, y.dtype)
        y.clamp_(-limit, limit)
    return y


@functools.lru_cache(maxsize=None)
def _as_held(clamp: float, dtype: torch.dtype) -> float:
    """The limit, rounded to a dtype: clamped results have exactly this value."""
    return torch.tensor(clamp, dtype=dtype).item()


def _native_grad(dy: Tensor, y: Tensor, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    slope = _slope(act, alpha)
    signed = y if gain > 0 else -y  # has the sign of the activation's input
    if slope == 1:
        dx = dy * gain
    else:
        dx = torch.ops.aten.leaky_relu_backward(dy, signed, slope, True)  # one pass, without an intermediate mask
        if gain != 1:
            dx.mul_(gain)
    if clamp >= 0:
        limit = _as_held(clamp, dy.dtype)
        torch.ops.aten.hardtanh_backward(dx, signed, -limit, limit, grad_input=dx)
    return dx


_Params = kernels.params(
    out=ctypes.c_void_p, x=ctypes.c_void_p, ref=ctypes.c_void_p, b=ctypes.c_void_p,
    size=ctypes.c_int64, step=ctypes.c_int64, num_b=ctypes.c_int64,
    alpha=ctypes.c_double, gain=ctypes.c_double, clamp=ctypes.c_double,
)
_UNROLL = 2  # vectors of a thread, as in bias_act.cu


@functools.lru_cache(maxsize=None)
def _kernel(*, order: int, act: str, dtype: torch.dtype, bias: int, vec: int, index: str) -> custom_ops.Kernel:
    return kernels.kernel("bias_act", _Params, dtype=dtype, ORDER=order, ACT=list(activation_funcs).index(act),
                          BIAS=bias, VEC=vec, INDEX=index)


def standard_kernels() -> list[custom_ops.Kernel]:
    """The kernels that networks use: linear and leaky ReLU, with and without bias, for single elements and vectors."""
    return [
        _kernel(order=order, act=act, dtype=dtype, bias=bias, vec=vec, index="unsigned")
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for vec in (1, kernels.VECTOR_BYTES // dtype.itemsize)
        for order, bias in ((0, 0), (0, 1), (0, 2), (1, 0)) if bias < 2 or vec > 1 for act in ("linear", "lrelu")
    ]


def _launch(
    order: int, x: Tensor, b: Tensor | None, ref: Tensor | None, dim: int,
    act: str, alpha: float, gain: float, clamp: float,
) -> Tensor | None:
    """Run a CUDA kernel; None if there is none for this input."""
    if x.dtype not in kernels.TYPES or x.numel() == 0:
        return None
    kernels.check_devices(x, b, ref)
    x = kernels.dense(x)
    out = torch.empty_like(x)
    if ref is not None and ref.stride() != x.stride():
        ref = torch.empty_like(x).copy_(ref)
    if b is not None:
        b = b.to(x.dtype).contiguous()
    tensors = (x, out, ref)
    step = x.numel() if b is None or len(b) == 1 else x.stride(dim)  # a dimension of size 1 can have any stride
    if step == 1 and b is not None and len(b) > 1:  # a vector holds several channels
        vec = kernels.vector_size(x.dtype, len(b), (*tensors, b))
        bias = 1 if vec == 1 else 2
    else:
        vec, bias = kernels.vector_size(x.dtype, step, tensors), int(b is not None)
    index = kernels.index_type(x.numel())
    launch = custom_ops.load(
        _kernel(order=order, act=act, dtype=x.dtype, bias=bias, vec=vec, index=index), x.device)
    grid = -(-(x.numel() // vec) // (kernels.BLOCK * _UNROLL))
    if launch is None or grid > kernels.MAX_GRID:
        return None
    address = kernels.address
    launch(grid, _Params(address(out), address(x), address(ref), address(b),
                         x.numel(), step, 1 if b is None else len(b), alpha, gain, clamp))
    return out


def _cuda(x, b, dim, act, alpha, gain, clamp):
    y = _launch(0, x, b, None, dim, act, alpha, gain, clamp)
    return _native(x, b, dim, act, alpha, gain, clamp) if y is None else y


def _cuda_grad(dy, y, act, alpha, gain, clamp):
    dx = _launch(1, dy, None, y, 0, act, alpha, gain, clamp)
    return _native_grad(dy, y, act, alpha, gain, clamp) if dx is None else dx


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _x, b, ctx.dim, *ctx.settings = inputs
    ctx.has_bias = b is not None
    ctx.save_for_backward(output)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    (y,) = ctx.saved_tensors
    dx = torch.ops.glead.bias_act_grad(dy, y, *ctx.settings)
    db = None
    if ctx.has_bias and ctx.needs_input_grad[1]:
        db = dx.sum([i for i in range(dx.ndim) if i != ctx.dim])
    return dx, db, None, *[None] * len(ctx.settings)


def _setup_grad(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _dy, y, *ctx.settings = inputs
    ctx.save_for_backward(y)


def _backward_grad(ctx: Any, ddx: Tensor) -> tuple:
    (y,) = ctx.saved_tensors
    return torch.ops.glead.bias_act_grad(ddx, y, *ctx.settings), None, *[None] * len(ctx.settings)


kernels.register("bias_act", cpu=_native, cuda=_cuda, setup_context=_setup, backward=_backward)
kernels.register("bias_act_grad", cpu=_native_grad, cuda=_cuda_grad, setup_context=_setup_grad, backward=_backward_grad)
