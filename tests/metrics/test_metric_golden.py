"""Metrics against numbers of a trusted implementation."""

import json

import numpy as np
import pytest
import torch

from metrics.feature_stats import FeatureStats
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import Subset, draw_subsets, kernel_distances
from metrics.neighbours import PairDistances
from metrics.perceptual_path_length import path_lengths, slerp, trimmed_mean
from metrics.precision_recall import precision_recall
from paths import SHARED
from tests.metrics.reference_generator import ReferenceGenerator

FOLDER = SHARED / "golden" / "metrics"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden numbers at {FOLDER}")


def load(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as f:
        meta = json.loads(str(f["meta"]))
        return {key: meta if key == "meta" else torch.from_numpy(np.asarray(f[key])) for key in f.files}


def assert_golden(actual, expected):
    actual, expected = torch.as_tensor(actual, dtype=torch.float64), expected.double()
    assert actual.shape == expected.shape
    error = float((actual - expected).abs().max())
    assert error <= 1e-5 * float(expected.abs().max()) + 1e-7, error


def moments_of(x, batch_size=7):
    stats = FeatureStats(keep_moments=True)
    for part in x.split(batch_size):
        stats.append(part)
    return stats.moments()


def test_golden_moments_and_fid():
    data = load("fid_kid_pr")
    real, gen = moments_of(data["in/real"]), moments_of(data["in/gen"])
    for name, moments in (("real", real), ("gen", gen)):
        torch.testing.assert_close(moments.mean, data[f"out64/mean_{name}"], rtol=0, atol=1e-12)
        torch.testing.assert_close(moments.cov, data[f"out64/cov_{name}"], rtol=0, atol=1e-12)
    assert frechet_distance(real, gen) == pytest.approx(float(data["out64/fid"]), rel=1e-9)


def test_golden_fid_of_singular_covariances():
    data = load("fid_rank_deficient")
    fid = frechet_distance(moments_of(data["in/real"]), moments_of(data["in/gen"]))
    assert_golden(fid, data["out64/fid"])
    assert fid == pytest.approx(float(data["out64/fid_symmetric_eigh_reference"]), abs=1e-6)


@pytest.mark.parametrize("case", ["kid_small", "kid_full"])
def test_golden_kid_and_its_draws(case):
    data = load("fid_kid_pr")
    stored = [Subset(g.numpy(), r.numpy()) for g, r in zip(data[f"in/{case}_gen_idx"], data[f"in/{case}_real_idx"])]
    kid = float(kernel_distances(data["in/real"], data["in/gen"], iter(stored)).mean())
    assert kid == pytest.approx(float(data[f"out64/{case}"]), rel=2e-6)

    drawn = draw_subsets(len(data["in/real"]), len(data["in/gen"]), num_subsets=len(stored),
                         max_subset_size=data["meta"][case]["max_subset_size"],
                         random_state=np.random.RandomState({"kid_small": 3, "kid_full": 11}[case]))
    for ours, theirs in zip(drawn, stored, strict=True):
        np.testing.assert_array_equal(ours.gen, theirs.gen)
        np.testing.assert_array_equal(ours.real, theirs.real)


@pytest.mark.parametrize("block_size", [33, 1000])
@pytest.mark.parametrize("rounding", ["float16", "float32"])
def test_golden_precision_recall(rounding, block_size):
    data = load("fid_kid_pr")
    pr = precision_recall(data["in/real"], data["in/gen"], k=3, rounding=rounding, block_size=block_size)
    assert_golden(list(pr), data[f"out/pr_{rounding.replace('float', 'fp')}/k3"])


def test_golden_distances():
    data = load("fid_kid_pr")
    pairs = PairDistances("", data["in/real"], data["in/gen"], k=3, block_size=50)
    distances = torch.zeros_like(data["out/dist_real_gen"])
    for block in pairs.across():
        distances[block.rows, block.cols] = block.distances
    assert_golden(distances, data["out/dist_real_gen"])
    assert_golden(pairs.radii(pairs.real), data["out64/kth_real"])


def test_golden_inception_score():
    data = load("inception_score")
    assert_golden(list(inception_score(data["in/probs"], num_splits=data["meta"]["num_splits"])), data["out64/is"])


def test_golden_slerp_and_trimming():
    data = load("ppl")
    a, b, t = (data[f"in/slerp/{name}"] for name in "abt")
    assert_golden(slerp(a, b, t), data["out/slerp/y"])
    assert_golden(slerp(a, b, t + 1e-4), data["out/slerp/y_eps"])
    assert_golden(slerp(a.double(), b.double(), t.double()), data["out64/slerp/y"])
    assert_golden(trimmed_mean(data["in/trim/dist"]), data["out64/trim/ppl"])


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize("sampling,crop", [("full", False), ("end", False), ("end", True)])
def test_golden_path_lengths(space, sampling, crop):
    data = load("ppl")
    G = ReferenceGenerator({key[3:]: value.double() for key, value in data.items() if key.startswith("sd/")})
    prefix = "in/noise/synthesis."
    noise = {key.removeprefix(prefix): value.double() for key, value in data.items() if key.startswith(prefix)}
    z0, z1 = data["in/z"].double().chunk(2)
    matrix = data[f"in/M_crop{int(crop)}"].double()
    lengths = path_lengths(
        G, lambda img: img.flatten(1) @ matrix, z0=z0, z1=z1, c=None,
        t=data["in/t"].double() * (sampling == "full"), noise=noise, space=space, crop=crop,
    )
    assert_golden(lengths, data[f"out64/sampler/{space}_{sampling}_crop{int(crop)}"])
