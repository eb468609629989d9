"""Polarity sampling: Jacobians by brute force, and what is favoured."""

import errno

import numpy as np
import pytest
import torch

from metrics.metric_main import calc_metric
from metrics.polarity import Polarity, choose, log_volume, singular_values
from tests.metrics.metric_fakes import ArrayDataset, random_images, save_net
from tests.metrics.reference_generator import random_generator


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("size", [6, 80])
def test_singular_values_are_those_of_the_jacobian(size):
    """All of a few, and the largest of many, where they come from products with vectors alone."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.05, size, dtype=torch.float64).square()
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q * scale
    matrix = torch.randn(2 * size, size, generator=generator, dtype=torch.float64) @ basis.T / size**0.5

    def f(z):
        return (torch.tanh(z @ matrix.T) + 0.1 * z.square().sum(dim=1, keepdim=True))[:, :, None]

    z = torch.randn(size, generator=generator, dtype=torch.float64) * 0.3
    jacobian = torch.func.jacrev(lambda z: f(z[None])[0, :, 0])(z)
    expected = torch.linalg.svdvals(jacobian)
    found = singular_values(f, z, k=20)
    torch.testing.assert_close(found, expected[:20], rtol=1e-9 if size == 6 else 1e-2, atol=1e-9)


def test_log_volume_of_a_generator():
    G = random_generator()
    z, c = torch.randn(8), torch.zeros(0)
    jacobian = torch.func.jacrev(lambda z: G.synthesis(G.mapping(z[None]), noise_mode="const").flatten())(z)
    values = torch.linalg.svdvals(jacobian.double())
    assert values[-1] < 1e-3 * values[0], "the length of z doesn't matter"
    assert log_volume(G, z, c) == pytest.approx(float(values[:-1].log().sum()), rel=1e-3)


def test_rho_picks_modes_and_anti_modes():
    """z stays as it is below 0, and becomes 3 z above 0, where the density is a third of what it was."""
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def f(z):
        return torch.where(z > 0, 3 * z, z)

    volumes = np.log([float(singular_values(f, row)[0]) for row in z])
    assert set(np.round(np.exp(volumes), 9)) == {1.0, 3.0}

    def share(rho):
        chosen = choose(volumes, rho, 4000, np.random.RandomState(1))
        return float((z[chosen] > 0).double().mean())

    assert share(0) == pytest.approx(0.5, abs=0.03)
    assert share(1) == pytest.approx(0.75, abs=0.03) and share(-1) == pytest.approx(0.25, abs=0.03)
    assert share(1000) == 1 and share(-1000) == 0
    assert (choose(volumes, 2, 9, np.random.RandomState(3)) == choose(volumes, 2, 9, np.random.RandomState(3))).all()


def test_scores_of_resampled_images(tmp_path, monkeypatch, capsys):
    detector = save_net(tmp_path / "net.pt")
    dataset = ArrayDataset(random_images(50))

    def score(**polarity):
        return calc_metric("fid1k_full", G=random_generator(), dataset=dataset, detector=detector, workers=0,
                           **polarity)

    plain, modes = score(), score(polarity=Polarity(-1, 20))
    assert modes.results != plain.results and modes.polarity == {"rho": -1, "num_candidates": 20}
    assert "polarity" not in plain
    monkeypatch.setattr("metrics.features.log_volume", lambda *args: pytest.fail("computed again"))
    assert score(polarity=Polarity(-1, 20)).results == modes.results

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("metrics.features.log_volume", lambda *args: 0.0)
    monkeypatch.setattr("metrics.polarity.atomic_write", full)
    assert score(polarity=Polarity(-1, 10)).results
    assert "Log volumes can't be cached in " in capsys.readouterr().err
