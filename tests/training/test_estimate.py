"""Parameter counts and the memory estimate."""

import dataclasses
import re

import pytest

from dnnlib.util import rough_time
from torch_utils import training_stats
from toy_networks import ToyGenerator
from training import estimate
from training.build import build_networks
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.data.dataset import ImageFolderDataset
from training.estimate import Parameters, count_parameters, estimate_memory, trace_activations


def make(resolution=256, device="cuda", **said):
    said = {"cfg": "paper256", "gpus": 8 if device == "cuda" else 1, **said}
    return resolve(Options(**said), DatasetConfig(path="d", resolution=resolution), device=device)


def toy(config):
    return dataclasses.replace(
        config,
        G=dataclasses.replace(config.G, class_name="toy_networks.ToyGenerator"),
        D=dataclasses.replace(config.D, class_name="toy_networks.ToyDiscriminator"),
    )


def test_networks_of_another_kind_are_estimated():
    """In closed form: what each layer of `toy_networks` keeps for its gradient, for two images in each phase."""
    config = toy(make(16, device="cpu", method="stylegan2", batch=2))
    assert type(build_networks(config)[0]) is ToyGenerator
    pixels, z = 3 * 16 * 16, 512
    G, D = (z + 1) * z + (z + 1) * pixels, (pixels + 1) * 32 + 33
    assert count_parameters(config) == Parameters(G, D)
    training_stats.collect()    # what other tests reported
    found = trace_activations(config)
    of_G = z + z + z + pixels               # Inputs of two linear layers, of tanh's derivative, and of sin.
    assert found["Gmain"] == 2 * 4 * (of_G + 32 + 1)    # D is frozen: two softplus keep their inputs.
    assert found["Dmain"] == 2 * 4 * (pixels + 32 + 32 + 1)
    assert list(found) == ["Gmain", "Greg", "Dmain", "Dreg"] and min(found.values()) > 0
    assert estimate_memory(config, Parameters(G, D)).activations == max(found.values())
    assert training_stats.collect() == {}, "the trace reports nothing"


def test_counts_of_the_published_networks():
    """StyleGAN2 at 256x256: layers of G have weight, bias, noise strength and affine; D's epilogue sees 513 maps."""
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
    config = toy(make(16, device="cpu", method="stylegan2", batch=2))
    assert estimate_memory(config, Parameters(G=10, D=100)).weights == 16 * 110 + 40


def test_activations_of_the_published_networks():
    """Near a count by hand: at each resolution, seven feature maps in G; in D four, and three at half the resolution.
    R1 takes D's graph more than once, and at most twice."""
    found = trace_activations(make(method="stylegan2"))
    maps = {res: min(16384 // res, 512) * res**2 * (2 if res > 16 else 4) for res in (4, 8, 16, 32, 64, 128, 256)}
    G = 7 * sum(maps.values())
    D = sum(4 * size + 3 * smaller for smaller, size in zip([0, *maps.values()], maps.values()))
    assert found["Gmain"] == pytest.approx(8 * (G + D), rel=0.1)
    assert 8 * D < found["Dreg"] < 8 * 2 * D


def test_what_activations_depend_on():
    def in_dmain(**said):
        said = dict(method="glead", perceptual="lpips-vgg", cbase=1024, cmax=64, batch=8) | said
        return trace_activations(make(32, **said))["Dmain"]

    base = in_dmain(res_g=16)
    assert in_dmain(res_g=16, fp32=True) > 1.3 * base
    assert in_dmain(res_g=16, perceptual="lpips-alex") < base < in_dmain(res_g=4)


# --- Time on a CPU.


SMALL = dict(resolution=32, device="cpu", cfg="auto", batch=8, batch_gpu=8, cbase=128, cmax=8,
             kimg=100, metrics=())


@pytest.mark.parametrize("said, tasks", [({"method": "stylegan2"}, 0), ({"method": "ggdr"}, 1), (
    {"method": "glead", "perceptual": "random-vgg", "res_g": 8}, 2)])
def test_time_is_that_of_all_phases(monkeypatch, said, tasks):
    """G, D and each task take 1, 2 and 0.5 s for 8 images. Two tasks of a kind are timed once."""
    seconds = iter([1.0, 2.0, *[0.5] * (tasks > 0)])
    monkeypatch.setattr(estimate, "_time", lambda work: (work(), next(seconds))[1])
    config = make(**SMALL, **said)
    expected = 4 * 1 + 8 * 2 + 6 * 2 / config.d_reg_interval + tasks * 2 * 0.5
    if config.loss.pl_weight:
        expected += 6 * 1 / 2 / config.g_reg_interval
    assert estimate.estimate_seconds(config, None, done_kimg=20) == (pytest.approx(80_000 / 8 * expected), 0)
    assert next(seconds, None) is None


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
