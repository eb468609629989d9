"""Up-sample, filter with an FIR, down-sample: the resampling operation of the StyleGAN family."""

from typing import Any, Literal, NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F


class _Spec(NamedTuple):
    """One upfirdn2d call without its tensors; x before y, as in the public arguments."""

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
        f:           Taps [fh, fw] (2-D) or [taps] (applied along both axes), a number, or None (identity).
        device:      Where the result lives.
        normalize:   Scale so that the taps add up to 1.
        flip_filter: Reverse the taps.
        gain:        Overall factor for the 2-D filter.
        separable:   Keep a 1-D filter 1-D; None = from 8 taps on, where two passes are cheaper than one.

    Returns:
        float32 [fh, fw], or [taps] if separable.
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
    """Insert zeros, pad or crop, convolve every channel with one FIR, keep every n-th pixel.

    Differentiable in `x` any number of times (the derivative of an up/FIR/down is again one); not in `f`.

    Args:
        x:           Floating point [N, C, H, W].
        f:           From `setup_filter`; None = identity.
        up:          Factor, or [x, y]: up - 1 zeros follow each pixel.
        down:        Factor, or [x, y].
        padding:     In up-sampled pixels: one number, [x, y] or [x0, x1, y0, y1]; negative = crop.
        flip_filter: False = convolution, True = correlation.
        gain:        Factor of the result.
        impl:        "ref" inserts the zeros, the oracle of the tests; else the fastest path there is.

    Returns:
        [N, C, (H * up + padding - fh) // down + 1, likewise W], the type of `x`.
    """
    spec = _Spec(_pair(up), _pair(down), _padding(padding), bool(flip_filter), float(gain))
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    if impl == "ref":
        return _reference(x, f, spec)
    return _UpFirDn2d.apply(x, f, spec)


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filter so that the image keeps its size, up to extra `padding`; arguments as in `upfirdn2d`."""
    px0, px1, py0, py1 = _padding(padding)
    fw, fh = _filter_size(f)
    p = [px0 + fw // 2, px1 + (fw - 1) // 2, py0 + fh // 2, py1 + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Enlarge by `up`, brightness kept; `padding` is in output pixels, other arguments as in `upfirdn2d`."""
    upx, upy = _pair(up)
    px0, px1, py0, py1 = _padding(padding)
    fw, fh = _filter_size(f)
    p = [px0 + (fw + upx - 1) // 2, px1 + (fw - upx) // 2, py0 + (fh + upy - 1) // 2, py1 + (fh - upy) // 2]
    return upfirdn2d(x, f, up=up, padding=p, flip_filter=flip_filter, gain=gain * upx * upy, impl=impl)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Shrink by `down`; `padding` is in input pixels, other arguments as in `upfirdn2d`."""
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


class _UpFirDn2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, f, spec: _Spec):
        ctx.save_for_backward(f)
        y = _native(x, f, spec)
        ctx.spec, ctx.sizes = spec, (x.shape[-1], x.shape[-2], y.shape[-1], y.shape[-2])
        return y

    @staticmethod
    def backward(ctx: Any, dy):
        (f,) = ctx.saved_tensors
        spec, (xw, xh, yw, yh) = ctx.spec, ctx.sizes
        (upx, upy), (downx, downy), (px0, _, py0, _), flip, gain = spec
        fw, fh = _filter_size(f)
        padding = (
            fw - px0 - 1, xw * upx - yw * downx + px0 - upx + 1,
            fh - py0 - 1, xh * upy - yh * downy + py0 - upy + 1,
        )
        return _UpFirDn2d.apply(dy, f, _Spec(spec.down, spec.up, padding, not flip, gain)), None, None


def _native(x: torch.Tensor, f: torch.Tensor, spec: _Spec) -> torch.Tensor:
    """Strided convolutions, so that neither inserted zeros nor dropped pixels are computed."""
    if f.ndim == 1:  # one pass along each axis; the gain belongs to both together
        (upx, upy), (downx, downy), (px0, px1, py0, py1), flip, gain = spec
        x = _native(x, f[None, :], _Spec((upx, 1), (downx, 1), (px0, px1, 0, 0), flip, gain))
        return _native(x, f[:, None], _Spec((1, upy), (1, downy), (0, 0, py0, py1), flip, 1.0))
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
    # A transposed convolution gives all places where the filter overlaps the input; padding says which are wanted.
    (upx, upy), (px0, px1, py0, py1), (fh, fw) = spec.up, spec.padding, f.shape
    left, right, top, bottom = fw - 1 - px0, fw - upx - px1, fh - 1 - py0, fh - upy - py1
    cx, cy = max(min(left, right), 0), max(min(top, bottom), 0)
    if spec.flip:
        f = f.flip([0, 1])  # conv_transpose2d convolves
    # CPUs have no fast kernel for it in half precision; the small side is what is converted.
    dtype = torch.float32 if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y = F.conv_transpose2d(x.to(dtype), _depthwise(f.to(dtype), x), stride=(upy, upx), padding=(cy, cx),
                           groups=x.shape[1]).to(x.dtype)
    if (left, right, top, bottom) != (cx, cx, cy, cy):
        y = F.pad(y, [cx - left, cx - right, cy - top, cy - bottom])
    return y[:, :, :: spec.down[1], :: spec.down[0]] if max(spec.down) > 1 else y


def _depthwise(f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One filter for every channel; several times faster on CPUs than folding the channels into the batch."""
    return f.expand(x.shape[1], 1, *f.shape)
