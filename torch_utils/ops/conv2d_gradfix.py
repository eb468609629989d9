"""Convolutions whose second derivative costs as much as their first one.

R1 and path length regularisation differentiate a gradient. In that second backward pass, PyTorch computes the gradient
of the weights as a convolution whose kernel is as large as the image. On an H200, this is 15 to 60 times slower than an
ordinary backward pass. In bfloat16 on CPUs with AMX, it is also wrong (oneDNN 3.x: the result has no correct digit).

A convolution is bilinear in its input x and weight w, and so are its two gradients. For y = conv(x, w) and gradient dy,

    dx, dw = backward(dy, x, w)

and, for the gradients ddx and ddw of dx and dw,

    d/d dy = conv(ddx, w) + conv(x, ddw)
    d/dx, d/dw = backward(dy, ddx, ddw)

Hence the two autograd functions `conv` and `backward` are each other's derivatives to any order, and no kernel is
larger than w. The same holds for transposed convolutions.
"""

import contextlib
from typing import Any, Iterator, NamedTuple

import torch

enabled: bool | None = None             # Whether to use the two functions above; None = only inside `second_order`.
weight_gradients_disabled = False       # Set by `no_weight_gradients`.

_second_order = False

Pair = int | tuple[int, int]
Tensor = torch.Tensor


@contextlib.contextmanager
def second_order() -> Iterator[None]:
    """Use this context for convolutions whose gradient will be differentiated again."""
    global _second_order
    old, _second_order = _second_order, True
    try:
        yield
    finally:
        _second_order = old


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Inside, backward passes compute no gradients of weights. Second derivatives are not affected.

    Use it for `torch.autograd.grad(y, x)`: PyTorch doesn't tell an autograd function which gradients are requested.

    Args:
        disable: False = change nothing. Programs written for StyleGAN3 pass this.
    """
    global weight_gradients_disabled
    old, weight_gradients_disabled = weight_gradients_disabled, weight_gradients_disabled or disable
    try:
        yield
    finally:
        weight_gradients_disabled = old


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, except that it keeps the dtype of its arguments under autocast.

    Args:
        input:  [N, C_in, H, W], any floating-point dtype and memory format.
        weight: [C_out, C_in / groups, kh, kw], the dtype of `input`.
        bias:   [C_out] or None.

    Returns:
        [N, C_out, H', W'].
    """
    options = _ConvOptions(_pair(stride), _pair(padding), _pair(dilation), False, (0, 0), groups)
    return _run(input, weight, bias, options)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, except that it keeps the dtype of its arguments under autocast.

    Args:
        input:  [N, C_in, H, W], any floating-point dtype and memory format.
        weight: [C_in, C_out / groups, kh, kw], the dtype of `input`.
        bias:   [C_out] or None.

    Returns:
        [N, C_out, H', W'].
    """
    options = _ConvOptions(_pair(stride), _pair(padding), _pair(dilation), True, _pair(output_padding), groups)
    return _run(input, weight, bias, options)


class _ConvOptions(NamedTuple):
    """The arguments of `torch.convolution` after the bias, in its order."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int]
    groups: int


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _run(x: Tensor, w: Tensor, bias: Tensor | None, options: _ConvOptions) -> Tensor:
    if not _use_functions(x, w):
        return _convolve(x, w, bias, options)
    y = _Convolution.apply(x, w, options)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def _use_functions(x: Tensor, w: Tensor) -> bool:
    wanted = _second_order if enabled is None else enabled
    if not wanted or torch.compiler.is_exporting() or torch.compiler.is_compiling():
        return False    # exports and compilers need PyTorch's own operations
    return torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)


def _convolve(x: Tensor, w: Tensor, bias: Tensor | None, options: _ConvOptions) -> Tensor:
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _convolve(x, w, bias, options)
    return torch.convolution(x, w, bias, *options)


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, options: _ConvOptions) -> Tensor:
        return _convolve(x, w, None, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, w, ctx.options = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        mask = (ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not weight_gradients_disabled)
        dx, dw = _gradients(dy, x, w, ctx.options, mask)
        return dx, dw, None


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor, options: _ConvOptions, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and w for which `mask` is true; None for the others.

    dx does not depend on the values of x, nor dw on those of w.
    """
    return _ConvolutionBackward.apply(dy, x, w, options, mask) if any(mask) else (None, None)


class _ConvolutionBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, w: Tensor, options: _ConvOptions, mask: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, w, None, *options, [*mask, False])
        return dx, dw

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        dy, x, w, ctx.options, _mask = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, w)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None, ddw: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, w = ctx.saved_tensors
        grad_dy = None
        if ctx.needs_input_grad[0]:
            pairs = [pair for pair in ((ddx, w), (x, ddw)) if pair[0] is not None and pair[1] is not None]
            grad_dy = sum(_Convolution.apply(*pair, ctx.options) for pair in pairs) if pairs else None
        mask = (ctx.needs_input_grad[1] and ddw is not None, ctx.needs_input_grad[2] and ddx is not None)
        grad_x, grad_w = _gradients(dy, x if ddx is None else ddx, w if ddw is None else ddw, ctx.options, mask)
        return grad_dy, grad_x, grad_w, None, None
