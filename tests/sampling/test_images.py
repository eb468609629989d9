"""Latents, paths and frames, against definitions and second routes."""

import numpy as np
import pytest
import torch

from sampling import images as sampling
from small_networks import make_generator


def test_ws_are_those_of_the_mapping_network():
    G = make_generator(c_dim=3)
    label = np.array([0, 1, 0], np.float32)
    z = sampling.seed_latents([3, 85, 3], 8)
    assert torch.equal(z[0], z[2]) and torch.equal(z[1], torch.from_numpy(np.random.RandomState(85).randn(8)).float())
    ws = sampling.map_latents(G, z, label=label, truncation=sampling.Truncation(0.5, 2), batch=2)
    full = G.mapping(z, torch.from_numpy(label).repeat(3, 1))
    expected = torch.cat([(full[:, :2] + G.mapping.w_avg) / 2, full[:, 2:]], dim=1)
    assert torch.allclose(ws, expected, atol=1e-6)


def test_random_noise_is_that_of_its_seed():
    G = make_generator()
    ws = sampling.map_latents(G, sampling.seed_latents([1, 2, 3], 8))
    together = sampling.synthesize(G, ws, noise_mode="random", noise_seeds=[5, 6, 7], batch=3)
    alone = sampling.synthesize(G, ws[1:2], noise_mode="random", noise_seeds=[6])
    assert np.array_equal(together[1:2], alone) and not np.array_equal(alone, sampling.synthesize(G, ws[1:2]))


def test_w_path_meets_its_keys_and_closes_smoothly():
    keys = torch.randn(5, 6, 12, generator=torch.Generator().manual_seed(0))
    path = sampling.w_path(keys)
    assert torch.equal(path(np.arange(6.0)), keys[[0, 1, 2, 3, 4, 0]])
    h = 1e-3
    speed = [(path(np.array([t + h])) - path(np.array([t]))).double() / h for t in (0, 5 - h)]
    assert (speed[0] - speed[1]).abs().max() < 0.05 * speed[0].abs().max()
    two = sampling.w_path(keys[:2])(np.array([0.5, 1.5]))  # there and back
    assert torch.allclose(two[0], two[1], atol=1e-6) and torch.allclose(two[0], keys[:2].mean(0), atol=1e-6)


def test_w_path_follows_a_circle():
    angles = torch.arange(8) * (2 * np.pi / 8)
    path = sampling.w_path(torch.stack([angles.cos(), angles.sin()], dim=1)[:, None])
    t = np.linspace(0, 8, 50)
    expected = np.stack([np.cos(t * np.pi / 4), np.sin(t * np.pi / 4)], axis=1)
    assert np.abs(path(t)[:, 0].numpy() - expected).max() < 5e-3


def test_z_path_runs_along_great_circles():
    keys = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    path = sampling.z_path(keys, lambda z: z)
    assert torch.allclose(path(np.arange(4.0)), keys[[0, 1, 2, 0]], atol=1e-6)
    points = path(np.linspace(1, 2, 11)[:-1]).double()
    points = torch.nn.functional.normalize(torch.cat([points, keys[2:].double()]), dim=1)
    steps = torch.acos((points[1:] * points[:-1]).sum(1))
    whole = torch.acos((points[0] * points[-1]).sum())
    assert torch.allclose(steps, whole / 10, atol=1e-6), "equal angles, which add up to the shortest way"
    same = sampling.z_path(keys[[0, 0]], lambda z: z)(np.array([0, 0.3, 1.7]))
    assert torch.allclose(same, keys[[0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_frames_of_a_grid_of_paths(batch):
    G = make_generator()
    ws = sampling.map_latents(G, sampling.seed_latents(range(6), 8))
    paths = [sampling.w_path(keys) for keys in ws.split(3)]
    frames = list(sampling.frames_along(G, paths, num_keys=3, frames_per_key=2, grid=(2, 1), batch=batch))
    assert len(frames) == 6 and frames[0].shape == (32, 16, 3) and frames[0].dtype == np.uint8
    for key in range(3):
        expected = sampling.synthesize(G, ws[[key, 3 + key]]).astype(int).reshape(32, 16, 3)
        assert np.abs(frames[2 * key] - expected).max() <= 1  # rounding, which the batch may tip


def test_psnr():
    black = np.zeros([4, 4, 3], np.uint8)
    assert sampling.psnr(black, black) == float("inf") and sampling.psnr(black, black + 255) == 0
    assert sampling.psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


def test_pixels_and_tensors_invert_each_other():
    pixels = np.random.RandomState(0).randint(0, 256, [2, 4, 4, 3]).astype(np.uint8)
    assert np.array_equal(sampling.to_pixels(sampling.to_tensor(pixels)), pixels)
