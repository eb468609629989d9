"""Rivals: their terms against closed forms, compositions, and that each trains and resumes bit by bit."""

import json

import pytest
import torch
from torch.nn.functional import softplus

from benchmarks.soak import small_config
from dnnlib.util import UserError
from tests.training.test_extending import assert_same, train
from torch_utils import training_stats
from training.build import build_networks
from training.config.options import Options
from training.config.resolve import resolve
from training.config.rivals import RIVALS, full_name, read_method
from training.config.schema import DatasetConfig, from_json, to_json
from training.loss import Batch, StyleGAN2Loss
from training.rivals import RIVAL_CLASSES, build_extras
from training.tasks import Shown

DATASET = DatasetConfig(path="d", resolution=16)
N = 8


def configure(method, **said):
    said = {"cbase": 64, "cmax": 8, "map_depth": 1, "aug": "noaug", "mbstd_group": 1, "batch": N,
            "reg_loss_real": "mse", "reg_loss_fake": "cos" if "ggdr" in method else "mse", "fp32": True, **said}
    return resolve(Options(method=method, **said), DATASET, device="cpu")


class Parts:
    """Networks, losses and a batch of a composition, and what its losses report."""

    def __init__(self, method, **said):
        self.config = configure(method, **said)
        torch.manual_seed(0)
        self.G, self.D = (net.requires_grad_(False) for net in build_networks(self.config))
        no_labels = torch.zeros([N, 0])
        self.batch = Batch(torch.rand([N, 3, 16, 16]) * 2 - 1, no_labels, torch.randn([N, 512]), no_labels)
        self.loss = StyleGAN2Loss(self.G, self.D, config=self.config.loss,
                                  **build_extras(self.config, self.G, self.D))
        self.rivals = {rival.kind: rival for rival in self.loss.rivals}
        self.fake = self.G.synthesis(self.G.mapping(self.batch.gen_z, no_labels))
        self.shown = Shown(self.fake, self.fake, no_labels, {}, self.batch.gen_z, None)
        self.reported = {}

    def run(self, phase, monkeypatch, seed=1):
        """The terms of a phase."""
        monkeypatch.setattr(training_stats, "report", lambda name, value: self.reported.setdefault(name, value))
        torch.manual_seed(seed)
        return list(getattr(self.loss, phase)(self.batch))


# ----------------------------------------------------------------------------------------------------------------------
# Compositions.


@pytest.mark.parametrize("said, name", [
    ("stylegan2", "stylegan2"), ("ggdr+glead", "glead+ggdr"), ("centring+glead", "glead+centring"),
    ("zcr+ggdr+centring+glead", "glead+ggdr+centring+zcr"), ("wgan-gp", "stylegan2+wgan-gp"),
    ("relativistic+glead", "glead+relativistic"), ("zcr+stylegan2", "stylegan2+zcr"),
])
def test_the_order_of_a_composition_does_not_matter(said, name):
    config = configure(said)
    assert full_name(to_json(config)) == name == full_name(to_json(configure(name)))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("said, options, problem", [
    ("gan", None, "'gan' is no method: expected one of stylegan2, ggdr, glead, glead\\+ggdr, and, joined by"),
    ("glead+zrc", None, "'zrc' is no method"),
    ("glead+", None, "'' is no method"),
    ("stylegan2+glead", None, "stylegan2\\+glead names more than one method"),
    ("glead+zcr+zcr", None, "names the same twice"),
    ("relativistic+wgan-gp", None, "relativistic and wgan-gp both change the adversarial loss: leave out one"),
    ("stylegan2+zcr", "zcr.gen=-1", "--rival-options: zcr.gen is '-1', expected a number from 0 to 1000"),
    ("stylegan2+zcr", "zcr.gen=nan", "zcr.gen is 'nan', expected a number from 0 to 1000"),
    ("stylegan2+zcr", "zcr.gen", "zcr.gen is '', expected a number from 0 to 1000"),
    ("stylegan2+zcr", "centring.weight=1", "'centring.weight=1' sets no option of this --method: expected NAME=NUMBER"),
    ("stylegan2", "zcr.gen=1", "'zcr.gen=1' sets no option of this --method: expected none"),
])
def test_what_can_not_be_composed_is_refused(said, options, problem):
    with pytest.raises(UserError, match=problem) as caught:
        configure(said, rival_options=options)
    assert "\n" not in str(caught.value)


