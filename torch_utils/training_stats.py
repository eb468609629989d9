"""Statistics of training: report values from anywhere, collect their count, mean and standard deviation once per tick.

`report` only keeps the values. `flush` adds up all values of an iteration at once.
"""

import contextlib
from typing import Any, Iterator, Mapping

import numpy as np
import torch

from . import distributed, misc, state

_reports: list[tuple[str, torch.Tensor]] = []   # (name, values [n]) since the last flush.
_counts: dict[str, float] = {}                  # Name -> number of values since the last collection.
_sums: dict[torch.device, "_Sums"] = {}


class _Sums:
    """Sums of the values that were flushed on one device since the last collection."""

    def __init__(self, device: torch.device):
        self.rows: dict[str, int] = {}      # Name -> row of `sums`.
        self.sums = torch.zeros([0, 2], dtype=torch.float64, device=device)     # Sum and sum of squares in each row.

    def add(self, values: Mapping[str, list[torch.Tensor]]) -> None:
        """Add tensors [n] of values, by name."""
        device = self.sums.device
        for name in values:
            self.rows.setdefault(name, len(self.rows))
        if missing := len(self.rows) - len(self.sums):
            self.sums = torch.cat([self.sums, self.sums.new_zeros([missing, 2])])
        x = torch.cat([part for parts in values.values() for part in parts]).to(torch.float64)
        ends = np.cumsum([sum(len(part) for part in parts) for parts in values.values()])
        moments = torch.segment_reduce(
            torch.stack([x, x.square()], dim=1), "sum", axis=0,
            offsets=misc.constant([0, *ends], dtype=torch.int64, device=device),
            unsafe=True,  # a check would wait for the device
        )
        rows = misc.constant([self.rows[name] for name in values], dtype=torch.int64, device=device)
        self.sums.index_add_(0, rows, moments)


def report(name: str, value: Any) -> Any:
    """Add the elements of `value` (tensor, array or number) to the statistic `name`; returns `value`.

    The host does not wait for the device. A tensor must not be changed in place before `flush`. Every rank must report
    the same names.
    """
    x = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    if not x.is_floating_point():
        x = x.to(torch.float32)     # a GPU concatenates tensors in one operation only if all have the same dtype
    _reports.append((name, x.flatten()))
    return value


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Values that are reported inside are dropped."""
    count = len(_reports)
    try:
        yield
    finally:
        del _reports[count:]


def flush() -> None:
    """Add up the reported values, at the end of an iteration, always in the same order. The host does not wait."""
    by_device: dict[torch.device, dict[str, list[torch.Tensor]]] = {}
    for name, x in _reports:
        by_device.setdefault(x.device, {}).setdefault(name, []).append(x)
        _counts[name] = _counts.get(name, 0) + len(x)
    _reports.clear()
    for device, values in by_device.items():
        _sums.setdefault(device, _Sums(device)).add(values)


def collect() -> dict[str, dict[str, float]]:
    """`{name: {num, mean, std}}` over all ranks since the last call, sorted by name. Resets the statistics."""
    moments = state_dict()
    load_state_dict({})
    result = {}
    for name, (num, total, squares) in moments.items():
        if num == 0:
            continue
        mean = total / num
        result[name] = dict(num=int(num), mean=mean, std=max(squares / num - mean**2, 0) ** 0.5)
    return result


def state_dict() -> dict[str, list[float]]:
    """The sums over all ranks since the last collection: `{name: [count, sum, sum of squares]}`, sorted by name."""
    flush()
    distributed.any_rank(False)     # finds lost ranks on the host: a GPU would wait for them without an error
    own = {name: torch.tensor([count, 0, 0], dtype=torch.float64) for name, count in sorted(_counts.items())}
    if not own:
        return {}
    for on_device in _sums.values():
        for name, sums in zip(on_device.rows, on_device.sums.cpu()):
            own[name][1:] += sums
    return dict(zip(own, distributed.all_reduce_sum_(torch.stack(list(own.values()))).tolist()))


def load_state_dict(moments: Mapping[str, list[float]]) -> None:
    """Drop the values of this rank, and continue from a result of `state_dict`. Rank 0 takes the sums of all ranks.

    Raises:
        Misfit: `moments` is no result of `state_dict`.
    """
    state.check(moments, {str: [(int, float)]})
    for name, moment in moments.items():
        if len(moment) != 3:
            raise state.Misfit(name)
    if distributed.rank() > 0:  # ranks must have the same names
        moments = {name: [0.0] * 3 for name in moments}
    _reports.clear()
    _counts.clear()
    _sums.clear()
    _counts.update((name, moment[0]) for name, moment in moments.items())
    if moments:
        host = _sums[torch.device("cpu")] = _Sums(torch.device("cpu"))
        host.rows = {name: row for row, name in enumerate(moments)}
        host.sums = torch.tensor([moment[1:] for moment in moments.values()], dtype=torch.float64)
