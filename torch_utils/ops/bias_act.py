"""Bias, activation, gain and clamp as one operation."""

from typing import Any, Callable, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Activation(NamedTuple):
    func: Callable[[torch.Tensor, float], torch.Tensor]  # (x, alpha) -> y
    def_alpha: float                                     # Slope of the negative side, where there is one.
    def_gain: float                                      # Keeps the second moment of normal input about 1.
    slope: float | None                                  # Negative slope if piecewise linear; -1 = alpha. Else None.


activation_funcs = {
    "linear":   Activation(lambda x, alpha: x,                    0.0, 1.0,        1.0),
    "relu":     Activation(lambda x, alpha: F.relu(x),            0.0, np.sqrt(2), 0.0),
    "lrelu":    Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, np.sqrt(2), -1.0),
    "tanh":     Activation(lambda x, alpha: torch.tanh(x),        0.0, 1.0,        None),
    "sigmoid":  Activation(lambda x, alpha: torch.sigmoid(x),     0.0, 1.0,        None),
    "elu":      Activation(lambda x, alpha: F.elu(x),             0.0, 1.0,        None),
    "selu":     Activation(lambda x, alpha: F.selu(x),            0.0, 1.0,        None),
    "softplus": Activation(lambda x, alpha: F.softplus(x),        0.0, 1.0,        None),
    "swish":    Activation(lambda x, alpha: torch.sigmoid(x) * x, 0.0, np.sqrt(2), None),
}


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: Literal["cuda", "ref"] = "cuda",
) -> torch.Tensor:
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
    if impl == "ref" or spec.slope is None:
        return _reference(x, b, dim, spec.func, alpha, gain, clamp)
    slope = alpha if spec.slope < 0 else spec.slope
    if slope == 1 and gain == 1 and clamp is None:
        return x if b is None else x + _along(b, x, dim)
    return _PiecewiseLinear.apply(x, b, dim, slope, gain, clamp)


def _along(b: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    return b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])


def _reference(x, b, dim, func, alpha, gain, clamp) -> torch.Tensor:
    if b is not None:
        x = x + _along(b, x, dim)
    x = func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


class _PiecewiseLinear(torch.autograd.Function):
    """Linear and (leaky) ReLU in place on one buffer. The derivative needs the result only, so nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x, b, dim, slope, gain, clamp):
        y = x.clone() if b is None else x + _along(b, x, dim)
        if slope != 1:
            F.leaky_relu_(y, slope)
        if gain != 1:
            y.mul_(gain)
        if clamp is not None:
            clamp = torch.tensor(clamp, dtype=y.dtype).item()  # as `y` holds it, for the comparison in the derivative
            y.clamp_(-clamp, clamp)
        ctx.save_for_backward(y)
        ctx.args = dim % x.ndim, slope, gain, clamp
        ctx.has_bias = b is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy):
        dim, slope, gain, clamp = ctx.args
        dx = _PiecewiseLinearGrad.apply(dy, *ctx.saved_tensors, slope, gain, clamp)
        db = None
        if ctx.has_bias and ctx.needs_input_grad[1]:
            db = dx.sum([i for i in range(dx.ndim) if i != dim])
        return dx, db, None, None, None, None


class _PiecewiseLinearGrad(torch.autograd.Function):
    """dy -> dy times the local slope. Linear in dy and constant in y almost everywhere, so its derivative is itself."""

    @staticmethod
    def forward(ctx: Any, dy, y, slope, gain, clamp):
        ctx.save_for_backward(y)
        ctx.args = slope, gain, clamp
        dx = dy * gain
        if slope != 1:  # one pass each, in place and without masks in between
            torch.ops.aten.leaky_relu_backward(dx, y, slope, True, grad_input=dx)
        if clamp is not None:
            torch.ops.aten.hardtanh_backward(dx, y, -clamp, clamp, grad_input=dx)
        return dx

    @staticmethod
    def backward(ctx: Any, ddx):
        return _PiecewiseLinearGrad.apply(ddx, *ctx.saved_tensors, *ctx.args), None, None, None, None