def test_options_of_rivals_reach_them():
    parts = Parts("stylegan2+zcr+centring", rival_options="zcr.gen=0.25,centring.weight=2")
    assert parts.rivals["zcr"].options == {"real": 10, "fake": 10, "dis": 5, "gen": 0.25, "sigma": 0.03}
    assert parts.rivals["centring"].options == {"weight": 2}
    assert "rivals" not in to_json(configure("glead"))["loss"]


def test_an_adversarial_loss_is_a_part_of_the_method():
    assert configure("stylegan2", adversarial="relativistic") == configure("stylegan2+relativistic")
    assert configure("wgan-gp").loss.r1_gamma == 10 and configure("wgan-gp", gamma=2.0).loss.r1_gamma == 2
    with pytest.raises(UserError, match="--adversarial is logistic, but --method=stylegan2.wgan-gp means wgan-gp"):
        configure("wgan-gp", adversarial="logistic")


def test_every_class_has_a_row():
    assert set(RIVAL_CLASSES) == {name for name, row in RIVALS.items() if row.options}
    for name in RIVALS:
        method = RIVALS[name].methods[0]
        assert read_method(f"{name}+{method}") == (method, (name,))


# ----------------------------------------------------------------------------------------------------------------------
# Terms.


def test_relativistic_pairs(monkeypatch):
    parts = Parts("relativistic", adversarial="relativistic")
    monkeypatch.setattr(parts.loss, "_map", lambda z, c, units=None: parts.G.mapping(z, c))
    (d,) = parts.run("d_main", monkeypatch)
    (g,) = parts.run("g_main", monkeypatch)
    real, fake = (parts.D(img, parts.batch.real_c) for img in (parts.batch.real_img, parts.fake))
    torch.testing.assert_close(d, softplus(fake - real).mean())
    torch.testing.assert_close(g, softplus(real - fake).mean())
    monkeypatch.setattr(parts.loss, "D", lambda img, c: img.sum([1, 2, 3])[:, None] * 0.5)
    r1, r2 = parts.run("d_penalty", monkeypatch)
    size = 0.25 * 3 * 16 * 16 * parts.config.loss.r1_gamma / 2      # of a linear D, |dD/dx|^2 is a constant
    assert r1.item() == pytest.approx(size) and r2.item() == pytest.approx(size)


def test_centring_is_added_to_the_loss_of_pairs(monkeypatch):
    plain, centred = (Parts(method, rival_options=options) for method, options in (
        ("stylegan2", None), ("stylegan2+centring", "centring.weight=2")))
    without = sum(plain.run("d_main", monkeypatch))
    (whole,) = centred.run("d_main", monkeypatch)
    fake, real = (centred.reported[f"Loss/scores/{kind}"] for kind in ("fake", "real"))
    torch.testing.assert_close(whole - without, 2 * (fake + real).square().mean())


def test_wgan_gp_of_a_linear_discriminator(monkeypatch):
    """Its gradient is the same everywhere, so the penalty has a closed form."""
    parts = Parts("wgan-gp")
    linear = lambda img, c: img.sum([1, 2, 3])[:, None] * 0.5
    monkeypatch.setattr(parts.loss, "D", linear)
    (term,) = parts.run("d_penalty", monkeypatch)
    assert term.item() == pytest.approx(10 * (0.5 * (3 * 16 * 16)**0.5 - 1)**2)
    monkeypatch.setattr(parts.loss, "_map", lambda z, c, units=None: parts.G.mapping(z, c))
    fake_term, real_term = parts.run("d_main", monkeypatch)
    torch.testing.assert_close(fake_term, linear(parts.fake, None).mean())
    torch.testing.assert_close(real_term, -linear(parts.batch.real_img, None).mean())
    seen = []
    monkeypatch.setattr(parts.loss, "D", lambda img, c: (seen.append(img.detach()), linear(img, c))[1])
    parts.run("d_penalty", monkeypatch)
    share = (seen[0] - parts.fake) / (parts.batch.real_img - parts.fake)
    share = share.flatten(1).median(1).values
    torch.testing.assert_close(seen[0], parts.fake.lerp(parts.batch.real_img, share[:, None, None, None]),
                               rtol=1e-3, atol=1e-3)
    assert 0 < share.min() < share.max() < 1


