"""Parameter counts and the memory estimate."""

import dataclasses
import re

import pytest
import torch

from dnnlib.util import rough_time
from training import estimate
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.data.dataset import ImageFolderDataset
from training.estimate import Parameters, count_parameters, estimate_memory


def make(resolution=256, device="cuda", **said):
    said = {"cfg": "paper256", "gpus": 8 if device == "cuda" else 1, **said}
    return resolve(Options(**said), DatasetConfig(path="d", resolution=resolution), device=device)


def test_count_takes_parameters_and_no_buffers():
    def build(config):
        with torch.device("meta"):
            return torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(5)

    assert count_parameters(make(), build=build) == Parameters(G=16, D=10)


def test_counts_of_the_published_networks():
    """StyleGAN2 at 256x256: layers of G have weight, bias, noise strength and affine; D's epilogue sees 513 maps."""
    pytest.importorskip("training.networks")
    w, channels = 512, {res: min(16384 // res, 512) for res in (4, 8, 16, 32, 64, 128, 256)}

    def layer(c_in, c_out):
        return 9 * c_in * c_out + c_out + 1 + (w + 1) * c_in

    def torgb(c):
        return 3 * c + 3 + (w + 1) * c

    G = 8 * (w + 1) * w + 16 * 512 + layer(512, 512) + torgb(512)
    D = 4 * channels[256] + (9 * 513 + 1) * 512 + (16 * 512 + 1) * 512 + 513
    for res in (8, 16, 32, 64, 128, 256):
        lower, c = channels[res // 2], channels[res]
        G += layer(lower, c) + layer(c, c) + torgb(c)
        D += (9 * c + 1) * c + (9 * c + 1) * lower + c * lower
    assert count_parameters(make(method="stylegan2")) == Parameters(G=G, D=D) == (24_767_458, 24_001_089)


def test_weights_are_sixteen_bytes_a_parameter_and_four_for_the_average():
    assert estimate_memory(make(), Parameters(G=10, D=100)).weights == 16 * 110 + 40


def activations(**said):
    return estimate_memory(make(**said), Parameters(G=0, D=0)).activations


def test_closed_form_of_the_smallest_case():
    """4x4 images, 8 channels, float32: G keeps 7 maps and D 4 at the only resolution; R1 takes D's graph twice."""
    said = {"resolution": 4, "device": "cpu", "method": "stylegan2", "cbase": 32, "batch": 2}
    size = 8 * 4 * 4 * 4
    assert activations(**said) == 2 * (7 + 4) * size


def test_path_length_on_the_whole_batch_takes_the_graph_of_g_twice():
    config = make(4, device="cpu", method="stylegan2", cbase=32, batch=2)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, pl_batch_shrink=1))
    assert estimate_memory(config, Parameters(G=0, D=0)).activations == 2 * (7 + 7) * 8 * 4 * 4 * 4


def test_what_activations_depend_on():
    base = activations(method="stylegan2")
    assert activations(method="stylegan2", batch=128) == 2 * base
    assert activations(method="stylegan2", fp32=True) > 1.8 * base
    assert activations(method="stylegan2", device="cpu", batch=8, cfg="paper256") > 1.8 * base
    assert activations(method="glead", perceptual="lpips-vgg") > activations(method="glead", perceptual="lpips-alex")
    assert activations(method="glead", res_decoder=128) > activations(method="glead")
    assert activations(method="glead", res_g=4) > activations(method="glead", res_g=32)
    assert activations(method="glead", res_g=1) == activations(method="glead", res_g=1, res_decoder=64)
    assert activations(method="ggdr") >= base


# --- Time on a CPU.


SMALL = dict(resolution=32, device="cpu", cfg="auto", batch=8, batch_gpu=8, cbase=128, cmax=8,
             kimg=100, metrics=())


@pytest.mark.parametrize("said, tasks", [({"method": "stylegan2"}, 0), ({"method": "ggdr"}, 0), (
    {"method": "glead", "perceptual": "random-vgg", "res_g": 8}, 2)])
def test_time_is_that_of_all_phases(monkeypatch, said, tasks):
    """G, D and the perceptual net take 1, 2 and 0.5 s for 8 images."""
    seconds = iter([1.0, 2.0, 0.5])
    monkeypatch.setattr(estimate, "_time", lambda work: (work(), next(seconds))[1])
    config = make(**SMALL, **said)
    above = sum(estimate._generator_maps(config, above=8)) / sum(estimate._generator_maps(config, above=0))
    expected = 4 * 1 + 8 * 2 + 6 * 2 / config.d_reg_interval + tasks * (3 * 0.5 + 2 * 1 * above)
    if config.loss.pl_weight:
        expected += 6 * 1 / 2 / config.g_reg_interval
    assert estimate.estimate_seconds(config, None, done_kimg=20) == (pytest.approx(80_000 / 8 * expected), 0)


def test_long_work_on_a_cpu_is_announced(monkeypatch, tiny_dataset, tiny_net):
    """In one line, with that of metrics; not on a GPU, nor for a few images, nor for minutes."""
    dataset = ImageFolderDataset(tiny_dataset)
    said = dict(SMALL, resolution=16, method="stylegan2")
    monkeypatch.setattr(estimate, "_time", lambda work: 1.0)
    line = estimate.describe_long_work(make(**said), dataset)
    assert re.match(r"on the CPU this training will take about 2 days: a GPU is much faster", line)
    scored = make(**said | dict(metrics=("fid50k_full", "pr50k3"), detector=str(tiny_net), snap=1))
    line = estimate.describe_long_work(scored, dataset)
    assert re.match(r"on the CPU this training will take about 2 days, and its metrics about \d+ (minute|hour)s? more",
                    line)
    assert estimate.describe_long_work(make(**said | dict(kimg=0.05)), dataset) is None
    assert estimate.describe_long_work(make(**said | dict(kimg=0.2)), dataset) is None
    assert estimate.describe_long_work(make(**said), dataset, done_kimg=99.9) is None
    monkeypatch.setattr(estimate, "estimate_seconds", None)     # isn't asked
    assert estimate.describe_long_work(make(method="stylegan2"), dataset) is None


def test_rough_times():
    assert [rough_time(sec) for sec in (10, 89, 600, 5000, 5500, 86400, 200_000)] == [
        "1 minute", "1 minute", "10 minutes", "83 minutes", "2 hours", "24 hours", "2 days"]
