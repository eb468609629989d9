"""Other programs, where they are installed, make the same of the same features: torch-fidelity, clean-fid, prdc."""

import numpy as np
import pytest
import torch

from metrics.density_coverage import density_coverage
from metrics.feature_stats import FeatureStats
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import draw_subsets, kernel_distances
from metrics.precision_recall import precision_recall

CLOSE = {"rel": 1e-6}


@pytest.fixture
def features():
    """Real and generated ones, [N, 64]."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 2, 64)
    return [torch.randn(count, 64, generator=generator).mul(scale) + shift
            for count, shift in ((900, 0.5), (700, 0.6))]


def moments(x):
    stats = FeatureStats(keep_moments=True)
    stats.append(x)
    return stats.moments()


def kid(real, gen, **options):
    subsets = draw_subsets(len(real), len(gen), random_state=np.random.RandomState(0), **options)
    return kernel_distances(real, gen, subsets)


def test_torch_fidelity(features):
    pytest.importorskip("torch_fidelity", reason="a development dependency: pip install torch-fidelity")
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, gen = features
    a, b = moments(real), moments(gen)
    theirs = fid_statistics_to_metric(*(dict(mu=m.mean.numpy(), sigma=m.cov.numpy()) for m in (a, b)), False)
    assert frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], **CLOSE)
    # They draw the first of their two sets first, as we draw the generated one.
    theirs = kid_features_to_metric(gen.double(), real.double(), kid_subsets=20, kid_subset_size=300, rng_seed=0,
                                    verbose=False, kid_kernel="poly", kid_kernel_poly_degree=3,
                                    kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0)
    assert float(kid(real, gen, num_subsets=20, max_subset_size=300).mean()) == pytest.approx(
        theirs["kernel_inception_distance_mean"], **CLOSE)
    theirs = isc_features_to_metric(gen.double(), splits=7, shuffle=False)
    ours = inception_score(gen.double().softmax(dim=1), num_splits=7)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), **CLOSE)
    theirs = prc_features_to_metric(gen.double(), real.double(), prc_neighborhood=3, prc_batch_size=300,
                                    save_cpu_ram=True, verbose=False)
    assert precision_recall(real, gen, rounding="float32") == pytest.approx(
        (theirs["precision"], theirs["recall"]), **CLOSE)


def test_clean_fid(features):
    pytest.importorskip("cleanfid", reason="a development dependency: pip install clean-fid")
    from cleanfid import fid

    real, gen = features
    a, b = moments(real), moments(gen)
    try:
        theirs = fid.frechet_distance(a.mean.numpy(), a.cov.numpy(), b.mean.numpy(), b.cov.numpy())
    except TypeError:
        pytest.skip("clean-fid asks SciPy for what newer versions don't have")
    assert frechet_distance(a, b) == pytest.approx(theirs, **CLOSE)
    np.random.seed(0)
    theirs = fid.kernel_distance(real.double().numpy(), gen.double().numpy(), num_subsets=20, max_subset_size=300)
    assert float(kid(real, gen, num_subsets=20, max_subset_size=300).mean()) == pytest.approx(theirs, **CLOSE)


def test_prdc(features):
    pytest.importorskip("prdc", reason="a development dependency: pip install prdc scikit-learn")
    from prdc import compute_prdc

    real, gen = features
    theirs = compute_prdc(real_features=real.double().numpy(), fake_features=gen.double().numpy(), nearest_k=5)
    assert density_coverage(real, gen) == pytest.approx((theirs["density"], theirs["coverage"]), **CLOSE)