def test_zcr_by_brute_force():
    """With a linear D, the terms follow from the images that it was shown."""
    parts = Parts("stylegan2+zcr", rival_options="zcr.real=2,zcr.fake=3,zcr.dis=5,zcr.gen=7,zcr.sigma=0.5")
    zcr, seen = parts.rivals["zcr"], []
    weights = torch.randn([1, 3, 16, 16])

    def judge(img, c):
        seen.append(img)
        return parts.loss._score(img, c)._replace(logits=(img * weights).sum([1, 2, 3])[:, None])

    out = judge(parts.fake, None)
    fake = zcr.d("fake", out, parts.shown, judge)
    score = lambda img: (img * weights).sum([1, 2, 3])
    own, moved, first, second = map(score, seen)
    torch.testing.assert_close(fake, 3 * (own - moved).square() + 5 * (first - second).square())
    assert first.ne(second).all()
    real = zcr.d("real", out, parts.shown, judge)
    torch.testing.assert_close(real, 2 * (own - score(seen[4])).square())
    g = zcr.g(out, parts.shown, judge)
    assert len(seen) == 5 and g.shape == (N,) and (g < 0).all()
    torch.manual_seed(3)
    pair = zcr._neighbours(parts.shown)
    torch.manual_seed(3)
    torch.testing.assert_close(zcr.g(out, parts.shown, judge), -7 * (pair[0] - pair[1]).square().mean([1, 2, 3]))


def test_images_are_moved_and_mirrored():
    from training.rivals.consistency import shift_and_flip

    img = torch.arange(16.).repeat(N * 4, 3, 16, 1)
    torch.manual_seed(0)
    out = shift_and_flip(img)
    steps = out[:, 0, 0, 9] - out[:, 0, 0, 8]     # of columns in the middle
    assert out.shape == img.shape and set(steps.tolist()) == {1.0, -1.0}
    offsets = {int(value) for value in (out[:, 0, 0, 8] - torch.where(steps > 0, 8, 7)).tolist()}
    assert offsets == {-2, -1, 0, 1, 2}


# ----------------------------------------------------------------------------------------------------------------------
# Training.

TRAINED = {     # A composition, and statistics of its own.
    "stylegan2+relativistic": ["Loss/r2_penalty"],
    "glead+centring+zcr": ["Loss/D/centring", "Loss/D/fake_zcr", "Loss/D/real_zcr", "Loss/G/zcr"],
    "stylegan2+wgan-gp": ["Loss/gp_penalty"],
}


@pytest.mark.parametrize("method", TRAINED)
def test_rivals_train_and_resume(method, small_grids, tiny_dataset, tmp_path):
    config = small_config(tiny_dataset, f"--method={method}", "--kimg=0.016", "--aug=ada", "--reg_loss_fake=mse")
    whole, parts = train(config, tmp_path)
    assert_same(whole, parts)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(
        *(torch.utils._pytree.tree_leaves(state["loss"]) for state in (whole, parts))))
    records = [json.loads(line) for line in (tmp_path / "whole" / "stats.jsonl").read_text().splitlines()]
    for name in TRAINED[method]:
        assert any(name in record and record[name]["std"] > 0 for record in records), name
    assert all(torch.isfinite(value).all() for value in whole["networks"]["G_ema"].values())
