"""Up-sample, apply an FIR filter, down-sample: the resampling operation of the StyleGAN family."""

import ctypes
import functools
import itertools
from typing import Any, Literal, NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from . import kernels
from .build import custom_ops


class _Spec(NamedTuple):
    """The arguments of upfirdn2d without its tensors. As in the public function, x comes before y."""

    up: tuple[int, int]
    down: tuple[int, int]
    padding: tuple[int, int, int, int]  # x0, x1, y0, y1
    flip: bool
    gain: float


def setup_filter(
    f: Any,
    device: torch.device | str = torch.device("cpu"),
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Prepare a filter for `upfirdn2d`.

    Args:
        f:           Taps [fh, fw] (2-D) or [taps] (1-D, for both axes), a number, or None (identity).
        device:      Device of the result.
        normalize:   Scale the taps so that they add up to 1.
        flip_filter: Reverse the taps.
        gain:        Overall factor for the 2-D filter.
        separable:   Keep a 1-D filter 1-D. None = if it has at least 8 taps: two passes are then cheaper than one.

    Returns:
        float32 [fh, fw], or [taps] if separable.

    Raises:
        ValueError: The filter is empty, has more than 2 dimensions, or is 2-D although `separable` is true.
    """
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"a filter is a number, a list or a matrix, got shape {tuple(f.shape)}")
    if f.ndim == 0:
        f = f[np.newaxis]
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if separable and f.ndim != 1:
        raise ValueError("a 2-D filter can't be kept separable")
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: Literal["cuda", "ref"] = "cuda",
) -> torch.Tensor:
    """Insert zeros, pad or crop, convolve every channel with the same FIR filter, keep every n-th pixel.

    Differentiable any number of times in `x` (the derivative is again such an operation), but not in `f`.

    Args:
        x:           [N, C, H, W], any floating-point dtype.
        f:           Filter from `setup_filter`; None = identity.
        up:          Up-sampling factor, or [x, y]: up - 1 zeros follow each pixel.
        down:        Down-sampling factor, or [x, y].
        padding:     In up-sampled pixels: one number, [x, y] or [x0, x1, y0, y1]; negative = crop.
        flip_filter: False = convolution, True = correlation.
        gain:        Factor of the result.
        impl:        "ref" follows the definition, for tests to compare with. "cuda" takes the fastest available path.

    Returns:
        [N, C, (H * up + padding - fh) // down + 1, (W * up + padding - fw) // down + 1], the dtype of `x`. `padding`
        here stands for the sum of both sides.

    Raises:
        ValueError: A factor is below 1.
    """
    spec = _Spec(_pair(up), _pair(down), _padding(padding), bool(flip_filter), float(gain))
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    if impl == "ref":
        return _reference(x, f, spec)
    if torch.compiler.is_exporting():  # exported graphs may hold only plain operations
        return _native(x, f, spec)
    return torch.ops.glead.upfirdn2d(x, f, *spec)


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filter an image and keep its size, apart from extra `padding`. Arguments are those of `upfirdn2d`."""
    px0, px1, py0, py1 = _padding(padding)
    fw, fh = _filter_size(f)
    p = [px0 + fw // 2, px1 + (fw - 1) // 2, py0 + fh // 2, py1 + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Enlarge by `up`, keeping the brightness. `padding` is in output pixels. Other arguments: see `upfirdn2d`."""
    upx, upy = _pair(up)
    px0, px1, py0, py1 = _padding(padding)
    fw, fh = _filter_size(f)
    p = [px0 + (fw + upx - 1) // 2, px1 + (fw - upx) // 2, py0 + (fh + upy - 1) // 2, py1 + (fh - upy) // 2]
    return upfirdn2d(x, f, up=up, padding=p, flip_filter=flip_filter, gain=gain * upx * upy, impl=impl)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Shrink by `down`. `padding` is in input pixels. Other arguments: see `upfirdn2d`."""
    downx, downy = _pair(down)
    px0, px1, py0, py1 = _padding(padding)
    fw, fh = _filter_size(f)
    p = [px0 + (fw - downx + 1) // 2, px1 + (fw - downx) // 2, py0 + (fh - downy + 1) // 2, py1 + (fh - downy) // 2]
    return upfirdn2d(x, f, down=down, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)


def _pair(factor: int | Sequence[int]) -> tuple[int, int]:
    x, y = (factor, factor) if isinstance(factor, int) else factor
    if x < 1 or y < 1:
        raise ValueError(f"sampling factors are positive whole numbers, got {factor}")
    return int(x), int(y)


def _padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    p = [padding] * 2 if isinstance(padding, int) else list(padding)
    if len(p) == 2:
        p = [p[0], p[0], p[1], p[1]]
    x0, x1, y0, y1 = p
    return int(x0), int(x1), int(y0), int(y1)


def _filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """Width and height."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def _reference(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor:
    """The definition, step by step."""
    (upx, upy), (downx, downy), (px0, px1, py0, py1), flip, gain = spec
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, upx - 1, 0, 0, 0, upy - 1]).reshape(n, c, h * upy, w * upx)
    x = F.pad(x, [px0, px1, py0, py1])
    f = f.to(x.dtype) * gain ** (f.ndim / 2)
    if not flip:
        f = f.flip(list(range(f.ndim)))  # conv2d correlates
    for kernel in [f] if f.ndim == 2 else [f[:, None], f[None, :]]:
        x = F.conv2d(x, kernel[None, None].repeat(c, 1, 1, 1), groups=c)
    return x[:, :, ::downy, ::downx]


# The operator. It is linear in x. Its derivative is the same operator, with swapped factors and a reversed filter.

kernels.library.define(
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, int[] padding, bool flip, float gain) -> Tensor")


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, f, *spec = inputs
    ctx.save_for_backward(f)
    ctx.spec, ctx.sizes = _Spec(*spec), (x.shape[-1], x.shape[-2], output.shape[-1], output.shape[-2])


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    (f,) = ctx.saved_tensors
    (upx, upy), (downx, downy), (px0, _, py0, _), flip, gain = ctx.spec
    xw, xh, yw, yh = ctx.sizes
    fw, fh = _filter_size(f)
    padding = (
        fw - px0 - 1, xw * upx - yw * downx + px0 - upx + 1,
        fh - py0 - 1, xh * upy - yh * downy + py0 - upy + 1,
    )
    return torch.ops.glead.upfirdn2d(dy, f, ctx.spec.down, ctx.spec.up, padding, not flip, gain), *[None] * 6


def _cpu(x: torch.Tensor, f: torch.Tensor, *spec: Any) -> torch.Tensor:
    return _native(x, f, _Spec(*spec))


def _cuda(x: torch.Tensor, f: torch.Tensor, *spec: Any) -> torch.Tensor:
    parts: list[Any] = [tuple(part) if isinstance(part, list) else part for part in spec]
    spec = _Spec(*parts)
    if x.dtype not in kernels.TYPES or x.numel() == 0:
        return _native(x, f, spec)
    kernels.check_devices(x, f)
    f = f.to(torch.float32)
    if f.ndim == 2:
        y = _launch(x, f, spec)
        return _native(x, f, spec) if y is None else y
    horizontal, vertical = _separate(spec)  # two passes with few taps instead of one with many
    y = _launch(x, f[None, :], horizontal)
    if y is not None:
        y = _launch(y, f[:, None], vertical)
    return _native(x, f, spec) if y is None else y


def _separate(spec: _Spec) -> tuple[_Spec, _Spec]:
    """Split an operation into a horizontal and a vertical pass. The first one applies the whole gain."""
    (upx, upy), (downx, downy), (px0, px1, py0, py1), flip, gain = spec
    return (_Spec((upx, 1), (downx, 1), (px0, px1, 0, 0), flip, gain),
            _Spec((1, upy), (1, downy), (0, 0, py0, py1), flip, 1.0))


def _out_size(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> tuple[int, int]:
    """Height and width."""
    (upx, upy), (downx, downy), (px0, px1, py0, py1) = spec[:3]
    fw, fh = _filter_size(f)
    h, w = x.shape[2] * upy + py0 + py1 - fh, x.shape[3] * upx + px0 + px1 - fw
    if h < 0 or w < 0:
        raise RuntimeError(f"padding {spec.padding} leaves less of an image of {x.shape[3]}x{x.shape[2]} pixels than "
                           f"the filter of {fw}x{fh} taps")
    return h // downy + 1, w // downx + 1


_Params = kernels.params(
    y=ctypes.c_void_p, x=ctypes.c_void_p, f=ctypes.c_void_p, f_stride_x=ctypes.c_int64, f_stride_y=ctypes.c_int64,
    images=ctypes.c_int64, channels=ctypes.c_int64,
    in_w=ctypes.c_int64, in_h=ctypes.c_int64, out_w=ctypes.c_int64, out_h=ctypes.c_int64,
    first_x=ctypes.c_int64, first_y=ctypes.c_int64, gain=ctypes.c_double,
)
# Kernels are unrolled, and therefore have limits. Beyond these, PyTorch's own operations do the work.
_MOST_TAPS = 32     # Width times height of the filter.
_MOST_FACTOR = 4


class _Plan(NamedTuple):
    """How a kernel divides the work; see upfirdn2d.cu."""

    kernel: custom_ops.Kernel
    step: tuple[int, int]       # Outputs of a thread along x and y.
    first: tuple[int, int]      # First input that the first outputs need, along x and y.
    tile: tuple[int, int, int]  # With channels last: threads of a block along channels, x and y.


@functools.lru_cache(maxsize=1024)
def _plan(dtype: torch.dtype, spec: _Spec, taps: tuple[int, int], *, vec: int, vout: int, channels: int) -> _Plan:
    """Plan for vectors of `vec` inputs and `vout` outputs. `channels` = 0 means that images are not channels last."""
    (upx, upy), (downx, downy), (px0, _, py0, _), flip, _ = spec
    fw, fh = taps
    tall = 8 if fh > 6 else 1 if fh == 1 else 2 if downy > 1 else 4     # with more taps, more outputs share an input
    if channels:
        rx, ry = upx * (4 if fh == 1 else 1 if max(upx, downx) > 1 or fw == 1 else 2), upy * max(tall // upy, 1)
        tc = min(8, 1 << (channels // vec - 1).bit_length())
        tx = kernels.BLOCK // tc // 4
        shift, first_x, tile = 0, -(px0 // upx), (tc, tx, 4)
    else:
        rx, ry = upx * vec, upy * max((8 if vec == 1 and fh > 1 else tall) // upy**2, 1)
        shift = -(px0 // upx) % vec
        first_x, tile = -(px0 // upx) - shift, (1, 1, 1)
    kernel = kernels.kernel(
        "upfirdn2d", _Params, dtype=dtype, CHANNELS_LAST=int(channels > 0), UPX=upx, UPY=upy, DOWNX=downx, DOWNY=downy,
        FW=fw, FH=fh, FLIP=int(flip), PX=px0 % upx, PY=py0 % upy, RX=rx, RY=ry, VEC=vec, VOUT=vout, SHIFT=shift,
        TC=tile[0], TX=tile[1], INDEX="unsigned",
    )
    return _Plan(kernel, (rx, ry), (first_x, -(py0 // upy)), tile)


def standard_kernels() -> list[custom_ops.Kernel]:
    """The kernels that networks with the filter [1, 3, 3, 1] use. Small images need a few more."""
    found = []
    for dtype, flip in itertools.product((torch.float16, torch.bfloat16, torch.float32), (False, True)):
        most = kernels.VECTOR_BYTES // dtype.itemsize
        for up, down, pad, vec, vout in [  # images beside convolutions of stride 2 have odd sizes, and so no vectors
            (1, 1, 1, 1, 1), (1, 1, 2, most, 1), (2, 1, 2, most, most), (1, 2, 1, most, most),
        ]:
            spec = _Spec((up, up), (down, down), (pad, pad, pad, pad), flip, 1.0)
            found.append(_plan(dtype, spec, (4, 4), vec=vec, vout=vout, channels=0).kernel)
            found += [_plan(dtype, spec, (4, 4), vec=most, vout=most, channels=channels).kernel
                      for channels in (4 * most, 8 * most)]
    return list(dict.fromkeys(found))


def _launch(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor | None:
    """Run a CUDA kernel; None if there is none for this input. `f` is 2-D."""
    fw, fh = _filter_size(f)
    if fw * fh > _MOST_TAPS or max(*spec.up, *spec.down) > _MOST_FACTOR:
        return None
    x = kernels.dense(x)
    n, c, h, w = x.shape
    channels_last = kernels.is_channels_last(x)
    out_h, out_w = _out_size(x, f, spec)
    y = torch.empty([n, c, out_h, out_w], dtype=x.dtype, device=x.device,
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last:
        vec = vout = kernels.vector_size(x.dtype, c, (x, y))
    else:
        vec, vout = kernels.vector_size(x.dtype, w, (x,)), kernels.vector_size(x.dtype, out_w, (y,))
        vout = min(vec, vout)
    plan = _plan(x.dtype, spec, (fw, fh), vec=vec, vout=vout, channels=c if channels_last else 0)
    groups_x, groups_y = -(-out_w // plan.step[0]), -(-out_h // plan.step[1])
    if channels_last:
        tc, tx, ty = plan.tile
        grid = -(-(c // vec) // tc) * -(-groups_x // tx) * -(-groups_y // ty) * n
    else:
        grid = -(-groups_x * groups_y * n * c // kernels.BLOCK)
    launch = custom_ops.load(plan.kernel, x.device)
    if launch is None or grid * kernels.BLOCK >= 2**32:
        return None
    address = kernels.address
    launch(grid, _Params(address(y), address(x), address(f), f.stride(1), f.stride(0),
                         n if channels_last else n * c, c if channels_last else 1, w, h, out_w, out_h, *plan.first,
                         spec.gain))
    return y


def _native(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor:
    """The operation by strided convolutions, which skip inserted zeros and dropped pixels."""
    if f.ndim == 1:
        horizontal, vertical = _separate(spec)
        return _native(_native(x, f[None, :], horizontal), f[:, None], vertical)
    f = f.to(dtype=x.dtype) * spec.gain
    return _fir_up(x, f, spec) if max(spec.up) > 1 else _fir_down(x, f, spec)


def _fir_down(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor:
    px0, px1, py0, py1 = spec.padding
    px, py = max(min(px0, px1), 0), max(min(py0, py1), 0)
    if (px0, px1, py0, py1) != (px, px, py, py):
        x = F.pad(x, [px0 - px, px1 - px, py0 - py, py1 - py])
    if not spec.flip:
        f = f.flip([0, 1])  # conv2d correlates
    stride = (spec.down[1], spec.down[0])
    return F.conv2d(x, _depthwise(f, x), stride=stride, padding=(py, px), groups=x.shape[1])


def _fir_up(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor:
    # A transposed convolution computes all positions where the filter overlaps the input. Padding selects some of them.
    (upx, upy), (px0, px1, py0, py1), (fh, fw) = spec.up, spec.padding, f.shape
    left, right, top, bottom = fw - 1 - px0, fw - upx - px1, fh - 1 - py0, fh - upy - py1
    cx, cy = max(min(left, right), 0), max(min(top, bottom), 0)
    if spec.flip:
        f = f.flip([0, 1])  # conv_transpose2d convolves
    # CPUs have no fast half-precision kernel for this. The input, which is smaller than the result, is converted.
    dtype = torch.float32 if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y = F.conv_transpose2d(x.to(dtype), _depthwise(f.to(dtype), x), stride=(upy, upx), padding=(cy, cx),
                           groups=x.shape[1]).to(x.dtype)
    if (left, right, top, bottom) != (cx, cx, cy, cy):
        y = F.pad(y, [cx - left, cx - right, cy - top, cy - bottom])
    # Callers may change results in place. A view of an operator's result doesn't allow that, but a clone does.
    return y[:, :, :: spec.down[1], :: spec.down[0]].clone() if max(spec.down) > 1 else y


def _depthwise(f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The filter for a depthwise convolution. On CPUs, this is several times faster than channels as batch items."""
    return f.expand(x.shape[1], 1, *f.shape)


kernels.register("upfirdn2d", cpu=_cpu, cuda=_cuda, setup_context=_setup, backward=_backward)
