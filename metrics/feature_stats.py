"""Statistics of feature vectors, gathered batch by batch and over processes."""

from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError
from torch_utils import distributed

_ROWS_AT_ONCE = 1024    # Features are fetched from the device in such portions, as the host waits each time.


class Moments(NamedTuple):
    """Mean and covariance, as FID's reference has them: float64, divided by N (not N - 1)."""

    mean: torch.Tensor  # [F]
    cov: torch.Tensor   # [F, F]


class FeatureStats:
    """Takes [N, F] batches; keeps their moments, all of the vectors, or both.

    Raw moments are summed in float64 on the device of the features; what is kept of all vectors is on the CPU. With
    several processes, process r of n takes the items r, r + n, r + 2n, ... and `gather` brings everything together in
    the items' order.

    Args:
        what: What the items are, for errors.
    """

    def __init__(self, *, keep_moments: bool = False, keep_features: bool = False, what: str = "images"):
        self.keep_moments = keep_moments
        self.keep_features = keep_features
        self.num_items = 0
        self._what = what
        self._num_batches = 0                       # Those that were added to the below.
        self._sum: torch.Tensor | None = None       # [F]
        self._outer: torch.Tensor | None = None     # [F, F], sum of x x^T
        self._kept: torch.Tensor | None = None      # [capacity, F], on the CPU; the first `_num_kept` rows are filled.
        self._num_kept = 0
        self._recent: list[torch.Tensor] = []       # As they came, on their device; not yet part of the above.

    @torch.no_grad()
    def append(self, x: torch.Tensor) -> None:
        """Add a batch [N, F] of any float type.

        Raises:
            UserError: Numbers in this batch, or in one of the last few, are not finite.
        """
        self.num_items += x.shape[0]
        self._recent.append(x)
        if sum(map(len, self._recent)) >= _ROWS_AT_ONCE:
            self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Have all that was added looked at; raises likewise."""
        if not self._recent:
            return
        batches, self._recent = self._recent, []
        x = torch.cat(batches)
        if not torch.isfinite(x).all():
            bad = next(i for i, batch in enumerate(batches) if not torch.isfinite(batch).all())
            batch = f"batch {self._num_batches + bad}"
            if distributed.world_size() > 1:
                batch += f" of process {distributed.rank()}"
            raise UserError(f"features of {self._what} that are not finite, in {batch} (counted from 0): the feature "
                            "net can't take these images, or the network makes none")
        self._num_batches += len(batches)
        if self.keep_moments:
            x64 = x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)  # MPS has no float64
            if self._sum is None:
                self._sum, self._outer = x64.new_zeros(x.shape[1]), x64.new_zeros(x.shape[1], x.shape[1])
            self._sum = self._sum + x64.sum(dim=0)
            self._outer = torch.addmm(self._outer, x64.T, x64)
        if self.keep_features:
            self._keep(x)

    def _keep(self, x: torch.Tensor) -> None:
        """Add rows in place. A list of batches, joined in the end, would take twice the memory."""
        count = self._num_kept + len(x)
        if self._kept is None or count > len(self._kept):
            kept, self._kept = self._kept, torch.empty(max(count, 2 * self._num_kept), x.shape[1])
            if kept is not None:
                self._kept[:self._num_kept] = kept[:self._num_kept]
        self._kept[self._num_kept:count] = x
        self._num_kept = count

    def moments(self) -> Moments:
        """Mean and covariance, on the CPU."""
        self.finish()
        if self._sum is None:
            raise ValueError("no moments were kept")
        mean = self._sum.cpu() / self.num_items
        return Moments(mean, self._outer.cpu() / self.num_items - torch.outer(mean, mean))

    def features(self) -> torch.Tensor:
        """All vectors, float32 [N, F], on the CPU."""
        self.finish()
        if self._kept is None:
            raise ValueError("no features were kept")
        return self._kept[:self._num_kept]

    def gather(self, *, num_gpus: int, device: torch.device, rows_per_step: int = 4096) -> None:
        """Make this process's statistics those of all processes. Every process must call it."""
        self.finish()
        if num_gpus == 1:
            return
        dist = torch.distributed
        own_items, num_features = self.num_items, self._num_features()
        sizes = torch.tensor([own_items, num_features], device=device)
        largest = sizes.clone()
        dist.all_reduce(sizes)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        self.num_items, (rows, num_features) = int(sizes[0]), largest.tolist()
        if self.keep_moments:
            if self._sum is None:  # more processes than items
                self._sum = torch.zeros(num_features, dtype=torch.float64)
                self._outer = torch.zeros(num_features, num_features, dtype=torch.float64)
            self._sum, self._outer = self._sum.to(device).clone(), self._outer.to(device).clone()
            dist.all_reduce(self._sum)
            dist.all_reduce(self._outer)
        if self.keep_features:
            own = torch.zeros(rows, num_features)
            own[:own_items] = self.features() if own_items else own[:0]
            blocks = _interleave(own, num_gpus=num_gpus, device=device, rows_per_step=rows_per_step)
            self._kept, self._num_kept = torch.cat(blocks), self.num_items

    def _num_features(self) -> int:
        if self._sum is not None:
            return self._sum.shape[0]
        return 0 if self._kept is None else self._kept.shape[1]

    def to_arrays(self) -> dict[str, Any]:
        """Plain arrays for a file."""
        self.finish()
        arrays = {"num_items": np.asarray(self.num_items)}
        if self.keep_moments:
            arrays |= {"sum": self._sum.cpu().numpy(), "outer": self._outer.cpu().numpy()}
        if self.keep_features:
            arrays["features"] = self.features().numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], *, keep_moments: bool, keep_features: bool) -> "FeatureStats":
        """The inverse of `to_arrays`.

        Raises:
            KeyError, ValueError: Something is missing or does not fit together.
        """
        stats = cls(keep_moments=keep_moments, keep_features=keep_features)
        stats.num_items = int(arrays["num_items"])
        if keep_moments:
            stats._sum, stats._outer = torch.from_numpy(arrays["sum"]), torch.from_numpy(arrays["outer"])
            if stats._outer.shape != (len(stats._sum), len(stats._sum)) or stats._sum.dtype != torch.float64:
                raise ValueError("moments of odd shape or type")
        if keep_features:
            stats._kept, stats._num_kept = torch.from_numpy(arrays["features"]), stats.num_items
            if stats._kept.ndim != 2 or len(stats._kept) != stats.num_items:
                raise ValueError("features of odd shape")
        return stats


def _interleave(own: torch.Tensor, *, num_gpus: int, device: torch.device, rows_per_step: int) -> list[torch.Tensor]:
    """All processes' rows in the order 0th of each, 1st of each, ...; in steps, so that little is on the device."""
    blocks = []
    for chunk in own.split(rows_per_step):
        chunk = chunk.to(device).contiguous()
        parts = [torch.empty_like(chunk) for _ in range(num_gpus)]
        torch.distributed.all_gather(parts, chunk)
        blocks.append(torch.stack(parts, dim=1).flatten(0, 1).cpu())  # [rows, num_gpus, F] -> [rows * num_gpus, F]
    return blocks
