"""Rivals: their terms against closed forms, compositions, and that each trains and resumes bit by bit."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from benchmarks.soak import small_config
from dnnlib.util import UserError
from tests.training.test_extending import assert_same, train
from torch_utils import training_stats
from training.augment import AugmentOutput
from training.build import build_networks
from training.config.options import Options
from training.config.resolve import resolve
from training.config.rivals import RIVALS, full_name, read_method
from training.config.schema import DatasetConfig, from_json, to_json
from training.estimate import count_parameters, estimate_memory, estimate_seconds
from training.loss import Batch, StyleGAN2Loss
from training.rivals import RIVAL_CLASSES, build_extras
from training.rivals.contrastive import random_view
from training.tasks import Shown, reconstruct

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
        self.rivals = {rival.kind: rival for rival in self.loss.judge.rivals}
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
    ("ar+contrad", None, "ar and contrad both change D's auxiliary head: leave out one of them"),
    ("ggdr+edited", None, "edited can't be added to ggdr: it goes with glead"),
    ("stylegan2+zcr", "zcr.gen=-1", "--rival-options: zcr.gen is '-1', expected a number from 0 to 1000"),
    ("stylegan2+zcr", "zcr.gen=1,zcr.gen=2", "--rival-options: zcr.gen is set twice: leave out one of them"),
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
    monkeypatch.setattr(parts.loss.judge, "D", lambda img, c: img.sum([1, 2, 3])[:, None] * 0.5)
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
    monkeypatch.setattr(parts.loss.judge, "D", linear)
    (term,) = parts.run("d_penalty", monkeypatch)
    assert term.item() == pytest.approx(10 * (0.5 * (3 * 16 * 16)**0.5 - 1)**2)
    monkeypatch.setattr(parts.loss, "_map", lambda z, c, units=None: parts.G.mapping(z, c))
    fake_term, real_term = parts.run("d_main", monkeypatch)
    torch.testing.assert_close(fake_term, linear(parts.fake, None).mean())
    torch.testing.assert_close(real_term, -linear(parts.batch.real_img, None).mean())
    seen = []
    monkeypatch.setattr(parts.loss.judge, "D", lambda img, c: (seen.append(img.detach()), linear(img, c))[1])
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
        return parts.loss.judge._score(img, c)._replace(logits=(img * weights).sum([1, 2, 3])[:, None])

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


def test_rotations_are_told_by_their_number(monkeypatch):
    """A head that looks at the corner of an image that it knows makes no error."""
    parts = Parts("stylegan2+ar", rival_options="ar.dis=2,ar.gen=3")
    ar, img = parts.rivals["ar"], torch.zeros([N, 3, 16, 16])
    img[:, :, 0, 15] = 1    # turned by k quarters against the clock, it is in corner k

    def judge(turned, c, decode):
        corners = torch.stack([turned[:, 0, y, x] for y, x in ((0, 15), (0, 0), (15, 0), (15, 15))], dim=1)
        assert decode and (corners.sum(1) == 1).all()
        return parts.loss.judge._score(turned, c)._replace(aux=100 * corners)

    shown = parts.shown._replace(img=img)
    assert ar.d("fake", None, shown, judge) is None
    assert ar.d("real", None, shown, judge).abs().max() < 1e-6 and ar.g(None, shown, judge).abs().max() < 1e-6
    wrong = lambda turned, c, decode: judge(turned, c, decode)._replace(aux=torch.zeros([N, 4]))
    torch.testing.assert_close(ar.d("real", None, shown, wrong), torch.full([N], 2 * np.log(4.0), dtype=torch.float32))
    torch.testing.assert_close(ar.g(None, shown, wrong), torch.full([N], 3 * np.log(4.0), dtype=torch.float32))
    out = parts.D.run(parts.fake, parts.batch.gen_c)
    features = parts.D._encode(parts.fake)[2][4]
    torch.testing.assert_close(out.aux, parts.D.aux(features.mean([2, 3])))


def test_statistics_are_mixed():
    from training.rivals.consistency import mix_statistics

    h, other = torch.randn([N, 4, 32, 32]) * 3 + 1, torch.arange(N).roll(1)
    share = torch.linspace(0, 1, N)[:, None, None, None]
    out = mix_statistics(h, other, share)
    torch.testing.assert_close(out[-1], h[-1])
    for of in (torch.mean, lambda x, dim: x.std(dim)):      # both are linear in the share
        own = of(h, [2, 3])
        torch.testing.assert_close(of(out, [2, 3]), own[other].lerp(own, share[:, :, 0, 0]), rtol=1e-3, atol=1e-3)


def test_fsmr_compares_with_a_pass_of_mixed_features():
    parts = Parts("stylegan2+fsmr", rival_options="fsmr.weight=3")
    fsmr, seen = parts.rivals["fsmr"], []
    judge = lambda img, c: (seen.append(parts.loss.judge(img, c)), seen[-1])[1]
    out = parts.loss.judge(parts.fake, parts.batch.gen_c)
    term = fsmr.d("real", out, parts.shown, judge)
    torch.testing.assert_close(term, 3 * (out.logits - seen[0].logits).square()[:, 0])
    assert (term > 0).any()    # a permutation may leave an image alone
    torch.testing.assert_close(parts.loss.judge(parts.fake, parts.batch.gen_c).logits, out.logits)     # unhooked


def test_scales_are_compared():
    """With a linear D, the term follows from the images that it was shown."""
    parts = Parts("stylegan2+cross-scale", rival_options="cross-scale.weight=3")
    rival, seen, weights = parts.rivals["cross-scale"], [], torch.randn([1, 3, 16, 16])
    score = lambda img: (img * weights).sum([1, 2, 3])
    judge = parts.loss.judge
    judge.augment = lambda img, maps: AugmentOutput(img.flip(3), maps)
    judge.D = lambda img, c: (seen.append(img), score(img)[:, None])[1]
    states = parts.G.synthesis.run(parts.G.mapping(parts.batch.gen_z, None), keep=[8]).states
    large = lambda img: torch.nn.functional.interpolate(img, size=(16, 16), mode="bilinear", align_corners=False)
    real = parts.batch.real_img
    for kind, clean, coarse in (("fake", parts.fake, states[8].img),
                                ("real", real, real.unflatten(3, [8, 2]).unflatten(2, [8, 2]).mean([3, 5]))):
        shown = parts.shown._replace(img=clean.flip(3), clean=clean, states=states if kind == "fake" else {})
        term = rival.d(kind, judge(shown.img, shown.c), shown, judge)
        torch.testing.assert_close(seen[-1], large(coarse).flip(3))
        torch.testing.assert_close(term, 3 * (score(shown.img) - score(large(coarse).flip(3))).square())


def test_views_are_parts_of_images():
    """Of a ramp without colours, a view is a ramp, whose steps tell the size of the part and the contrast."""
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 16).repeat(4000, 3, 16, 1)
    view = random_view(ramp)
    torch.testing.assert_close(view, view.mean([1, 2], keepdim=True).expand_as(view), rtol=1e-3, atol=1e-3)
    steps = view[:, 0, 0, 9] - view[:, 0, 0, 7]
    assert steps.sign().mean().abs() < 0.06
    sizes = (steps.abs() / (4 / 15)).log2()     # of N(0, 1/2), and of the side, from 1/2 to 1
    assert sizes.mean().item() == pytest.approx(1 - 1 / np.log(2), abs=0.05)
    assert sizes.var().item() == pytest.approx(0.25 + 1 / np.log(2)**2 - 2, abs=0.05)
    same = random_view(torch.full([4000, 3, 16, 16], 0.5)).mean([1, 2, 3])
    assert same.mean().item() == pytest.approx(0.5, abs=0.02) and same.std().item() == pytest.approx(0.2, abs=0.02)


def test_contrad_by_brute_force():
    parts = Parts("stylegan2+contrad", rival_options="contrad.weight=2,contrad.temperature=0.5")
    contrad, n = parts.rivals["contrad"], 3
    vectors = torch.nn.functional.normalize(torch.randn([3, 2, n, 5], dtype=torch.float64), dim=3)
    given = iter(vectors)
    contrad._heads = lambda images, judge: tuple(next(given))
    (h1, k1), (h2, k2), (_, k) = vectors.tolist()
    contrad.d("fake", None, parts.shown, None)
    found = contrad.d("real", None, parts.shown, None)
    s = lambda a, b: np.exp(np.dot(a, b) / 0.5)
    for i in range(n):
        expected = 0
        views = [*h1, *h2]
        for own, partner in ((i, n + i), (n + i, i)):
            rest = sum(s(views[own], views[j]) for j in range(2 * n) if j != own)
            expected -= np.log(s(views[own], views[partner]) / rest) / 2
        rest = sum(s(k[i], other) for j, other in enumerate([*k, *k1, *k2]) if j != i)
        expected -= np.mean([np.log(s(k[i], k[j]) / rest) for j in range(n) if j != i])
        assert found[i].item() == pytest.approx(2 * expected)


def test_realness_of_contrad_trains_the_last_block_alone(monkeypatch):
    parts = Parts("stylegan2+contrad", rival_options="contrad.weight=0")
    parts.D.requires_grad_(True)
    for term in parts.run("d_main", monkeypatch):
        term.backward()
    moved = {name.split(".")[0] for name, p in parts.D.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"b4"}
    (term,) = parts.run("d_penalty", monkeypatch)
    term.backward()
    assert parts.D.b16.conv0.weight.grad.any()
    parts.G.requires_grad_(True)
    (term,) = parts.run("g_main", monkeypatch)
    term.backward()
    assert parts.G.synthesis.b4.const.grad.any()
    (h, k), n = contrad_heads(parts), torch.ones([N])
    torch.testing.assert_close(h.norm(dim=1), n)
    torch.testing.assert_close(k.norm(dim=1), n)


def contrad_heads(parts):
    return parts.rivals["contrad"]._heads(parts.shown, parts.loss.judge)


def test_progressive_augmentation_turns_the_score_with_each_bit():
    parts = Parts("stylegan2+pa", rival_options="pa.levels=2,pa.kimg=1")
    pa, seen = parts.rivals["pa"], []
    assert parts.D.img_channels == 5 and parts.G.img_channels == 3

    def judge(img, c):
        seen.append(img[:, 3:, 0, 0])
        return parts.loss.judge._score(img, c)._replace(logits=torch.ones([len(img), 1]))

    img = torch.zeros([4000, 3, 16, 16])
    for nimg, chances in ((0, (0, 0)), (500, (0.25, 0)), (1500, (0.5, 0.25)), (9000, (0.5, 0.5))):
        pa.nimg = nimg
        logits = pa.look(judge, img, torch.zeros([4000, 0])).logits
        ones = seen[-1] > 0
        torch.testing.assert_close(ones.float().mean(0), torch.tensor(chances, dtype=torch.float32), rtol=0, atol=0.03)
        assert logits.squeeze(1).eq(1 - 2 * (ones.sum(1) % 2)).all() and seen[-1].abs().eq(1).all()


def test_unet_by_brute_force(monkeypatch):
    parts = Parts("stylegan2+unet", rival_options="unet.weight=2,unet.cutmix=3")
    unet, c, seen = parts.rivals["unet"], parts.batch.gen_c, []
    judge = lambda img, c, **said: (seen.append(img), parts.loss.judge(img, c, **said))[1]
    pixels = lambda img: parts.D.run(img, c).fmaps[16][:, :1]
    real = parts.shown._replace(img=parts.batch.real_img)
    fake_out, real_out = (parts.loss.judge(img, c, decode=True) for img in (parts.fake, real.img))
    p_fake, p_real = pixels(parts.fake), pixels(real.img)
    torch.testing.assert_close(unet.d("fake", fake_out, parts.shown, judge), 2 * softplus(p_fake).mean([1, 2, 3]))
    term = unet.d("real", real_out, real, judge)
    inside = (seen[0] == real.img).all(1, keepdim=True)
    torch.testing.assert_close(seen[0], torch.where(inside, real.img, parts.fake))
    error = pixels(seen[0]) - torch.where(inside, p_real, p_fake)
    torch.testing.assert_close(term, 2 * softplus(-p_real).mean([1, 2, 3]) + 3 * error.square().mean([1, 2, 3]))
    torch.testing.assert_close(unet.g(fake_out, parts.shown, judge), 2 * softplus(-p_fake).mean([1, 2, 3]))
    inside = unet._rectangles(torch.zeros([2000, 3, 16, 16])).float()
    rows, columns = inside.amax([1, 3]).sum(1), inside.amax([1, 2]).sum(1)
    torch.testing.assert_close(inside.sum([1, 2, 3]), rows * columns)
    assert 0.1 < inside.mean() < 0.4


def test_latents_are_compared_with_those_of_fake_images():
    parts = Parts("stylegan2+latent", rival_options="latent.weight=2")
    latent, ws = parts.rivals["latent"], torch.randn([N, 7, 512])
    out = parts.loss.judge(parts.fake, parts.batch.gen_c, decode=True)
    shown = parts.shown._replace(ws=ws)
    torch.testing.assert_close(latent.d("fake", out, shown, None), 2 * (out.w - ws.mean(1)).square().mean(1))
    assert latent.d("real", out, shown, None) is None
    for method, heads in (("glead+latent", configure("glead").D), ("glead+ggdr+latent", configure("glead+ggdr").D)):
        assert heads == configure(method).D


def test_masks_hide_squares_from_d_alone():
    parts = Parts("glead+masked", rival_options="masked.share=0.5")
    seen = []
    judge = lambda img, c: (seen.append(img), parts.loss.judge._score(img, c))[1]
    parts.rivals["masked"].look(judge, parts.batch.real_img, parts.batch.real_c)
    squares = (seen[0] == parts.batch.real_img).all(1).unflatten(2, [8, 2]).unflatten(1, [8, 2]).float().mean([2, 4])
    assert set(squares.unique().tolist()) == {0.0, 1.0} and 0.4 < squares.mean() < 0.6
    assert torch.where(seen[0] == parts.batch.real_img, 0, seen[0]).abs().max() == 0


def test_reconstruction_reaches_g_only_where_it_is_asked_for(monkeypatch):
    grads = {}
    for method, options in (("glead", None), ("glead+through-g", "through-g.share=2")):
        parts = Parts(method, rival_options=options)
        monkeypatch.setattr(parts.loss, "_map", lambda z, c, units=None: parts.G.mapping(z, c))  # noqa: B023
        parts.G.requires_grad_(True)
        (term,) = parts.run("g_main", monkeypatch)
        grads[method] = (term.detach(), torch.autograd.grad(term, parts.G.synthesis.b4.const)[0])
    task = parts.loss.fake_tasks[0]
    torch.manual_seed(1)
    img = parts.G.synthesis(parts.G.mapping(parts.batch.gen_z, None))
    shown = parts.shown._replace(img=img, clean=img)
    extra = 2 * task.weight * task.loss(parts.D.run(img, parts.batch.gen_c), shown).mean()
    (plain, plain_grad), (whole, grad) = grads.values()
    torch.testing.assert_close(whole - plain, extra.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(grad, plain_grad)


def test_edited_images_are_rebuilt():
    parts = Parts("glead+edited", rival_options="edited.share=2,edited.strength=0.25")
    rival, seen = parts.rivals["edited"], []
    judge = parts.loss.judge
    judge.augment = lambda img, maps: (seen.append(img), AugmentOutput(img.flip(3), maps))[1]
    out = judge(parts.fake, parts.batch.gen_c, decode=True)
    torch.manual_seed(5)
    term = rival.d("fake", out, parts.shown, judge)
    torch.manual_seed(5)
    w = parts.G.mapping(torch.randn([N, 512]), parts.batch.gen_c)[:, 0]
    edited = reconstruct(parts.G, out._replace(w=0.75 * out.w + 0.25 * w), res_g=parts.config.D.res_g)
    torch.testing.assert_close(seen[0], edited, rtol=1e-4, atol=1e-5)
    shown = parts.shown._replace(img=edited.flip(3))
    (task,) = parts.loss.fake_tasks[:1]
    again = judge(shown.img, shown.c, decode=True)
    torch.manual_seed(5)
    torch.randn([N, 512])
    reconstruct(parts.G, out, res_g=parts.config.D.res_g)   # draws noise
    torch.testing.assert_close(term, 2 * task.weight * task.loss(again, shown), rtol=1e-4, atol=1e-4)
    assert rival.d("real", out, parts.shown, judge) is None


def test_features_of_g_are_rebuilt_at_several_resolutions():
    parts = Parts("glead+g-features", rival_options="g-features.weight=3", res_g=4)
    rival, out = parts.rivals["g-features"], parts.D.run(parts.fake, parts.batch.gen_c)
    ws = parts.G.mapping(parts.batch.gen_z, parts.batch.gen_c)
    states = parts.G.synthesis.run(ws, keep=[8, 16]).states
    assert rival.states == [8, 16] and rival.d("real", out, parts.shown, None) is None
    torch.manual_seed(5)
    found = rival.d("fake", out, parts.shown._replace(states=states), None)
    torch.manual_seed(5)
    x, img = (torch.nn.functional.interpolate(y, size=(4, 4), mode="bilinear") for y in (out.f, out.img))
    w = out.w[:, None].repeat(1, 3, 1)
    expected = 0
    for res in (8, 16):
        x, img = getattr(parts.G.synthesis, f"b{res}")(x, img, w)
        own = states[res].x
        expected = expected + 3 / 2 * (1 - (x * own).sum(1) / (x.norm(dim=1) * own.norm(dim=1))).mean([1, 2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options, logits, strengths", [
    ("ada-lambda.target=0.5,ada-lambda.kimg=0.064", ([1.0] * N, [0.0] * N), (1.5, 2.0)),
    ("ada-lambda.target=0.5,ada-lambda.kimg=0.064", ([1.0] * 5 + [-1.0] * 3, [0.0] * N), (0.5, 0.0, 0.0)),
    ("ada-lambda.gap=2,ada-lambda.kimg=0.064", ([1.5] * N, [-1.0] * N), (1.5, 2.0)),
    ("ada-lambda.gap=2,ada-lambda.kimg=0.064", ([1.5] * N, [0.0] * N), (0.5,)),
    ("ada-lambda.most=1.25,ada-lambda.kimg=0.064", ([1.0] * N, [0.0] * N), (1.25,)),
])
def test_strength_follows_the_scores(options, logits, strengths):
    parts = Parts("glead+ada-lambda", rival_options=options)
    ada = parts.rivals["ada-lambda"]
    real, fake = (parts.loss.judge._score(parts.fake, parts.batch.gen_c)._replace(logits=torch.tensor(x)[:, None])
                  for x in logits)
    for strength in strengths:
        for _ in range(4):
            for kind in ("fake", "real"):   # of parts that are computed again
                ada.d(kind, real._replace(logits=-10 * real.logits - 3), parts.shown, None)
            parts.loss.forget_parts()
            ada.d("fake", fake, parts.shown, None)
            ada.d("real", real, parts.shown, None)
            ada.step()
        assert ada.strength == pytest.approx(strength)
        weights = [tasks[0].weight for tasks in (parts.loss.real_tasks, parts.loss.fake_tasks)]
        assert weights == pytest.approx([10 * strength, 3 * strength])


def test_strength_follows_a_schedule():
    parts = Parts("ggdr+lambda-schedule", rival_options="lambda-schedule.start=2,lambda-schedule.end=1,"
                                                        "lambda-schedule.kimg=0.032")
    weights = []
    for _ in range(5):
        weights.append(parts.loss.fake_tasks[0].weight)
        parts.loss.rivals.step()
    assert weights == [20.0, 17.5, 15.0, 12.5, 10.0]
    parts.loss.load_state_dict({"pl_mean": torch.zeros([]), "rivals": {"lambda-schedule": {"nimg": 16}}})
    assert parts.loss.fake_tasks[0].weight == 15


def test_finite_differences_estimate_r1(monkeypatch):
    """Of a quadratic D, without bias beyond eps^2, and with the variance of one Gaussian direction."""
    parts = Parts("stylegan2", r1="finite")
    parts.batch = parts.batch._replace(real_img=torch.rand([1, 3, 16, 16]).repeat(4000, 1, 1, 1) * 2 - 1,
                                       real_c=torch.zeros([4000, 0]))
    monkeypatch.setattr(parts.loss.judge, "D", lambda img, c: img.double().square().sum([1, 2, 3])[:, None] / 100)
    parts.run("d_penalty", monkeypatch)
    found = parts.reported["Loss/r1_penalty"]
    exact = (parts.batch.real_img[0] / 50).square().sum().item()
    assert found.mean().item() == pytest.approx(exact, rel=5 * 2**0.5 / 4000**0.5)
    assert found.std().item() == pytest.approx(2**0.5 * exact, rel=0.15)


class Once(torch.autograd.Function):
    """A square without a second derivative, as operations of compiled networks are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("r1", ["finite", "exact"])
