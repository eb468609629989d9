"""Distances between all pairs of two sets of features, block by block, for metrics based on nearest neighbours."""

from typing import Any, Callable, Iterator, Literal, NamedTuple, Sequence

import torch

from dnnlib.util import UserError
from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions, track

BLOCK_SIZE = 5_000  # Side of a block of distances, 100 MB; results do not depend on it.

Rounding = Literal["float16", "float32"]


class Block(NamedTuple):
    """A block of the matrix of distances."""

    rows: slice
    cols: slice
    distances: torch.Tensor     # float32 [rows, cols]


class PairDistances:
    """Euclidean distances within and between real and generated features, one block in memory at a time.

    They are computed in float32, from centred features: |x|^2 + |y|^2 - 2 x.y loses digits when the vectors are long
    and close together.

    Args:
        name:       Name of the metric in messages.
        real:       float32 [N, F].
        gen:        float32 [M, F].
        k:          `radii` gives distances to the k-th nearest neighbour.
        rounding:   "float16" rounds features and distances to numbers of float16.
        block_size: Largest side of a block.
        device:     Where distances are computed.
        on_block:   Called after each block.

    Raises:
        UserError: There are too few images for k neighbours, or features are beyond the range of float16.
    """

    def __init__(
        self, name: str, real: torch.Tensor, gen: torch.Tensor, *, k: int, rounding: Rounding = "float32",
        block_size: int = BLOCK_SIZE, device: torch.device | str = "cpu", on_block: Callable[[], None] = lambda: None,
    ):
        for kind, features in (("real", real), ("generated", gen)):
            if len(features) <= k:
                raise UserError(f"{name} with k={k} need more than {k} images, got {len(features)} {kind} ones")
        self._k, self._rounding, self._block_size, self._device = k, rounding, block_size, device
        self._on_block = on_block
        if rounding == "float16":
            _check_half_range(real, gen)
        self.real, self.gen = _place(real, device), _place(gen, device)
        sums = torch.stack([self._read(part).double().sum(dim=0) for part in self.real.split(block_size)])
        self._centre = (sums.sum(dim=0) / len(real)).float()

    def across(self) -> Iterator[Block]:
        """Distances of real images (rows) to generated ones (columns)."""
        for rows, cols in _blocks(len(self.real), len(self.gen), self._block_size):
            yield Block(rows, cols, self._rounded(self._squared(self.real[rows], self.gen[cols]).sqrt_()))
            self._on_block()

    def radii(self, x: torch.Tensor) -> torch.Tensor:
        """Distance of every row of `self.real` or `self.gen` to its k-th nearest other row, [N].

        Only the k + 1 smallest distances of each row are kept.
        """
        nearest = torch.full([len(x), self._k + 1], torch.inf, device=self._device)  # Squares: roots keep the order.
        for rows, cols in _blocks(len(x), len(x), self._block_size, symmetric=True):
            distances = self._squared(x[rows], x[cols])
            if rows == cols:
                distances.fill_diagonal_(0)  # rounding errors would leave other values
            else:
                _merge(nearest, cols, distances.T)
            _merge(nearest, rows, distances)
            self._on_block()
        return self._rounded(nearest.amax(dim=1).sqrt())  # the row itself counts as the first

    def _squared(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Squared distances [len(x), len(y)], float32."""
        x, y = self._read(x) - self._centre, self._read(y) - self._centre
        squared = torch.addmm(y.square().sum(dim=1)[None, :], x, y.T, alpha=-2)
        squared += x.square().sum(dim=1)[:, None]
        return squared.clamp_(min=0)

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        return self._rounded(x.to(self._device))

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        return x.half().float() if self._rounding == "float16" else x


def compute_score(
    score: Callable[..., Any],      # (real features, generated features, **options of PairDistances) -> a named tuple
    opts: MetricOptions,
    real: FeatureStats,
    gen: FeatureStats,
    *,
    gen_radii: bool,                # whether `score` also needs the radii of generated images
) -> dict[str, float]:
    """Apply `score` to the features of real and generated images, and show progress."""
    sizes = real.num_items, gen.num_items
    with track(opts, "distances", num_blocks(*sizes, radii_of=sizes if gen_radii else sizes[:1])) as done:
        result = score(real.features(), gen.features(), device=opts.device, on_block=lambda: done(1))
    return {f"{opts.metric}_{name}": value for name, value in result._asdict().items()}


def num_blocks(num_real: int, num_gen: int, *, radii_of: Sequence[int], block_size: int = BLOCK_SIZE) -> int:
    """How often `on_block` will be called if `radii` is called for sets of the sizes `radii_of`."""
    return sum(1 for _ in _blocks(num_real, num_gen, block_size)) + sum(
        1 for size in radii_of for _ in _blocks(size, size, block_size, symmetric=True))


def _merge(nearest: torch.Tensor, rows: slice, distances: torch.Tensor) -> None:
    """Update `nearest` [N, k + 1], the smallest distances of each row, with new distances [rows, cols] of some rows."""
    count = nearest.shape[1]
    best = distances.topk(min(count, distances.shape[1]), dim=1, largest=False, sorted=False).values
    nearest[rows] = torch.cat([nearest[rows], best], dim=1).topk(count, dim=1, largest=False, sorted=False).values


def _place(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move features to a GPU if they take less than a quarter of its free memory; otherwise, blocks are moved later."""
    if torch.device(device).type != "cuda":
        return x
    free, _ = torch.cuda.mem_get_info(device)
    return x.to(device) if 4 * x.nbytes < free else x


def _blocks(num_rows: int, num_cols: int, block_size: int, *, symmetric: bool = False) -> Iterator[tuple[slice, slice]]:
    """Blocks (rows, columns) that cover a matrix. For a symmetric matrix, only those on and above the diagonal."""
    for row in range(0, num_rows, block_size):
        for col in range(row if symmetric else 0, num_cols, block_size):
            yield slice(row, min(row + block_size, num_rows)), slice(col, min(col + block_size, num_cols))


def _check_half_range(real: torch.Tensor, gen: torch.Tensor) -> None:
    limit = torch.finfo(torch.float16).max
    longest = max(float(x.norm(dim=1).max()) for x in (real, gen))
    if not 2 * longest < limit:  # also if it is NaN
        raise UserError(f"features of length {longest:.3g} give distances beyond float16, in which precision and "
                        f"recall are defined: use a feature net with outputs below {limit / 2:.0f}")
