"""Convolution with up- or down-sampling, in the cheapest order of operations."""

from typing import Sequence

import torch
import torch.nn.functional as F

from . import conv2d_gradfix
from .upfirdn2d import _filter_size, _padding, upfirdn2d


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """2-D convolution between an up-sampling and a down-sampling, each with the low-pass filter `f`.

    Args:
        x:           [N, C_in, H, W].
        w:           [C_out, C_in / groups, kh, kw], the dtype of `x`.
        f:           Filter from `setup_filter`; None = identity.
        up, down:    Factors of the up-sampling before and the down-sampling after the convolution.
        padding:     In pixels of the up-sampled image: one number, [x, y] or [x0, x1, y0, y1].
        groups:      Number of groups of channels.
        flip_weight: True = correlation (like torch.nn.functional.conv2d), False = convolution.
        flip_filter: The same for `f`.

    Returns:
        [N, C_out, H * up / down, W * up / down] for `padding` = kernel size // 2.
    """
    kh, kw = w.shape[2:]
    fw, fh = _filter_size(f)
    px0, px1, py0, py1 = _padding(padding)
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    pad = [px0, px1, py0, py1]

    if kh == kw == 1 and up == 1:  # resample first: a 1x1 convolution is cheaper on the smaller image
        x = upfirdn2d(x, f, down=down, padding=pad, flip_filter=flip_filter) if down > 1 or any(pad) else x
        return _conv2d(x, w, groups=groups)
    if kh == kw == 1 and down == 1:
        x = _conv2d(x, w, groups=groups)
        return upfirdn2d(x, f, up=up, padding=pad, gain=up**2, flip_filter=flip_filter)
    if up == 1 and down > 1:
        x = upfirdn2d(x, f, padding=pad, flip_filter=flip_filter)
        return _conv2d(x, w, stride=down, groups=groups, flip_weight=flip_weight)
    if up > 1:
        x = _conv2d_up(x, w, f, up, pad, groups, flip_weight, flip_filter)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if px0 != px1 or py0 != py1 or px0 < 0 or py0 < 0:
        x, px0, py0 = F.pad(x, pad), 0, 0
    return _conv2d(x, w, padding=(py0, px0), groups=groups, flip_weight=flip_weight)


def _conv2d(x, w, *, stride=1, padding=(0, 0), groups=1, flip_weight=True):
    if not flip_weight and (w.shape[2] > 1 or w.shape[3] > 1):
        w = w.flip([2, 3])
    return conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _conv2d_up(x, w, f, up, pad, groups, flip_weight, flip_filter):
    """Transposed convolution, then the filter. Being linear, they can be swapped; neither processes inserted zeros."""
    c_out, c_in, kh, kw = w.shape
    w = w.reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2).reshape(groups * c_in, -1, kh, kw)
    if flip_weight:
        w = w.flip([2, 3])  # conv_transpose2d convolves
    px0, px1, py0, py1 = pad[0] - (kw - 1), pad[1] - (kw - up), pad[2] - (kh - 1), pad[3] - (kh - up)
    cx, cy = max(min(-px0, -px1), 0), max(min(-py0, -py1), 0)
    x = conv2d_gradfix.conv_transpose2d(x, w, stride=up, padding=(cy, cx), groups=groups)
    pad = [px0 + cx, px1 + cx, py0 + cy, py1 + cy]
    return upfirdn2d(x, f, padding=pad, gain=up**2, flip_filter=flip_filter)
