"""Statistics of training: report a value from anywhere, collect count, mean and standard deviation once per tick."""

from typing import Any, Mapping

import torch

from . import distributed

_moments: dict[str, torch.Tensor] = {}  # Name -> [count, sum, sum of squares] since the last collection, on its device.


def report(name: str, value: Any) -> Any:
    """Add the elements of `value` (tensor, array or number) to the statistic `name`; returns `value`.

    Nothing waits for the device. Every rank must report the same names.
    """
    x = torch.as_tensor(value).detach().flatten()
    x = x.to(torch.float32 if x.device.type == "cuda" else torch.float64)
    moments = torch.stack([torch.full([], float(x.numel()), dtype=x.dtype, device=x.device), x.sum(), x.square().sum()])
    before = _moments.get(name)
    _moments[name] = moments if before is None else before.to(moments).add_(moments)
    return value


def collect() -> dict[str, dict[str, float]]:
    """`{name: {num, mean, std}}` over all ranks since the last call, sorted by name; starts anew."""
    moments = pending()
    _moments.clear()
    result = {}
    for name, (num, total, squares) in moments.items():
        if num == 0:
            continue
        mean = total / num
        result[name] = dict(num=int(num), mean=mean, std=max(squares / num - mean**2, 0) ** 0.5)
    return result


def pending() -> dict[str, list[float]]:
    """What has been reported on all ranks since the last collection: `{name: [count, sum, sum of squares]}`, sorted."""
    names = sorted(_moments)
    if not names:
        return {}
    device = torch.device("cuda") if any(m.is_cuda for m in _moments.values()) else torch.device("cpu")
    moments = torch.stack([_moments[name].to(device, torch.float64) for name in names])
    return dict(zip(names, distributed.all_reduce_sum_(moments).tolist()))


def restore(moments: Mapping[str, list[float]]) -> None:
    """Go on from what `pending` gave, on this rank; what was reported before is forgotten."""
    _moments.clear()
    _moments.update((name, torch.tensor(values, dtype=torch.float64)) for name, values in moments.items())
