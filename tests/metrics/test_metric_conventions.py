"""Closed forms, and what the scores must say about simple cases."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from metrics import feature_stats
from metrics.density_coverage import density_coverage
from metrics.feature_stats import FeatureStats, Moments
from metrics.fid_infinity import extrapolate
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import draw_subsets, kernel_distances, standard_error
from metrics.perceptual_path_length import path_lengths, slerp, trimmed_mean
from metrics.precision_recall import precision_recall
from metrics.sliced_wasserstein import sliced_wasserstein


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments_of(x):
    stats = FeatureStats(keep_moments=True)
    stats.append(x)
    return stats.moments()


@pytest.mark.parametrize("rows_at_once", [1, 61, 1000])
def test_moments_are_biased_ones_whatever_the_batches(rows_at_once, monkeypatch):
    monkeypatch.setattr(feature_stats, "_ROWS_AT_ONCE", rows_at_once)
    x = randn(101, 5, dtype=torch.float64) * 3 + 7
    stats = FeatureStats(keep_moments=True, keep_features=True)
    for part in x.split([1, 60, 40]):
        stats.append(part)
    torch.testing.assert_close(stats.moments().mean, x.mean(dim=0))
    torch.testing.assert_close(stats.moments().cov, torch.from_numpy(np.cov(x.numpy(), rowvar=False, bias=True)))
    torch.testing.assert_close(stats.features(), x.float())


def test_features_that_are_not_finite_are_refused_with_their_batch(monkeypatch):
    monkeypatch.setattr(feature_stats, "_ROWS_AT_ONCE", 10)
    stats = FeatureStats(keep_moments=True, what="real images")
    for _ in range(7):
        stats.append(torch.ones(4, 2))
    stats.append(torch.tensor([[1, torch.inf]]))
    with pytest.raises(UserError, match=r"^features of real images that are not finite, in batch 7 \(counted"):
        stats.moments()


def test_fid_of_commuting_gaussians():
    basis = torch.linalg.qr(randn(6, 6, dtype=torch.float64)).Q
    var_a, var_b = torch.arange(1.0, 7, dtype=torch.float64), torch.arange(12.0, 0, -2, dtype=torch.float64)
    shift = randn(6, seed=1, dtype=torch.float64)
    a = Moments(torch.zeros(6, dtype=torch.float64), basis @ var_a.diag() @ basis.T)
    b = Moments(shift, basis @ var_b.diag() @ basis.T)
    expected = shift.square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-10)


def test_fid_takes_the_same_root_of_regular_and_of_singular_covariances():
    """A variance of zero leaves no Cholesky factor; a tiny one does."""
    x, y = randn(300, 6, dtype=torch.float64), randn(300, 6, seed=1, dtype=torch.float64) * 2
    distances = []
    for width in (0, 1e-7):
        scale = torch.tensor([width, 1, 2, 3, 4, 5], dtype=torch.float64)
        moments = [moments_of(part * scale) for part in (x, y)]
        assert bool(torch.linalg.cholesky_ex(moments[0].cov).info) == (width == 0)
        distances.append(frechet_distance(*moments))
    assert distances[0] == pytest.approx(distances[1], rel=1e-6) and distances[0] > 1


def test_fid_of_one_set_with_itself_is_zero_even_if_rank_deficient():
    for rows in (20, 500):
        moments = moments_of(randn(rows, 64) * 5 + 100)
        assert abs(frechet_distance(moments, moments)) < 1e-5


def test_fid_of_equal_covariances_is_the_squared_shift():
    x = randn(40, 6, dtype=torch.float64)
    assert frechet_distance(moments_of(x), moments_of(x + torch.arange(6))) == pytest.approx(55, rel=1e-6)


def test_fid_does_not_change_under_rotation_and_needs_no_full_rank():
    """With fewer samples than dimensions, too: what is added are directions without variance."""
    x, y = (randn(40, 6, seed=seed, dtype=torch.float64) * (1 + seed) for seed in (0, 1))
    basis = torch.linalg.qr(randn(80, 80, dtype=torch.float64)).Q[:6]     # [6, 80], orthonormal rows
    expected = frechet_distance(moments_of(x), moments_of(y))
    assert frechet_distance(moments_of(x @ basis), moments_of(y @ basis)) == pytest.approx(expected, rel=1e-6)


def test_fid_infinity_takes_the_bias_away():
    """Of two samples of one distribution, FID is about proportional to 1 / N."""
    x = randn(20_000, 16, dtype=torch.float64)
    exact = Moments(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    found = extrapolate(exact, x[:4000].float(), random_state=np.random.RandomState(0))
    biased = frechet_distance(exact, moments_of(x[:4000]))
    assert abs(found.value) < biased / 2 and 0 < found.std_error < biased


def test_sliced_wasserstein_has_closed_forms():
    def swd(*sets):
        return sliced_wasserstein(*sets, random_state=np.random.RandomState(0), num_directions=2000)

    x, shift = randn(300, 3), torch.tensor([3.0, 0, 4])
    assert swd(x, x.flip(0)) == 0
    assert swd(x, x + shift) == pytest.approx(5 / 3**0.5, rel=0.03)     # the mean square of a direction's component
    assert swd(x, torch.cat([x, x])) == pytest.approx(0, abs=1e-6), "sets of other sizes, the same distribution"
    assert swd(x[:2, :1], x[:3, :1]) == pytest.approx(quantile_distance(x[:2, 0], x[:3, 0]), rel=1e-6)


def quantile_distance(x, y):
    """Of two and of three numbers, by six copies of each quantile."""
    return float((x.sort().values.repeat_interleave(3) - y.sort().values.repeat_interleave(2)).square().mean().sqrt())


def test_kid_is_unbiased_and_grows_with_the_shift():
    def kid(real, gen):
        subsets = draw_subsets(len(real), len(gen), random_state=np.random.RandomState(0), num_subsets=20,
                               max_subset_size=300)
        return float(kernel_distances(real, gen, subsets).mean())

    real = randn(2000, 8)
    assert abs(kid(real, randn(2000, 8, seed=1))) < 0.02  # about zero, of either sign
    assert kid(real, randn(2000, 8, seed=1) + 1) > 10 * kid(real, randn(2000, 8, seed=1) + 0.3) > 0


def test_kid_against_the_double_sum():
    real, gen = randn(6, 3), randn(6, 3, seed=1)
    subset = next(draw_subsets(6, 6, random_state=np.random.RandomState(0), num_subsets=1))
    x, y = gen[torch.from_numpy(subset.gen)], real[torch.from_numpy(subset.real)]

    def kernel(p, q):
        return (float(p.double() @ q.double()) / 3 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(kernel(x[i], y[j]) for i in range(6) for j in range(6)) / 36
    assert float(kernel_distances(real, gen, iter([subset]))) == pytest.approx(within - 2 * across, rel=1e-10)


@pytest.mark.parametrize("rounding", ["float16", "float32"])
def test_precision_recall_conventions(rounding):
    real = randn(400, 6)
    assert precision_recall(real, real.clone(), rounding=rounding) == (1, 1)
    assert precision_recall(real, real + 1000, rounding=rounding) == (0, 0)
    collapsed = real[:1] + randn(400, 6, seed=1) * 0.01
    precision, recall = precision_recall(real, collapsed, rounding=rounding)
    assert precision > 0.99 and recall < 0.02
    precision, recall = precision_recall(collapsed, real, rounding=rounding)
    assert precision < 0.02 and recall > 0.99


@pytest.mark.parametrize("rounding", ["float16", "float32"])
def test_precision_recall_against_all_pairs(rounding):
    real, gen = randn(90, 5) * 2, randn(70, 5, seed=1) + 0.5
    pairs = {"a": (real, real), "b": (gen, gen), "c": (real, gen)}
    if rounding == "float16":
        pairs = {name: (x.half(), y.half()) for name, (x, y) in pairs.items()}
    d = {name: (x.double()[:, None] - y.double()[None]).norm(dim=2) for name, (x, y) in pairs.items()}
    if rounding == "float16":
        d = {name: x.half().double() for name, x in d.items()}
    real_radii, gen_radii = d["a"].sort(dim=1).values[:, 3], d["b"].sort(dim=1).values[:, 3]
    precision = (d["c"] <= real_radii[:, None]).any(dim=0).double().mean()
    recall = (d["c"] <= gen_radii[None]).any(dim=1).double().mean()
    for block_size in (16, 64, 1000):
        pr = precision_recall(real, gen, rounding=rounding, block_size=block_size)
        assert pr == pytest.approx((float(precision), float(recall)))


def test_density_and_coverage_against_all_pairs():
    real, gen = randn(90, 5) * 2, randn(70, 5, seed=1) + 0.5
    radii = torch.cdist(real.double(), real.double()).sort(dim=1).values[:, 5]
    inside = torch.cdist(real.double(), gen.double()) < radii[:, None]
    expected = float(inside.sum() / (5 * 70)), float(inside.any(dim=1).double().mean())
    for block_size in (16, 1000):
        assert density_coverage(real, gen, block_size=block_size) == pytest.approx(expected)


def test_density_and_coverage_conventions():
    real = randn(400, 6)
    density, coverage = density_coverage(real, randn(4000, 6, seed=1))
    assert density == pytest.approx(1, abs=0.1) and coverage > 0.95     # as many as the paper expects
    density, coverage = density_coverage(real, real[:1] + randn(400, 6, seed=1) * 0.01)
    assert density > 1 and coverage < 0.1, "collapsed: dense, and covers little"
    assert density_coverage(real, real + 1000) == (0, 0)
    outlier = torch.cat([real, real[:1] + 50])      # whose ball is huge, and holds all
    assert density_coverage(outlier, real + 30).density < 0.5
    with pytest.raises(UserError, match="density and coverage with k=5 need more than 5 images, got 5 real ones"):
        density_coverage(real[:5], real)


def test_precision_recall_far_from_the_origin():
    """Distances of about 1 between vectors of length 10000: |x|^2 + |y|^2 - 2 x.y must not lose them."""
    real, gen = randn(200, 4, dtype=torch.float64), randn(200, 4, seed=1, dtype=torch.float64) + 0.5
    near = precision_recall(real.float(), gen.float(), rounding="float32")
    far = precision_recall((real + 10_000).float(), (gen + 10_000).float(), rounding="float32")
    assert far == pytest.approx(near, abs=0.02)


def test_precision_recall_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="more than 3 images, got 3 generated"):
        precision_recall(randn(10, 2), randn(3, 2))
    with pytest.raises(UserError, match="beyond float16"):
        precision_recall(randn(10, 2) * 1e5, randn(10, 2))
    with pytest.raises(UserError, match="beyond float16"):
        precision_recall(torch.full([10, 2], torch.nan), randn(10, 2))


def test_inception_score_bounds():
    certain = torch.eye(5).repeat(20, 1)
    assert inception_score(certain, num_splits=4) == pytest.approx((5, 0), abs=1e-12)
    assert inception_score(torch.full([100, 5], 0.2), num_splits=4) == pytest.approx((1, 0), abs=1e-6)
    with pytest.raises(UserError, match="10 splits"):
        inception_score(certain[:9], num_splits=10)


def test_slerp_walks_a_great_circle():
    a, b = torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 3.0, 0]])
    expected = torch.tensor([[np.cos(np.pi / 6), np.sin(np.pi / 6), 0]], dtype=torch.float32)
    torch.testing.assert_close(slerp(a, b, torch.tensor([[1 / 3]])), expected)


class LinearG(torch.nn.Module):
    """Pixels are linear in w, so that path lengths have a closed form."""

    class Mapping(torch.nn.Module):
        def forward(self, z, c=None):
            return z[:, None].repeat(1, 2, 1)

    class Synthesis(torch.nn.Module):
        def forward(self, ws, noise_mode, force_fp32):
            return ws[:, 0, :1, None, None].repeat(1, 1, 512, 512)

    img_resolution, img_channels = 512, 1

    def __init__(self):
        super().__init__()
        self.mapping, self.synthesis = self.Mapping(), self.Synthesis()


def test_path_length_of_a_linear_generator():
    z0, z1 = randn(4, 3, dtype=torch.float64), randn(4, 3, seed=1, dtype=torch.float64)
    sizes = []

    def perceptual(img):
        sizes.append(list(img.shape))
        return img[:, :, 0, 0]

    t = torch.zeros(4, dtype=torch.float64)
    lengths = path_lengths(LinearG(), perceptual, z0=z0, z1=z1, t=t, c=None, noise={}, space="w", crop=False)
    torch.testing.assert_close(lengths, 3 * (127.5 * (z1 - z0)[:, 0]) ** 2, rtol=1e-6, atol=1e-6)
    path_lengths(LinearG(), perceptual, z0=z0, z1=z1, t=t, c=None, noise={}, space="z", crop=True)
    assert sizes == [[8, 3, 256, 256], [8, 3, 128, 128]]


def test_trimmed_mean_drops_outliers():
    assert trimmed_mean(torch.cat([torch.ones(998), torch.tensor([1e9, -1e9])])) == 1


def test_standard_error_of_kid_is_the_spread_over_sets_of_images():
    real, size, means, errors = randn(2000, 8), 50, [], []
    for seed in range(40):
        gen = randn(200, 8, seed=1 + seed) * 1.1 + 0.3
        subsets = draw_subsets(2000, 200, random_state=np.random.RandomState(seed), max_subset_size=size)
        estimates = kernel_distances(real, gen, subsets)
        means.append(float(estimates.mean()))
        errors.append(standard_error(estimates, 2000, 200, max_subset_size=size))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.3)
    assert standard_error(estimates, 50, 50, max_subset_size=size) is None     # one subset: the whole
