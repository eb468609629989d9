import torch


def setup_filter(f, device=torch.device("cpu"), normalize=True, flip_filter=False, gain=1, separable=None):
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    assert f.ndim in (0, 1, 2) and f.numel() > 0
    f = f.reshape(1) if f.ndim == 0 else f
    separable = (f.ndim == 1 and f.numel() >= 8) if separable is None else separable
    f = f.ger(f) if f.ndim == 1 and not separable else f
    assert f.ndim == (1 if separable else 2)
    f = f / f.sum() if normalize else f
    f = f.flip(list(range(f.ndim))) if flip_filter else f
    return (f * gain ** (f.ndim / 2)).to(device)


def _pair(x):
    return (x, x) if isinstance(x, int) else tuple(x)


def _quad(padding):
    padding = _pair(padding)
    assert all(isinstance(p, int) for p in padding)
    return padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])


def _size(f):
    return (1, 1) if f is None else (int(f.shape[-1]), int(f.shape[0]))


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Insert zeros, pad or crop, filter, drop samples."""
    assert isinstance(x, torch.Tensor) and x.ndim == 4 and impl in ("ref", "cuda")
    f = torch.ones([1, 1], dtype=torch.float32) if f is None else f
    assert isinstance(f, torch.Tensor) and f.ndim in (1, 2) and f.dtype == torch.float32 and not f.requires_grad
    n, c, h, w = x.shape
    (upx, upy), (downx, downy), (x0, x1, y0, y1) = _pair(up), _pair(down), _quad(padding)
    y = x.new_zeros([n, c, h * upy, w * upx])
    y[:, :, ::upy, ::upx] = x
    y = torch.nn.functional.pad(y, [max(x0, 0), max(x1, 0), max(y0, 0), max(y1, 0)])
    y = y[:, :, max(-y0, 0):y.shape[2] - max(-y1, 0), max(-x0, 0):y.shape[3] - max(-x1, 0)]
    f = (f.ger(f) if f.ndim == 1 else f) * gain
    f = (f if flip_filter else f.flip([0, 1])).to(x.dtype)
    y = torch.nn.functional.conv2d(y, f[None, None].repeat([c, 1, 1, 1]), groups=c)
    return y[:, :, ::downy, ::downx]


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    (fw, fh), (x0, x1, y0, y1) = _size(f), _quad(padding)
    p = [x0 + fw // 2, x1 + (fw - 1) // 2, y0 + fh // 2, y1 + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    (fw, fh), (ux, uy), (x0, x1, y0, y1) = _size(f), _pair(up), _quad(padding)
    p = [x0 + (fw + ux - 1) // 2, x1 + (fw - ux) // 2, y0 + (fh + uy - 1) // 2, y1 + (fh - uy) // 2]
    return upfirdn2d(x, f, up=up, padding=p, flip_filter=flip_filter, gain=gain * ux * uy, impl=impl)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    (fw, fh), (dx, dy), (x0, x1, y0, y1) = _size(f), _pair(down), _quad(padding)
    p = [x0 + (fw - dx + 1) // 2, x1 + (fw - dx) // 2, y0 + (fh - dy + 1) // 2, y1 + (fh - dy) // 2]
    return upfirdn2d(x, f, down=down, padding=p, flip_filter=flip_filter, gain=gain, impl=impl)
