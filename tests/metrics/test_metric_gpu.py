"""Scores on a GPU are those of the CPU. (The same on the CPU alone, to try out the tests: GLEAD_TEST_DEVICE=cpu.)"""

import os

import numpy as np
import pytest
import torch

from metrics import metric_main
from metrics.detectors import load_feature_net
from metrics.kernel_inception_distance import draw_subsets, kernel_distances
from metrics.options import MetricOptions, Shared
from metrics.perceptual_path_length import compute_ppl
from metrics.precision_recall import precision_recall
from metrics.sampling import draw, keyed_noise
from tests.metrics.metric_fakes import ArrayDataset, random_images, save_net
from tests.metrics.reference_generator import random_generator

DEVICE = os.environ.get("GLEAD_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu] * (DEVICE != "cpu")


@pytest.fixture
def G():
    """Without noise, which each device draws for itself."""
    G = random_generator()
    for name, buffer in G.named_buffers():
        if name.endswith("noise_strength"):
            buffer.zero_()
    return G


@pytest.fixture
def detector(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    return str(save_net(tmp_path / "small-net.pt"))


def test_scores_are_those_of_the_cpu(G, detector):
    """Several metrics of one network, from images that worker processes read, by a TorchScript net."""
    dataset, scores = ArrayDataset(random_images(1100)), {}
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for device in ("cpu", DEVICE):
        metrics = ("fid1k_full", "pr1k3_full", "is1k")
        shared = Shared(metrics)
        results = [metric_main.calc_metric(
            metric, G=G, dataset=dataset, detector=detector, device=device, batch_size=48, workers=2, cache=False,
            shared=shared).results for metric in metrics]
        scores[device] = {name: value for result in results for name, value in result.items()}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == switches
    assert len(scores[DEVICE]) == 5 and next(G.buffers()).device.type == "cpu"
    assert scores[DEVICE] == pytest.approx(scores["cpu"], rel=1e-2, abs=5e-3)


def test_path_lengths_are_those_of_the_cpu(G, detector):
    dataset, lengths = ArrayDataset(random_images(16)), {}
    for device in ("cpu", DEVICE):
        net = load_feature_net(detector, "lpips", device=device)
        opts = MetricOptions(metric="ppl", G=G.to(device), dataset=dataset, device=torch.device(device), batch_size=48)
        with metric_main.exact_float32():
            for space in ("w", "z"):
                result = compute_ppl(opts, net, space=space, sampling="full", crop=False, num_gen=100)
                lengths[device, space] = result["ppl"]
    for space in ("w", "z"):  # differences of steps of 1e-4 are short of digits
        assert lengths[DEVICE, space] == pytest.approx(lengths["cpu", space], rel=5e-2)


def test_kernel_distances_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    real, gen = (torch.randn(300, 64, generator=generator) + shift for shift in (0, 0.1))
    expected, actual = (
        kernel_distances(real, gen, draw_subsets(300, 300, random_state=np.random.RandomState(0), max_subset_size=200,
                                                 num_subsets=5), device=device) for device in ("cpu", DEVICE))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_precision_and_recall_do_without_room_for_all_features(monkeypatch):
    """Then blocks of them go to the device in turn."""
    generator = torch.Generator().manual_seed(0)
    real, gen = (torch.randn(300, 8, generator=generator) + shift for shift in (0, 0.5))
    expected = precision_recall(real, gen)
    for free in (1 << 40, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))  # noqa: B023
        assert precision_recall(real, gen, block_size=70, device=DEVICE) == pytest.approx(expected, abs=0.01)


def test_noise_belongs_to_the_seed(G):
    """Whatever else is drawn; other seeds have other noise."""
    seeds = draw(G, ArrayDataset(random_images(4)), range(6), seed=0).noise_seeds
    together = keyed_noise(G, seeds, device=torch.device(DEVICE))
    alone = keyed_noise(G, seeds[4:5], device=torch.device(DEVICE))
    assert together and all(torch.equal(noise[4:5], alone[name]) for name, noise in together.items())
    assert all(noise.device.type == DEVICE and len(set(noise[:, 0, 0, 0].tolist())) == 6 for noise in together.values())
