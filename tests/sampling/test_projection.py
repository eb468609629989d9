"""Projection: formulas against closed forms, and images that are found again."""

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from sampling import projection
from sampling.projection import ProjectionConfig
from small_networks import make_generator
from training.perceptual import PixelMSE


def test_schedules():
    config = ProjectionConfig()
    for t, expected in [(0, 0), (0.025, 0.05), (0.05, 0.1), (0.5, 0.1), (0.75, 0.1), (0.875, 0.05), (1, 0)]:
        assert projection.learning_rate(t, config) == pytest.approx(expected)
    for t, expected in [(0, 0.05), (0.375, 0.0125), (0.75, 0), (1, 0)]:
        assert projection.w_noise_std(t, 3, config) == pytest.approx(3 * expected)


def test_statistics_of_w():
    G = make_generator()
    stats = projection.w_statistics(G, None, samples=2500, seed=7)
    z = torch.from_numpy(np.random.RandomState(7).randn(2500, 8)).float()
    w = G.mapping(z, torch.zeros(2500, 0))[:, 0]
    assert torch.allclose(stats.mean, w.mean(0), atol=1e-6)
    assert stats.std == pytest.approx(np.sqrt(w.var(0, correction=0).sum().item()), rel=1e-5)


def autocorrelation(noise):
    """At the distance of one pixel, by the Wiener-Khinchin theorem."""
    power = np.abs(np.fft.fft2(noise)) ** 2
    correlation = np.fft.ifft2(power).real / noise.size
    return correlation[0, 1] ** 2 + correlation[1, 0] ** 2


@pytest.mark.parametrize("side, levels", [(4, 1), (8, 1), (16, 2), (64, 4)])
def test_noise_regularization(side, levels):
    noise = np.random.RandomState(side).randn(side, side)
    expected, level = 0, noise
    for _ in range(levels):
        expected += autocorrelation(level)
        level = level.reshape(len(level) // 2, 2, len(level) // 2, 2).sum((1, 3)) / 2  # the mean, doubled
    assert projection.noise_regularization(torch.from_numpy(noise)).item() == pytest.approx(expected)


def test_noise_regularization_of_patterns():
    constant = torch.full([32, 32], 0.5)  # 2 a^4 on the first level, and 16 times as much on each further one
    assert projection.noise_regularization(constant).item() == pytest.approx(2 * 0.5**4 * (1 + 16 + 256))
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    stripes, board = (x % 2 * 2.0 - 1), ((x + y) % 2 * 2.0 - 1)  # anti-correlated; all gone on the next level
    assert projection.noise_regularization(stripes).item() == projection.noise_regularization(board).item() == 2


def test_normalized_noise():
    noise = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 5
    expected = (noise - noise.mean()) / noise.std(correction=0)
    projection.normalize_noise(noise)
    assert torch.allclose(noise, expected, atol=1e-5)


def with_noise(strength):
    G = make_generator()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(strength)
    return G


def image_of_known_w(G):
    w = G.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 0))[:, 0]
    return w, G.synthesis(w[:, None].repeat(1, 6, 1), noise_mode="const")


def run(G, target, **options):
    config = ProjectionConfig(**dict(num_steps=40, w_samples=1000, seed=0) | options)
    return projection.project(G, target, perceptual=PixelMSE(), config=config)


@pytest.fixture(scope="module")
def found():
    G = with_noise(0.2)
    _, target = image_of_known_w(G)
    return G, target, run(G, target)


def test_a_generated_image_is_found_again():
    """Without noise, nothing but w matters: error and w are found to a ten-thousandth and a hundredth."""
    G = with_noise(0)
    w, target = image_of_known_w(G)
    result = run(G, target, num_steps=120)
    assert result.distance < 1e-4 * result.start_distance
    assert (result.w_steps[-1] - w).norm() < 1e-2 * (result.w_mean - w).norm()


def test_an_image_with_noise_is_found_again():
    G = with_noise(0.02)
    w, target = image_of_known_w(G)
    result = run(G, target, num_steps=60)
    assert result.distance < 0.03 * result.start_distance
    assert (result.w_steps[-1] - w).norm() < 0.1 * (result.w_mean - w).norm()


def test_distances_are_those_of_the_images(found):
    G, target, result = found
    for w, expected in ((result.w_steps[-1], result.distance), (result.w_mean, result.start_distance)):
        image = projection.synthesize_with(G, w[None], result.noise)
        assert (image - target).square().mean().item() == pytest.approx(expected, rel=1e-4)
    assert result.distance < 0.7 * result.start_distance


def test_noise_maps_stay_white(found):
    G, _, result = found
    assert sorted(result.noise) == sorted(n for n, _ in G.synthesis.named_buffers() if n.endswith("noise_const"))
    for noise in result.noise.values():
        assert abs(noise.mean().item()) < 1e-5 and noise.square().mean().item() == pytest.approx(1, abs=1e-4)
        assert projection.noise_regularization(noise).item() < 1e-2
    assert all(noise.std().item() != 0 for _, noise in G.synthesis.named_buffers()), "G's own maps are untouched"


def test_the_seed_decides(found):
    G, target, _ = found
    first, again, other = (run(G, target, num_steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.w_steps, again.w_steps) and not torch.equal(first.w_steps, other.w_steps)
    assert all(torch.equal(first.noise[name], again.noise[name]) for name in first.noise)


def test_large_images_are_compared_at_256_pixels():
    img = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    expected = img.reshape(1, 3, 256, 2, 256, 2).mean((3, 5))
    assert torch.allclose(projection._compared(img), expected, atol=1e-6)
    assert projection._compared(expected) is expected


def test_files(tmp_path, found):
    G, _, result = found
    ws = result.w_steps[-1:, None].repeat(1, 6, 1).numpy()
    noise = {name: value.numpy() for name, value in result.noise.items()}
    projection.save_projected_w(tmp_path / "w.npz", projection.ProjectedW(ws, noise))
    loaded = projection.load_projected_w(tmp_path / "w.npz", G)
    assert np.array_equal(loaded.ws, ws) and all(np.array_equal(loaded.noise[name], noise[name]) for name in noise)
    for bad in ({"b4.conv1.noise_const": np.zeros([8, 8])}, {"b512.conv1.noise_const": np.zeros([512, 512])}):
        projection.save_projected_w(tmp_path / "bad.npz", projection.ProjectedW(ws, bad))
        with pytest.raises(UserError, match="which this network has no place for"):
            projection.load_projected_w(tmp_path / "bad.npz", G)
