"""All steps after the convolution in a layer of G, as one operation: demodulation, noise, bias, activation, clamp."""

import ctypes
import functools
from typing import Any

import torch

from . import bias_act, kernels
from .build import custom_ops

Tensor = torch.Tensor


def modconv_epilogue(
    x: Tensor,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    b: Tensor | None = None,
    act: str = "lrelu",
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """`clamp(gain * act(x * scale + noise * strength + b))`. Differentiable any number of times, but not in `noise`.

    Args:
        x:        [N, C, H, W], any floating-point dtype.
        scale:    [N, C]; None = 1.
        noise:    [N, 1, H, W], or [1, 1, H, W] or [H, W], the same for all images; None = no noise.
        strength: [], factor of the noise. Needed if there is noise.
        b:        [C]; None = no bias.
        act:      "linear", "relu", or "lrelu" with slope 0.2.
        gain:     Factor after the activation; None = the activation's default.
        clamp:    Limit for the absolute value of the result; None = no limit.

    Returns:
        [N, C, H, W], the dtype of `x`. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: The activation is not piecewise linear, or a shape does not fit.
    """
    spec = bias_act.activation_funcs.get(act)
    if spec is None or spec.slope is None:
        raise ValueError(f"the activation must be piecewise linear, got {act!r}")
    n, c, h, w = x.shape
    for name, tensor, shapes in [("scale", scale, [(n, c)]), ("b", b, [(c,)]), ("strength", strength, [()]),
                                 ("noise", noise, [(n, 1, h, w), (1, 1, h, w), (h, w)])]:
        if tensor is not None and tensor.shape not in shapes:  # type: ignore[operator]
            raise ValueError(f"{name} {tuple(tensor.shape)} does not fit {tuple(x.shape)}")
    if noise is not None and strength is None:
        raise ValueError("noise needs a strength")
    dtype = kernels.compute_type(x.dtype)
    gain = float(spec.def_gain if gain is None else gain)
    clamp = -1.0 if clamp is None else float(clamp)
    scale, noise, strength, b = (None if t is None else t.to(dtype) for t in (scale, noise, strength, b))
    if torch.compiler.is_exporting():  # exported graphs may hold only plain operations
        return _native(x, scale, noise, strength, b, act, gain, clamp)
    return torch.ops.glead.modconv_epilogue(x, scale, noise, strength, b, act, gain, clamp)


_SETTINGS = "str act, float gain, float clamp"
kernels.library.define(
    f"modconv_epilogue(Tensor x, Tensor? scale, Tensor? noise, Tensor? strength, Tensor? b, {_SETTINGS}) -> Tensor")
kernels.library.define(  # returns dx, and sums [3, N, C] over pixels of g, g * x and g * noise; g = dy * gain * act'(y)
    f"modconv_epilogue_grad(Tensor dy, Tensor y, Tensor x, Tensor? scale, Tensor? noise, {_SETTINGS}) -> "
    "(Tensor, Tensor)")


def _slope(act: str) -> float:
    return bias_act._slope(act, bias_act.activation_funcs[act].def_alpha)


def _native(x, scale, noise, strength, b, act, gain, clamp) -> Tensor:
    if gain > 0:  # (leaky) ReLUs commute with a positive factor: apply it to the small tensors
        scale = torch.full([1, 1], gain, device=x.device) if scale is None else scale * gain
        strength, b = (None if t is None else t * gain for t in (strength, b))
    elif scale is None:
        scale = torch.ones([1, 1], device=x.device)
    y = x * scale[:, :, None, None].to(x.dtype)
    if noise is not None:
        y += (noise * strength).to(x.dtype)
    if b is not None:
        y += b[:, None, None].to(x.dtype)
    if _slope(act) != 1:
        torch.nn.functional.leaky_relu_(y, _slope(act))
    if gain <= 0:
        y = y * gain
    if clamp >= 0:
        limit = bias_act._as_held(clamp, y.dtype)
        y = y.clamp(-limit, limit) if y.requires_grad else y.clamp_(-limit, limit)  # autograd needs the old y
    return y


def _sums(g, x, scale, noise) -> tuple[Tensor, Tensor]:
    """dx, and the sums [3, N, C] over pixels from which the other derivatives follow."""
    dtype = kernels.compute_type(x.dtype)
    dx = g if scale is None else g * scale[:, :, None, None].to(g.dtype)
    if kernels.is_channels_last(g):
        of_g, of_gx = _sums_over_pixels(g, noise), _sums_over_pixels(g * x, None)
        noises = torch.zeros_like(of_g[:, 0]) if noise is None else of_g[:, 1]
        return dx, torch.stack([of_g[:, 0], of_gx[:, 0], noises])
    sums = [t.sum([2, 3], dtype=dtype) for t in ([g, g * x] if noise is None else [g, g * x, g * noise.to(g.dtype)])]
    return dx, torch.stack(sums if noise is not None else [*sums, torch.zeros_like(sums[0])])


def _sums_over_pixels(g: Tensor, noise: Tensor | None) -> Tensor:
    """Sums of g and, with noise, of g * noise over pixels: [N, 1 or 2, C].

    A matrix product sums over each row, and then rows are added up. With channels last, this takes at most half the
    time of a plain sum, and is more accurate.
    """
    n, c, h, w = g.shape
    weights = g.new_ones([n, h, 1, w])
    if noise is not None:
        weights = torch.cat([weights, noise.to(g.dtype).reshape(-1, h, 1, w).expand(n, -1, -1, -1)], dim=2)
    rows = weights.reshape(n * h, -1, w) @ g.permute(0, 2, 3, 1).reshape(n * h, w, c)
    return rows.reshape(n, h, -1, c).sum(1, dtype=kernels.compute_type(g.dtype))  # float16 ends at 65504


def _native_grad(dy, y, x, scale, noise, act, gain, clamp) -> tuple[Tensor, Tensor]:
    alpha = bias_act.activation_funcs[act].def_alpha
    if scale is None:
        return _sums(bias_act._native_grad(dy, y, act, alpha, gain, clamp), x, scale, noise)
    g = bias_act._native_grad(dy, y if gain > 0 else -y, act, alpha, 1.0, clamp)
    dx, sums = _sums(g, x, scale * gain, noise)
    return dx, sums * gain  # cheaper than multiplying the large tensor g


_Params = kernels.params(
    **{name: ctypes.c_void_p for name in ("y", "x", "scale", "noise", "strength", "b")},
    **{name: ctypes.c_int64 for name in ("images", "channels", "pixels", "noise_stride")},
    **{name: ctypes.c_double for name in ("slope", "gain", "clamp")},
)
_GradParams = kernels.params(
    **{name: ctypes.c_void_p for name in ("dx", "sums", "dy", "y", "x", "scale", "noise")},
    **{name: ctypes.c_int64 for name in ("images", "channels", "pixels", "parts", "noise_stride")},
    **{name: ctypes.c_double for name in ("slope", "gain", "clamp")},
)
_ROUNDS = 4     # Vectors for each thread.


@functools.lru_cache(maxsize=None)
def _kernel(dtype: torch.dtype, *, channels_last: bool, vec: int, parts: tuple[bool, ...], index: str):
    scale, noise, bias = map(int, parts)
    return kernels.kernel("modconv_epilogue", _Params, dtype=dtype, CHANNELS_LAST=int(channels_last), VEC=vec,
                          SCALE=scale, NOISE=noise, BIAS=bias, ROUNDS=_ROUNDS, INDEX=index)


@functools.lru_cache(maxsize=None)
def _grad_kernel(dtype: torch.dtype, *, tc: int, block: int, vec: int, scale: bool, noise: bool):
    return kernels.kernel("modconv_epilogue_grad", _GradParams, dtype=dtype, block=block, CHANNELS_LAST=int(tc > 0),
                          VEC=vec, SCALE=int(scale), NOISE=int(noise), TC=max(tc, 1), ROUNDS=_ROUNDS)


def standard_kernels() -> list[custom_ops.Kernel]:
    """The kernels that G's layers use."""
    found = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        vec = kernels.VECTOR_BYTES // dtype.itemsize
        found += [_kernel(dtype, channels_last=last, vec=vec, parts=(True, True, True), index="unsigned")
                  for last in (False, True)]
        found += [_grad_kernel(dtype, tc=tc, block=block, vec=vec, scale=True, noise=True)
                  for tc, block in ((0, 32), (0, 64), (0, 128), (0, 256), (8, 256))]
    return found


def _layout(x: Tensor, *tensors: Tensor) -> tuple[bool, int]:
    """Whether `x` is channels last, and the number of elements in a vector."""
    last = kernels.is_channels_last(x)
    return last, kernels.vector_size(x.dtype, x.shape[1] if last else x.shape[2] * x.shape[3], (x, *tensors))


def _noise_stride(noise: Tensor | None) -> int:
    return 0 if noise is None or noise.ndim == 2 or len(noise) == 1 else noise.shape[2] * noise.shape[3]


def _dense_small(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous and aligned tensors, as kernels expect them."""
    dense = [None if t is None else t.contiguous() for t in tensors]
    return [t if t is None or t.data_ptr() % kernels.VECTOR_BYTES == 0 else t.clone() for t in dense]


def _cuda(x, scale, noise, strength, b, act, gain, clamp) -> Tensor:
    y = None
    if x.dtype in kernels.TYPES and x.numel() > 0:
        kernels.check_devices(x, scale, noise, strength, b)
        dense = kernels.dense(x)
        small = _dense_small(scale, noise, strength, b)
        y = _launch(dense, *small, act, gain, clamp)  # type: ignore[call-arg]
    return _native(x, scale, noise, strength, b, act, gain, clamp) if y is None else y


def _launch(x, scale, noise, strength, b, act, gain, clamp) -> Tensor | None:
    y = torch.empty_like(x)
    (n, c, h, w), (last, vec) = x.shape, _layout(x, y)
    parts = (scale is not None, noise is not None, b is not None)
    threads = n * (c // vec * -(-h * w // _ROUNDS) if last else h * w // vec * -(-c // _ROUNDS))
    index = kernels.index_type(threads)
    launch = custom_ops.load(_kernel(x.dtype, channels_last=last, vec=vec, parts=parts, index=index), x.device)
    grid = -(-threads // kernels.BLOCK)
    if launch is None or grid > kernels.MAX_GRID:
        return None
    address = kernels.address
    launch(grid, _Params(address(y), address(x), address(scale), address(noise), address(strength), address(b), n, c,
                         h * w, _noise_stride(noise), _slope(act), gain, clamp))
    return y


def _cuda_grad(dy, y, x, scale, noise, act, gain, clamp) -> tuple[Tensor, Tensor]:
    result = None
    if x.dtype in kernels.TYPES and x.numel() > 0:
        kernels.check_devices(x, dy, y, scale, noise)
        dense = kernels.dense(y)
        others = [t if t.stride() == dense.stride() else torch.empty_like(dense).copy_(t) for t in (dy, x)]
        small = _dense_small(scale, noise)
        result = _launch_grad(others[0], dense, others[1], *small, act, gain, clamp)  # type: ignore[call-arg]
    return _native_grad(dy, y, x, scale, noise, act, gain, clamp) if result is None else result


def _launch_grad(dy, y, x, scale, noise, act, gain, clamp) -> tuple[Tensor, Tensor] | None:
    n, c, h, w = x.shape
    dx = torch.empty_like(y)
    last, vec = _layout(y, dy, x, dx)
    if last:
        tc, block = min(8, 1 << (c // vec - 1).bit_length()), kernels.BLOCK
        parts, tiles = -(-h * w // (block // tc * _ROUNDS)), -(-(c // vec) // tc)
    else:  # small images need small blocks
        tc, block = 0, min(max(1 << (h * w // vec - 1).bit_length(), 32), kernels.BLOCK)
        parts, tiles = -(-(h * w // vec) // (block * _ROUNDS)), c
    launch = custom_ops.load(
        _grad_kernel(x.dtype, tc=tc, block=block, vec=vec, scale=scale is not None, noise=noise is not None), x.device)
    grid = n * parts * tiles
    if launch is None or grid > kernels.MAX_GRID:
        return None
    sums = torch.empty([3, n, parts, c], dtype=kernels.compute_type(x.dtype), device=x.device)
    address = kernels.address
    launch(grid, _GradParams(address(dx), address(sums), address(dy), address(y), address(x), address(scale),
                             address(noise), n, c, h * w, parts, _noise_stride(noise), _slope(act), gain, clamp))
    return dx, sums.sum(2)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, scale, noise, strength, b, *ctx.settings = inputs
    if noise is not None and noise.requires_grad:
        raise ValueError("modconv_epilogue has no derivative in its noise: add such noise by itself")
    ctx.save_for_backward(output, x, scale, noise, strength)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    y, x, scale, noise, strength = ctx.saved_tensors
    act, gain, clamp = ctx.settings
    if torch.is_grad_enabled():  # higher derivatives are wanted: use operations that have them
        alpha = bias_act.activation_funcs[act].def_alpha
        dx, sums = _sums(torch.ops.glead.bias_act_grad(dy, y, act, alpha, gain, clamp), x, scale, noise)
    else:
        dx, sums = torch.ops.glead.modconv_epilogue_grad(dy, y, x, scale, noise, act, gain, clamp)
    need = ctx.needs_input_grad
    return (dx, sums[1] if need[1] else None, None, sums[2].sum().reshape(strength.shape) if need[3] else None,
            sums[0].sum(0) if need[4] else None, *[None] * len(ctx.settings))


kernels.register("modconv_epilogue", cpu=_native, cuda=_cuda, setup_context=_setup, backward=_backward)
kernels.register("modconv_epilogue_grad", cpu=_native_grad, cuda=_cuda_grad)
