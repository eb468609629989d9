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
    func: Callable[[Tensor, float], Tensor]         # (x, alpha) -> y
    def_alpha: float                                # Slope of the negative side, where there is one.
    def_gain: float                                 # Keeps the second moment of normal input about 1.
    slope: float | None = None                      # Negative slope if piecewise linear; -1 = alpha. Else None.
    first: Callable[[Tensor], Tensor] | None = None     # Derivative of a smooth activation, from its result r ...
    second: Callable[[Tensor], Tensor] | None = None    # ... and that derivative's derivative in r. Or both from
    from_input: bool = False                            # the activation's input, if the result does not tell.


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _swish_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _swish_curve(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


activation_funcs = {  # bias_act.cu has them in the same order
    "linear":   Activation(lambda x, alpha: x,                      0.0, 1.0,        slope=1.0),
    "relu":     Activation(lambda x, alpha: F.relu(x),              0.0, np.sqrt(2), slope=0.0),
    "lrelu":    Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, np.sqrt(2), slope=-1.0),
    "tanh":     Activation(lambda x, alpha: torch.tanh(x),          0.0, 1.0,
                           first=lambda r: 1 - r * r, second=lambda r: -2 * r),
    "sigmoid":  Activation(lambda x, alpha: torch.sigmoid(x),       0.0, 1.0,
                           first=lambda r: r * (1 - r), second=lambda r: 1 - 2 * r),
    "elu":      Activation(lambda x, alpha: F.elu(x),               0.0, 1.0,
                           first=lambda r: torch.where(r > 0, 1, r + 1), second=lambda r: (r <= 0).to(r.dtype)),
    "selu":     Activation(lambda x, alpha: F.selu(x),              0.0, 1.0,
                           first=lambda r: torch.where(r > 0, _SELU_SCALE, r + _SELU_SCALE * _SELU_ALPHA),
                           second=lambda r: (r <= 0).to(r.dtype)),
    "softplus": Activation(lambda x, alpha: F.softplus(x),          0.0, 1.0,
                           first=lambda r: -torch.expm1(-r), second=lambda r: torch.exp(-r)),
    "swish":    Activation(lambda x, alpha: torch.sigmoid(x) * x,   0.0, np.sqrt(2),
                           first=_swish_slope, second=_swish_curve, from_input=True),
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
        x:     Any shape and floating-point type.
        b:     [x.shape[dim]], the type of `x`; None = no bias.
        dim:   The dimension of `x` along which `b` runs.
        act:   A key of `activation_funcs`.
        alpha: Negative slope of `lrelu`; None = 0.2. Other activations have no parameter.
        gain:  None = the activation's own, sqrt(2) for the ReLU family.
        clamp: Limit of the absolute value of the result; None = no limit.
        impl:  "ref" composes plain operations, the oracle of the tests; else the fastest path there is.

    Returns:
        Shape and type of `x`.
    """
    if act not in activation_funcs:
        raise ValueError(f"activation {act!r} is none of {', '.join(activation_funcs)}")
    spec = activation_funcs[act]
    alpha = float(spec.def_alpha if alpha is None else alpha)
    gain = float(spec.def_gain if gain is None else gain)
    if b is not None and (b.ndim != 1 or b.shape[0] != x.shape[dim]):
        raise ValueError(f"bias {tuple(b.shape)} does not fit dimension {dim} of {tuple(x.shape)}")
    # Other programs know plain operations alone; the operator's derivative needs a result that tells the input's sign.
    if impl == "ref" or gain == 0 or alpha < 0 or torch.compiler.is_exporting():
        return _reference(x, b, dim, spec.func, alpha, gain, clamp)
    if act == "linear" and gain == 1 and clamp is None:
        return x if b is None else x + _along(b, x, dim)
    return torch.ops.glead.bias_act(x, b, dim % max(x.ndim, 1), act, alpha, gain,
                                    -1.0 if clamp is None else float(clamp))


def _along(b: Tensor, x: Tensor, dim: int) -> Tensor:
    return b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])


def _reference(x, b, dim, func, alpha, gain, clamp) -> Tensor:
    if b is not None:
        x = x + _along(b, x, dim)
    x = func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def _slope(act: str, alpha: float) -> float | None:
    """Of the negative side, if piecewise linear."""
    slope = activation_funcs[act].slope
    return alpha if slope == -1 else slope


# The operators. `ref` is the result y, or for activations of which it doesn't tell the derivative, the input x; clamp
# < 0 means none. bias_act_grad is linear in dy, so its derivative in dy is itself.

_SETTINGS = "int dim, str act, float alpha, float gain, float clamp"
kernels.library.define(f"bias_act(Tensor x, Tensor? b, {_SETTINGS}) -> Tensor")
kernels.library.define(f"bias_act_grad(Tensor dy, Tensor ref, Tensor? b, {_SETTINGS}) -> Tensor")
kernels.library.define(f"bias_act_grad2(Tensor dy, Tensor ref, Tensor? b, Tensor ddx, {_SETTINGS}) -> Tensor")


def _native(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    """In place on one buffer where that is possible."""
    slope = _slope(act, alpha)
    early = gain if slope is not None and gain > 0 else 1.0  # a positive factor passes through (leaky) ReLUs
    if b is None:
        y = x * early
    else:
        y = torch.add(_along(b, x, dim) * early, x, alpha=early)
    if slope is None:
        y = activation_funcs[act].func(y, alpha)
    elif slope == 0:
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
    """The limit as a result of that type holds it, to tell what was clamped."""
    return torch.tensor(clamp, dtype=dtype).item()


def _native_grad(
    dy: Tensor, ref: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    slope = _slope(act, alpha)
    if slope is None:
        r, y = _result(ref, b, dim, act, alpha, gain)
        dx = dy * activation_funcs[act].first(r) * gain
    else:
        y = ref if gain > 0 else -ref  # the input's sign; one pass each, in place and without masks in between
        if slope == 1:
            dx = dy * gain
        else:
            dx = torch.ops.aten.leaky_relu_backward(dy, y, slope, True)
            if gain != 1:
                dx.mul_(gain)
    if clamp >= 0:
        limit = _as_held(clamp, dy.dtype)
        torch.ops.aten.hardtanh_backward(dx, y, -limit, limit, grad_input=dx)
    return dx


def _native_grad2(
    dy: Tensor, ref: Tensor, b: Tensor | None, ddx: Tensor, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    spec = activation_funcs[act]
    r, y = _result(ref, b, dim, act, alpha, gain)
    d = dy * ddx * spec.second(r)
    if spec.from_input:
        d = d * gain
    if clamp >= 0:
        limit = _as_held(clamp, dy.dtype)
        d = torch.ops.aten.hardtanh_backward(d, y, -limit, limit)
    return d


def _result(ref: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float) -> tuple[Tensor, Tensor]:
    """What a smooth activation's derivative is told from, and the result before the clamp."""
    spec = activation_funcs[act]
    if not spec.from_input:
        return ref / gain, ref
    r = ref if b is None else ref + _along(b, ref, dim)
    return r, spec.func(r, alpha) * gain


_Params = kernels.params(
    out=ctypes.c_void_p, x=ctypes.c_void_p, ref=ctypes.c_void_p, ddx=ctypes.c_void_p, b=ctypes.c_void_p,
    size=ctypes.c_int64, step=ctypes.c_int64, num_b=ctypes.c_int64,
    alpha=ctypes.c_double, gain=ctypes.c_double, clamp=ctypes.c_double,
)
_UNROLL = 2  # as in bias_act.cu


@functools.lru_cache(maxsize=None)
def _kernel(*, order: int, act: str, dtype: torch.dtype, bias: int, vec: int, index: str) -> custom_ops.Kernel:
    return kernels.kernel("bias_act", _Params, dtype=dtype, ORDER=order, ACT=list(activation_funcs).index(act),
                          BIAS=bias, VEC=vec, INDEX=index)


def standard_kernels() -> list[custom_ops.Kernel]:
    """What the networks use: linear and leaky ReLU, with bias and without, single elements and full vectors."""
    return [
        _kernel(order=order, act=act, dtype=dtype, bias=bias, vec=vec, index="unsigned")
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for vec in (1, kernels.VECTOR_BYTES // dtype.itemsize)
        for order, bias in ((0, 0), (0, 1), (0, 2), (1, 0)) if bias < 2 or vec > 1 for act in ("linear", "lrelu")
    ]


def _launch(
    order: int, x: Tensor, b: Tensor | None, ref: Tensor | None, ddx: Tensor | None,
    dim: int, act: str, alpha: float, gain: float, clamp: float,
) -> Tensor | None:
    """Through a CUDA kernel; None where there is none."""
    if x.dtype not in kernels.TYPES or x.numel() == 0:
        return None
    kernels.check_devices(x, b, ref, ddx)
    x = kernels.dense(x)
    out = torch.empty_like(x)
    ref, ddx = (t if t is None or t.stride() == x.stride() else torch.empty_like(x).copy_(t) for t in (ref, ddx))
    if b is not None:
        b = b.to(x.dtype).contiguous()
    tensors = (x, out, ref, ddx)
    step = x.numel() if b is None or len(b) == 1 else x.stride(dim)  # the stride of a single one means nothing
    if step == 1 and b is not None and len(b) > 1:  # the vector runs over channels
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
    launch(grid, _Params(address(out), address(x), address(ref), address(ddx), address(b),
                         x.numel(), step, 1 if b is None else len(b), alpha, gain, clamp))
    return out


def _cuda(x, b, dim, act, alpha, gain, clamp):
    y = _launch(0, x, b, None, None, dim, act, alpha, gain, clamp)
    return _native(x, b, dim, act, alpha, gain, clamp) if y is None else y


def _cuda_grad(dy, ref, b, dim, act, alpha, gain, clamp):
    dx = _launch(1, dy, b, ref, None, dim, act, alpha, gain, clamp)
    return _native_grad(dy, ref, b, dim, act, alpha, gain, clamp) if dx is None else dx


def _cuda_grad2(dy, ref, b, ddx, dim, act, alpha, gain, clamp):
    d = _launch(2, dy, b, ref, ddx, dim, act, alpha, gain, clamp)
    return _native_grad2(dy, ref, b, ddx, dim, act, alpha, gain, clamp) if d is None else d


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, b, *ctx.settings = inputs
    from_input = activation_funcs[ctx.settings[1]].from_input
    ctx.has_bias = b is not None
    ctx.save_for_backward(*((x, b) if from_input else (output, None)))


def _backward(ctx: Any, dy: Tensor) -> tuple:
    ref, b = ctx.saved_tensors
    dx = torch.ops.glead.bias_act_grad(dy, ref, b, *ctx.settings)
    db = None
    if ctx.has_bias and ctx.needs_input_grad[1]:
        db = dx.sum([i for i in range(dx.ndim) if i != ctx.settings[0]])
    return dx, db, *[None] * len(ctx.settings)


def _setup_grad(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, ref, b, *ctx.settings = inputs
    ctx.save_for_backward(dy, ref, b)


def _backward_grad(ctx: Any, ddx: Tensor) -> tuple:
    dy, ref, b = ctx.saved_tensors
    dim, act, alpha, gain, clamp = ctx.settings
    ddy = torch.ops.glead.bias_act_grad(ddx, ref, b, *ctx.settings) if ctx.needs_input_grad[0] else None
    d_ref = db = None
    if activation_funcs[act].slope is None and any(ctx.needs_input_grad[1:3]):
        if torch.is_grad_enabled():  # still higher derivatives are wanted: plain operations have them all
            d_ref = _native_grad2(dy, ref, b, ddx, *ctx.settings)
        else:
            d_ref = torch.ops.glead.bias_act_grad2(dy, ref, b, ddx, *ctx.settings)
        if b is not None:
            db = d_ref.sum([i for i in range(d_ref.ndim) if i != dim])
    return ddy, d_ref, db, *[None] * len(ctx.settings)


kernels.register("bias_act", cpu=_native, cuda=_cuda, setup_context=_setup, backward=_backward)
kernels.register("bias_act_grad", cpu=_native_grad, cuda=_cuda_grad, setup_context=_setup_grad, backward=_backward_grad)
kernels.register("bias_act_grad2", cpu=_native_grad2, cuda=_cuda_grad2)