def test_finite_differences_need_no_second_derivative(r1, monkeypatch):
    parts, weight = Parts("stylegan2", r1=r1), torch.ones([], requires_grad=True)
    D = lambda img, c: (Once.apply(img * weight) * weight).sum([1, 2, 3])[:, None]
    monkeypatch.setattr(parts.loss.judge, "D", D)
    (term,) = parts.run("d_penalty", monkeypatch)
    if r1 == "exact":
        with pytest.raises(RuntimeError, match="once_differentiable"):
            term.backward()
    else:
        term.backward()
        assert weight.grad > 0


@pytest.mark.parametrize("method, said, problem", [
    ("wgan-gp", {"r1": "finite"}, "--r1=finite estimates the squared gradient, and wgan-gp needs its norm"),
    ("glead", {"r1": "finite", "half": "bfloat16", "fp32": False}, "--r1=finite needs float32"),
    ("contrad", {"r1": "finite"}, "contrad lets R1 alone train all of D, and can't tell it from D's loss with --r1="),
    ("contrad", {"batch_gpu": 1}, "contrad compares the images that a GPU computes at once, and --batch-gpu is 1"),
    ("glead+fsmr", {"batch_gpu": 1}, "fsmr compares the images that a GPU computes at once, and --batch-gpu is 1"),
    ("glead+through-g", {"lambda_fake": 0.0}, "through-g repeats the task on generated images, and --lambda-fake is 0"),
    ("glead+edited", {"lambda_fake": 0.0}, "edited repeats the task on generated images, and --lambda-fake is 0"),
    ("glead+ggdr+g-features", {"lambda_real": 0.0}, "g-features needs D's heads for G, and no image is rebuilt"),
    ("glead+ggdr+latent", {"lambda_real": 0.0}, "latent needs D's heads for G, and no image is rebuilt: say --lambda"),
])
def test_settings_that_leave_a_rival_nothing_to_do_are_refused(method, said, problem):
    """Where the configuration is made: before there is a run directory."""
    with pytest.raises(UserError, match=problem) as caught:
        configure(method, **said)
    assert "\n" not in str(caught.value)


