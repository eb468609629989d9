"""Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019)."""

from typing import Iterator, Literal, NamedTuple

import torch

from dnnlib.util import UserError
from metrics.detectors import FeatureNet
from metrics.features import generated_stats, real_stats
from metrics.options import ImageSet, MetricOptions, track

NUM_NEIGHBOURS = 3
BLOCK_SIZE = 10_000     # Distances are computed in blocks of this side; results do not depend on it.

Rounding = Literal["float16", "float32"]


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class _Block(NamedTuple):
    rows: slice
    cols: slice


def compute_pr(opts: MetricOptions, net: FeatureNet, *, images: ImageSet, num_gen: int) -> dict[str, float]:
    """Precision and recall, k = 3, of `num_gen` generated images and real ones."""
    real = real_stats(opts, net, images, keep_features=True)
    gen = generated_stats(opts, net, num_items=num_gen, keep_features=True)
    if opts.rank != 0:
        return {}
    blocks = sum(1 for pair in ((real, real), (gen, gen), (real, gen)) for _ in _blocks(
        pair[0].num_items, pair[1].num_items, block_size=BLOCK_SIZE, symmetric=pair[0] is pair[1]))
    with track(opts, "distances", blocks) as done:
        pr = precision_recall(real.features(), gen.features(), device=opts.device, on_block=lambda: done(1))
    return {f"{opts.metric}_precision": pr.precision, f"{opts.metric}_recall": pr.recall}


@torch.no_grad()
def precision_recall(
    real: torch.Tensor,                     # float32 [N, F]
    gen: torch.Tensor,                      # float32 [M, F]
    *,
    k: int = NUM_NEIGHBOURS,
    rounding: Rounding = "float16",
    block_size: int = BLOCK_SIZE,
    device: torch.device | str = "cpu",
    on_block=lambda: None,                  # called after each block of distances
) -> PrecisionRecall:
    """The share of generated images inside the manifold of the real ones, and the other way round.

    A manifold is a union of balls, one about each of its images, with the distance to the k-th nearest other image as
    radius. The published protocol rounds features and distances to float16; `rounding="float32"` does not. The
    distances themselves are always computed in float32, from centred features.

    Raises:
        UserError: Too few images for k neighbours, or features beyond float16's range.
    """
    for name, features in (("real", real), ("generated", gen)):
        if len(features) <= k:
            raise UserError(f"precision and recall with k={k} need more than {k} images, got {len(features)} {name} "
                            "ones")
    if rounding == "float16":
        _check_half_range(real, gen)
        real, gen = real.half(), gen.half()
    centre = real.float().mean(dim=0)
    real, gen = _place(real.float() - centre, device), _place(gen.float() - centre, device)

    options = {"rounding": rounding, "block_size": block_size, "device": device, "on_block": on_block}
    real_radii, gen_radii = _radii(real, k=k, **options), _radii(gen, k=k, **options)
    gen_inside = torch.zeros(len(gen), dtype=torch.bool, device=device)
    real_inside = torch.zeros(len(real), dtype=torch.bool, device=device)
    for block in _blocks(len(real), len(gen), block_size=block_size):  # one distance serves both questions
        distances = _distances(real[block.rows], gen[block.cols], rounding=rounding, device=device)
        gen_inside[block.cols] |= (distances <= real_radii[block.rows, None]).any(dim=0)
        real_inside[block.rows] |= (distances <= gen_radii[None, block.cols]).any(dim=1)
        on_block()
    return PrecisionRecall(float(gen_inside.double().mean()), float(real_inside.double().mean()))


def _radii(x: torch.Tensor, *, k: int, rounding: Rounding, block_size: int, device, on_block) -> torch.Tensor:
    """Distance of every row to its k-th nearest other row, [N]; only k + 1 candidates per row are held."""
    nearest = torch.full([len(x), k + 1], torch.inf, device=device)  # Squares: root and rounding keep the order.
    for block in _blocks(len(x), len(x), block_size=block_size, symmetric=True):
        distances = _squared(x[block.rows], x[block.cols], device=device)
        if block.rows == block.cols:
            distances.fill_diagonal_(0)  # not what rounding leaves of it
        else:
            _merge(nearest, block.cols, distances.T)
        _merge(nearest, block.rows, distances)
        on_block()
    return _rounded(nearest.amax(dim=1).sqrt(), rounding)  # the row itself counts as the first


def _merge(nearest: torch.Tensor, rows: slice, distances: torch.Tensor) -> None:
    """Keep the smallest of what `nearest` [N, k + 1] holds for these rows and of new distances [rows, cols]."""
    count = nearest.shape[1]
    best = distances.topk(min(count, distances.shape[1]), dim=1, largest=False, sorted=False).values
    nearest[rows] = torch.cat([nearest[rows], best], dim=1).topk(count, dim=1, largest=False, sorted=False).values


def _distances(x: torch.Tensor, y: torch.Tensor, *, rounding: Rounding, device: torch.device | str) -> torch.Tensor:
    """Euclidean distances [len(x), len(y)], float32, rounded to float16's numbers where asked."""
    return _rounded(_squared(x, y, device=device).sqrt_(), rounding)


def _squared(x: torch.Tensor, y: torch.Tensor, *, device: torch.device | str) -> torch.Tensor:
    """Squared Euclidean distances [len(x), len(y)], float32.

    |x|^2 + |y|^2 - 2 x.y loses digits when the vectors are long and close together; they come centred, so they are not.
    """
    x, y = x.to(device), y.to(device)
    squared = torch.addmm(y.square().sum(dim=1)[None, :], x, y.T, alpha=-2)
    squared += x.square().sum(dim=1)[:, None]
    return squared.clamp_(min=0)


def _rounded(distances: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Distances, as float32, rounded to float16's numbers where asked."""
    return distances.half().float() if rounding == "float16" else distances


def _place(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Features on the device if they take a small part of its free memory; else blocks of them go there in turn."""
    if torch.device(device).type != "cuda":
        return x
    free, _ = torch.cuda.mem_get_info(device)
    return x.to(device) if 4 * x.nbytes < free else x


def _blocks(num_rows: int, num_cols: int, *, block_size: int, symmetric: bool = False) -> Iterator[_Block]:
    """Blocks that cover a matrix; of a symmetric one, those on and above the diagonal."""
    for row in range(0, num_rows, block_size):
        for col in range(row if symmetric else 0, num_cols, block_size):
            yield _Block(slice(row, min(row + block_size, num_rows)), slice(col, min(col + block_size, num_cols)))


def _check_half_range(real: torch.Tensor, gen: torch.Tensor) -> None:
    limit = torch.finfo(torch.float16).max
    longest = max(float(x.float().norm(dim=1).max()) for x in (real, gen))
    if not 2 * longest < limit:  # also where it is not a number
        raise UserError(f"features of length {longest:.3g} give distances beyond float16, in which precision and "
                        f"recall are defined: use a feature net with outputs below {limit / 2:.0f}")
