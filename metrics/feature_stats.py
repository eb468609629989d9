"""Statistics of feature vectors, gathered batch by batch and over processes."""

from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError
from torch_utils import distributed

_ROWS_AT_ONCE = 1024    # Rows that are checked and added up together: the host waits for the device each time.


class Moments(NamedTuple):
    """Mean and covariance, float64. As in FID's reference, the covariance is divided by N, not N - 1."""

    mean: torch.Tensor  # [F]
    cov: torch.Tensor   # [F, F]


class FeatureStats:
    """Collects batches of features [N, F]: their moments, all vectors, or both.

    Raw moments are summed in float64 on the device of the features. Vectors are kept on the CPU. With several
    processes, process r of n takes the items r, r + n, r + 2n, ..., and `gather` combines them in their order.

    Args:
        keep_moments:  Keep the sums from which `moments` follow.
        keep_features: Keep all vectors, for `features`.
        what:          Name of the items in error messages.
    """

    def __init__(self, *, keep_moments: bool = False, keep_features: bool = False, what: str = "images"):
        self.keep_moments = keep_moments
        self.keep_features = keep_features
        self.num_items = 0
        self._what = what
        self._num_batches = 0                       # Batches in the sums and vectors below.
        self._sum: torch.Tensor | None = None       # [F]
        self._outer: torch.Tensor | None = None     # [F, F], sum of x x^T
        self._kept: torch.Tensor | None = None      # [capacity, F], on the CPU; the first `_num_kept` rows are filled.
        self._num_kept = 0
        self._recent: list[torch.Tensor] = []       # Batches on their device, not yet in the sums and vectors.

    @torch.no_grad()
    def append(self, x: torch.Tensor) -> None:
        """Add a batch [N, F] of any float type.

        Raises:
            UserError: This batch, or one of the last few, holds numbers that are not finite.
        """
        self.num_items += x.shape[0]
        self._recent.append(x)
        if sum(map(len, self._recent)) >= _ROWS_AT_ONCE:
            self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Process the batches that `append` has set aside. Raises the same error."""
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
        """Append rows in place. Joining a list of batches at the end would take twice the memory."""
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

    def gather(self, device: torch.device) -> None:
        """Combine the statistics of all processes, in every process. All processes call this together."""
        self.finish()
        if distributed.world_size() == 1:
            return
        own_items, held = self.num_items, self._sum if self._kept is None else self._kept
        num_features = distributed.from_rank0(None if held is None else held.shape[-1])     # rank 0 has an item
        self.num_items = int(distributed.all_reduce_sum_(torch.tensor(own_items)))
        if self.keep_moments:
            if self._sum is None:  # more processes than items
                self._sum = torch.zeros(num_features, dtype=torch.float64)
                self._outer = torch.zeros(num_features, num_features, dtype=torch.float64)
            self._sum = distributed.all_reduce_sum_(self._sum.to(device).clone())
            self._outer = distributed.all_reduce_sum_(self._outer.to(device).clone())
        if self.keep_features:
            own = torch.zeros(-(-self.num_items // distributed.world_size()), num_features)
            own[:own_items] = self.features() if own_items else own[:0]
            self._kept, self._num_kept = torch.cat(_interleave(own, device)), self.num_items

    def to_arrays(self) -> dict[str, Any]:
        """The statistics as plain arrays for a file."""
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
            KeyError:   An array is missing.
            ValueError: The arrays do not fit together.
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


def _interleave(own: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """The rows of all processes in blocks: row 0 of each process, row 1 of each, ...

    They are exchanged 4096 at a time, so that they take little memory on the device.
    """
    blocks = []
    for chunk in own.split(4096):
        chunk = chunk.to(device).contiguous()
        parts = [torch.empty_like(chunk) for _ in range(distributed.world_size())]
        torch.distributed.all_gather(parts, chunk)
        blocks.append(torch.stack(parts, dim=1).flatten(0, 1).cpu())  # [rows, processes, F] -> [rows * processes, F]
    return blocks