def test_rivals_that_compare_images_see_as_many_on_every_gpu():
    """Neither a large memory nor a full one changes what they learn."""
    filled = {method: resolve(Options(method=method, cfg="cifar"), DATASET, device="cuda").fill_gpu
              for method in ("stylegan2", "stylegan2+zcr", "stylegan2+contrad", "glead+fsmr")}
    assert list(filled.values()) == [True, True, False, False]


@pytest.mark.parametrize("method", [
    "stylegan2+pa+zcr+ar", "stylegan2+unet+latent+contrad+cross-scale+fsmr+wgan-gp",
    "glead+masked+centring+through-g+g-features+edited+ada-lambda+relativistic"])
def test_their_cost_is_estimated(method):
    config = configure(method, metrics=())
    assert estimate_seconds(config, None).training > 0
    assert estimate_memory(config, count_parameters(config)).activations > 0


# ----------------------------------------------------------------------------------------------------------------------
# Training.

TRAINED = {     # A composition, and statistics of its own.
    "stylegan2+relativistic+ar+fsmr+pa": ["Loss/r2_penalty", "Loss/D/real_ar", "Loss/G/ar", "Loss/D/fake_fsmr",
                                          "Loss/D/real_fsmr"],
    "stylegan2+wgan-gp+unet+zcr+latent": ["Loss/gp_penalty", "Loss/D/fake_unet", "Loss/D/real_unet", "Loss/G/unet",
                                          "Loss/D/fake_zcr", "Loss/D/real_zcr", "Loss/G/zcr", "Loss/D/fake_latent"],
    "glead+centring+masked+ada-lambda+through-g+g-features": ["Loss/D/real_centring", "Loss/G/through-g",
                                                              "Loss/D/fake_g-features"],
    "glead+lambda-schedule+contrad+cross-scale+edited": ["Loss/D/real_contrad", "Loss/D/fake_cross-scale",
                                                         "Loss/D/real_cross-scale", "Loss/D/fake_edited"],
}


def test_all_rivals_are_trained():
    assert {name for method in TRAINED for name in read_method(method)[1]} == set(RIVALS)


@pytest.mark.parametrize("method", TRAINED)
def test_rivals_train_and_resume(method, small_grids, tiny_dataset, tmp_path):
    config = small_config(tiny_dataset, f"--method={method}", "--kimg=0.016", "--aug=ada",
                          *(["--reg_loss_fake=mse"] if "glead" in method else []))
    whole, parts = train(config, tmp_path)
    assert_same(whole, parts)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(
        *(torch.utils._pytree.tree_leaves(state["loss"]) for state in (whole, parts))))
    records = [json.loads(line) for line in (tmp_path / "whole" / "stats.jsonl").read_text().splitlines()]
    for name in TRAINED[method]:
        assert any(name in record and record[name]["std"] > 0 for record in records), name
    assert all(torch.isfinite(value).all() for value in whole["networks"]["G_ema"].values())
