import dnnlib
import torch

_root2 = 2**0.5
activation_funcs = {
    "linear": dnnlib.EasyDict(func=lambda x, **_: x, def_alpha=0, def_gain=1),
    "relu": dnnlib.EasyDict(func=lambda x, **_: torch.relu(x), def_alpha=0, def_gain=_root2),
    "lrelu": dnnlib.EasyDict(func=lambda x, alpha, **_: torch.where(x < 0, x * alpha, x), def_alpha=0.2, def_gain=_root2),
    "tanh": dnnlib.EasyDict(func=lambda x, **_: torch.tanh(x), def_alpha=0, def_gain=1),
    "sigmoid": dnnlib.EasyDict(func=lambda x, **_: torch.sigmoid(x), def_alpha=0, def_gain=1),
}


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    assert isinstance(x, torch.Tensor) and impl in ("ref", "cuda")
    assert clamp is None or clamp >= 0
    spec = activation_funcs[act]
    if b is not None:
        assert isinstance(b, torch.Tensor) and b.ndim == 1 and b.dtype == x.dtype and b.shape[0] == x.shape[dim]
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = spec.func(x, alpha=float(spec.def_alpha if alpha is None else alpha)) * float(spec.def_gain if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)
