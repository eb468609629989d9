"""The losses of all four methods, phase by phase, against golden numbers."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.lpips_small import small_lpips
from torch_utils import training_stats
from training.augment import AugmentOutput
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig, LossConfig, discriminator_kwargs, generator_kwargs
from training.loss import Batch, StyleGAN2Loss
from training.networks import Discriminator, DiscriminatorOutput, Generator
from training.perceptual import LPIPS, PixelMSE
from training.tasks import FeatureMatching, ImageReconstruction, Shown, build_tasks, reconstruct

PLAIN = ["sg2_r16", "sg2_r16_c5"]
GLEAD = ["glead_r32_g16_d16", "glead_r32_g8_d16_interp"]
METHODS = dict(Gmain="g_main", Greg="g_path_length", Dmain="d_main", Dreg="d_penalty")


@pytest.fixture
def fixed_noise(monkeypatch):
    """Layer noise is `noise_const`, or off, as when the numbers were made; path length noise is the stored one."""

    def fix(g):
        from training import networks
        forward = networks.SynthesisLayer.forward

        def with_mode(self, x, w, noise_mode="random", **kwargs):
            return forward(self, x, w, noise_mode=g.meta["noise_mode"], **kwargs)

        monkeypatch.setattr(networks.SynthesisLayer, "forward", with_mode)
        monkeypatch.setattr(torch, "randn_like", lambda x: g.get("in/pl_noise"))

    return fix


def setup(g, *, real_tasks=None, fake_tasks=None, **options):
    G, D = Generator(**g.meta["ctor_G"]), Discriminator(**g.meta["ctor_D"])
    G.load_state_dict(g.sub("sd/G."), strict=True)
    D.load_state_dict(g.sub("sd/D."), strict=True)
    G.train().requires_grad_(False), D.train().requires_grad_(False)
    theirs = g.meta["loss_kwargs"]
    config = LossConfig(r1_gamma=theirs["r1_gamma"], style_mixing_prob=0, **options)
    loss = StyleGAN2Loss(G, D, config=config, real_tasks=real_tasks(G) if real_tasks else (),
                         fake_tasks=fake_tasks(G) if fake_tasks else ())
    loss.pl_mean = torch.tensor(float(g.meta["pl_mean0"]))
    return loss


def batch(g):
    real, z = g.get("in/real_img"), g.get("in/z")
    c = lambda key: g.get(key) if g.has(key) else torch.zeros([len(z), 0])
    return Batch(real, c("in/real_c"), z, c("in/gen_c"))


def run(loss, g, phase, gain):
    """Values passed to backward, and reports, of one phase; gradients are in the module that is returned."""
    training_stats.collect()
    reports = {}
    original = training_stats.report

    def report(name, value):
        reports.setdefault(name, []).append(torch.as_tensor(value).detach().clone())
        return original(name, value)

    training_stats.report = report
    module = loss.G if phase[0] == "G" else loss.D
    module.requires_grad_(True)
    values = []
    try:
        for term in getattr(loss, METHODS[phase])(batch(g)):
            (term * gain).backward()
            values.append(float(term.detach() * gain))
    finally:
        training_stats.report = original
        module.requires_grad_(False)
    return values, reports, module


def check(g, prefix, phase, loss, gain, *, reports=()):
    key = f"{prefix}{phase}"
    values, reported, module = run(loss, g, phase, gain)
    g.compare(f"out/{key}/backward_values", torch.tensor(values))
    params = dict(module.named_parameters())
    # Parameters that a phase doesn't reach have no gradient here; `GradientGuard` gives them zeros, as the programs do
    # that made these numbers.
    grad = lambda name: torch.zeros_like(params[name]) if params[name].grad is None else params[name].grad
    names = g.meta["phases"][key]["gradnorms_names"]
    norms = torch.stack([grad(name).norm() for name in names])
    g.compare(f"out/{key}/gradnorms", norms, factor=WIDER.get((g_name(g), f"{key}/gradnorms"), 1))
    for k in [k for k in g.arrays.files if k.startswith(f"out/{key}/grad/")]:
        g.compare(k, grad(k.split("/grad/")[1]), factor=WIDER.get((g_name(g), k[len("out/"):]), 1))
    for theirs, ours in reports:
        for i, value in enumerate(reported[ours]):
            g.compare(f"out/{key}/report/{theirs}" + (f"#{i + 1}" if i else ""), value)
    if g.has(f"out/{key}/w_avg_after"):
        g.compare(f"out/{key}/w_avg_after", loss.G.mapping.w_avg)
    if g.has(f"out/{key}/pl_mean_after"):
        loss.update_pl_mean()
        g.compare(f"out/{key}/pl_mean_after", loss.pl_mean)
    return reported


# Gradients that nearly cancel keep fewer digits in float32; in float64 they agree to 1e-7. The first two are in the
# list of exceptions that comes with the golden numbers.
_INTERP = "losses/glead_r32_g8_d16_interp"
WIDER = {
    (_INTERP, "lpips_noreal/Dreg/gradnorms"): 20,
    (_INTERP, "lpips_noreal/Dreg/grad/b32.fromrgb.bias"): 100,
    (_INTERP, "lpips/Dmain/grad/feat_proj1.weight"): 4,
    (_INTERP, "lpips/Dmain/grad/b8_dec.weight"): 2,
}


def g_name(g):
    return g.meta["case"]


SCORES_FAKE = [("scores_fake", "Loss/scores/fake"), ("signs_fake", "Loss/signs/fake")]
SCORES_REAL = [("scores_real", "Loss/scores/real"), ("signs_real", "Loss/signs/real")]
REPORTS = dict(
    Gmain=SCORES_FAKE + [("G_loss", "Loss/G/loss")],
    Greg=[("pl_penalty", "Loss/pl_penalty"), ("G_reg", "Loss/G/reg")],
    Dmain=SCORES_FAKE + SCORES_REAL + [("D_loss", "Loss/D/loss")],
    Dreg=SCORES_REAL + [("r1_penalty", "Loss/r1_penalty"), ("D_reg", "Loss/D/reg")],
)


@pytest.mark.parametrize("phase,gain", [("Gmain", 1), ("Greg", 4), ("Dmain", 1), ("Dreg", 16)])
@pytest.mark.parametrize("name", PLAIN)
def test_stylegan2_golden(golden, fixed_noise, name, phase, gain):
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    check(g, "", phase, setup(g), gain, reports=REPORTS[phase])


@pytest.mark.parametrize("phases,key", [(("Gmain", "Greg"), "Gboth"), (("Dmain", "Dreg"), "Dboth")])
@pytest.mark.parametrize("name", PLAIN)
def test_phases_add_up_golden(golden, fixed_noise, name, phases, key):
    """Main and regularisation phase, both with gain 1, give the gradients of one combined phase."""
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    loss = setup(g)
    w_avg = loss.G.mapping.w_avg.clone()
    for phase in phases:
        loss.G.mapping.w_avg.copy_(w_avg)
        _, _, module = run(loss, g, phase, 1)
    for k in [k for k in g.arrays.files if k.startswith(f"out/{key}/grad/")]:
        p = module.get_parameter(k.split("/grad/")[1])
        g.compare(k, torch.zeros_like(p) if p.grad is None else p.grad)


@pytest.mark.parametrize("phase,gain", [("Gmain", 1), ("Greg", 4), ("Dmain", 1), ("Dreg", 16)])
def test_ggdr_golden(golden, fixed_noise, phase, gain):
    g = golden("losses/ggdr_r32_res16.npz")
    fixed_noise(g)
    loss = setup(g, fake_tasks=lambda G: [FeatureMatching(res=16, weight=10)])
    reports = REPORTS[phase] if phase != "Dmain" else SCORES_REAL
    reported = check(g, "", phase, loss, gain, reports=reports)
    if phase == "Dmain":
        (term,) = reported["Loss/D/fake_feature"]
        g.compare("out/direct/ggdr_reg", term.mean())
        g.compare("out/direct/cos_distance_unweighted", term.mean() / 10)


def glead_tasks(g, variant):
    """The tasks of one of the file's variants."""
    spec = g.meta["variants"][variant]
    res_g = g.meta["loss_kwargs"]["glead_res_g"]
    distance = PixelMSE() if spec["reg_loss_real"] == "mse" else small_lpips(dict(g.arrays))

    def real(G):
        return [ImageReconstruction(G=G, res_g=res_g, distance=distance, weight=spec["reg_weight_real"])]

    def fake(G):
        if spec["reg_target_fake"] == "gfeat":
            return [FeatureMatching(res=res_g, weight=spec["reg_weight_fake"])]
        return [ImageReconstruction(G=G, res_g=res_g, distance=distance, weight=spec["reg_weight_fake"])]

    return dict(real_tasks=real, fake_tasks=fake)


GAINS = dict(Gmain=1, Greg=4, Dmain=1, Dreg=16)
GLEAD_PHASES = [
    *[("lpips", phase) for phase in GAINS],
    *[(variant, phase) for variant in ("mse", "ggdrcos", "lpips_noreal") for phase in ("Dmain", "Dreg")],
    ("lpips_nofake", "Dmain"), ("gan_only", "Dmain"),
]


@pytest.mark.parametrize("name", GLEAD)
def test_every_stored_phase_is_compared_golden(golden, name):
    stored = set(golden(f"losses/{name}.npz").meta["phases"])
    assert stored == {f"{variant}/{phase}" for variant, phase in GLEAD_PHASES} | {"lpips/Dboth"}


@pytest.mark.parametrize("variant,phase", GLEAD_PHASES)
@pytest.mark.parametrize("name", GLEAD)
def test_glead_released_golden(golden, fixed_noise, name, phase, variant):
    """`--recipe=released`: GLeaD, and GLeaD+GGDR (ggdrcos), with the real task in Dreg too."""
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    loss = setup(g, **glead_tasks(g, variant), real_task_in_dreg=True)
    skipped = ("G_loss", "D_loss")  # reported under other names, or another sum
    reports = [r for r in REPORTS[phase] if r[0] not in skipped and not (phase == "Dmain" and r in SCORES_FAKE)]
    check(g, f"{variant}/", phase, loss, GAINS[phase], reports=reports)


@pytest.mark.parametrize("name", GLEAD)
def test_glead_phases_add_up_golden(golden, fixed_noise, name):
    """Dmain and Dreg of the paper's recipe, both with gain 1: one combined phase, with the real task once."""
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    loss = setup(g, **glead_tasks(g, "lpips"))
    for phase in ("Dmain", "Dreg"):
        _, _, module = run(loss, g, phase, 1)
    names = g.meta["phases"]["lpips/Dboth"]["gradnorms_names"]
    g.compare("out/lpips/Dboth/gradnorms", torch.stack([module.get_parameter(name).grad.norm() for name in names]))


@pytest.mark.parametrize("name", GLEAD)
def test_glead_paper_dreg_is_r1_golden(golden, fixed_noise, name):
    """`--recipe=paper`: Dreg is R1 and nothing else, whatever the tasks; the files' variant without the real task."""
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    check(g, "lpips_noreal/", "Dreg", setup(g, **glead_tasks(g, "lpips")), 16,
          reports=REPORTS["Dreg"])


@pytest.mark.parametrize("name", GLEAD)
def test_glead_terms_golden(golden, fixed_noise, name):
    """Weighted terms, reconstructions, and the unweighted perceptual losses of the paper's formula."""
    g = golden(f"losses/{name}.npz")
    fixed_noise(g)
    loss = setup(g, **glead_tasks(g, "lpips"))
    _, reported, _ = run(loss, g, "Dmain", 1)
    real, fake = reported["Loss/D/real_reconstruction"][0], reported["Loss/D/fake_reconstruction"][0]
    g.compare("out/lpips/Dmain/reg_real_weighted", real.mean())
    g.compare("out/lpips/Dmain/reg_fake_weighted", fake.mean())
    paper = [k for k in g.arrays.files if k.startswith("out/paper/L_per") and "grad" not in k]
    assert paper
    for key in paper:
        value, weight = (real, 10) if "real" in key else (fake, 3)
        if g.get(key).ndim == 0:
            g.compare(key, value.mean() / weight)

    res_g = g.meta["loss_kwargs"]["glead_res_g"]
    with torch.no_grad():
        out = loss.D.run(g.get("in/real_img"))
        g.compare("out/lpips/Dmain/recon_real", reconstruct(loss.G, out, res_g=res_g))
        out = loss.D.run(g.get("out/lpips/Dmain/gen_img"))
        g.compare("out/lpips/Dmain/recon_fake", reconstruct(loss.G, out, res_g=res_g))


def tiny(**d_kwargs):
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 16, 3, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=dict(channel_base=64))
    D = Discriminator(0, 16, 3, channel_base=64, epilogue_kwargs=dict(mbstd_group_size=2), **d_kwargs)
    return G.requires_grad_(False), D


def tiny_batch(n=4):
    return Batch(torch.rand([n, 3, 16, 16]) * 2 - 1, torch.zeros([n, 0]), torch.randn([n, 8]), torch.zeros([n, 0]))


class MeanColour:
    """A task that the project doesn't have: D's decoder tells the mean colour of what it is shown."""

    kind = "colour"
    weight = 2.0
    states = ()
    decodes = True

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> torch.Tensor:
        return (out.fmaps[8][:, :3].mean([2, 3]) - shown.img.mean([2, 3])).square().sum(1)


def test_a_new_task_needs_no_change_elsewhere():
    G, D = tiny(decoder_res=8)
    loss = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1), real_tasks=[MeanColour()], fake_tasks=[MeanColour()])
    training_stats.collect()
    for term in loss.d_main(tiny_batch()):
        term.backward()
    stats = training_stats.collect()
    assert stats["Loss/D/real_colour"]["num"] == stats["Loss/D/fake_colour"]["num"] == 4
    assert stats["Loss/D/real_colour"]["mean"] > 0
    assert D.b8_dec.weight.grad.abs().sum() > 0


def test_reconstruction_gives_gradients_to_d_alone():
    G, D = tiny(decoder_res=8, glead_res_g=8, decoder_out_channel=8)
    task = ImageReconstruction(G=G, res_g=8, distance=PixelMSE(), weight=10)
    loss = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1), real_tasks=[task])
    for term in loss.d_main(tiny_batch()):
        term.backward()
    assert all(p.grad is None for p in G.parameters())
    for layer in (D.img_proj, D.feat_proj1, D.feat_proj2, D.b8_dec):
        assert layer.weight.grad.abs().sum() > 0


def test_w_only_reconstruction_reaches_the_backbone():
    G, D = tiny(decoder_res=8, glead_res_g=1, decoder_out_channel=8)
    task = ImageReconstruction(G=G, res_g=1, distance=PixelMSE(), weight=10)
    D.b4.requires_grad_(False)
    loss = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1), real_tasks=[task])
    for term in loss.d_main(tiny_batch()):
        term.backward()
    assert D.final_proj.weight.grad.abs().sum() > 0 and D.b16.conv0.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("target", ["input", "clean"])
def test_reconstruction_target_under_augmentation(target):
    """What D was shown, or the image before augmentation."""

    class Target:
        def embed_target(self, img):
            self.img = img
            return (img,)

        def distance(self, img, embedded):
            return (img - embedded[0]).square().mean([1, 2, 3])

    G, D = tiny(decoder_res=8, glead_res_g=8, decoder_out_channel=8)
    distance = Target()
    task = ImageReconstruction(G=G, res_g=8, distance=distance, weight=10, target=target)
    loss = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1), real_tasks=[task],
                         augment=lambda img, maps: AugmentOutput(img.flip(3), maps))
    data = tiny_batch()
    list(loss.d_main(data))
    expected = data.real_img.flip(3) if target == "input" else data.real_img
    assert torch.equal(distance.img, expected)


def test_style_mixing_draws_a_second_latent():
    G, D = tiny()
    z, c = torch.randn([2, 8]), torch.zeros([2, 0])
    plain = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1, style_mixing_prob=0))._map(z, c)
    assert (plain == plain[:, :1]).all()
    mixed = StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1, style_mixing_prob=1))._map(z, c)
    switches = [(mixed[i, 1:] != mixed[i, :-1]).any(1).sum().item() for i in range(2)]
    assert switches == [1, 1]


def test_r1_of_a_linear_discriminator():
    """gamma / 2 times the squared norm of the weights."""
    weight = torch.randn([3 * 16 * 16], dtype=torch.float32)

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(weight)

        def forward(self, img, c):
            return img.flatten(1) @ self.weight[:, None]

    G, _ = tiny()
    loss = StyleGAN2Loss(G, Linear(), config=LossConfig(r1_gamma=3))
    (term,) = loss.d_penalty(tiny_batch())
    assert term.item() == pytest.approx(1.5 * weight.square().sum().item(), rel=1e-5)
    term.backward()
    np.testing.assert_allclose(loss.D.weight.grad, 3 * weight, rtol=1e-5)


class WeightGradients(TorchDispatchMode):
    """How many convolutions computed a gradient of their weight in a first-order pass."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.count += args[-1][1]
        return func(*args, **(kwargs or {}))


def built_as_configured(method, **options):
    config = resolve(Options(method=method, aug="noaug", cbase=256, cmax=32, batch=4, map_depth=2,
                             perceptual="random-alex" if method.startswith("glead") else None, **options),
                     DatasetConfig(path="random", resolution=32), device="cpu")
    torch.manual_seed(0)
    G, D = Generator(**generator_kwargs(config)), Discriminator(**discriminator_kwargs(config))
    G.train().requires_grad_(False), D.train().requires_grad_(False)
    real_tasks, fake_tasks = build_tasks(config, G)
    no_labels = torch.zeros([4, 0])
    rng = torch.Generator().manual_seed(1)
    img, z = torch.rand([4, 3, 32, 32], generator=rng) * 2 - 1, torch.randn([4, 512], generator=rng)
    loss = StyleGAN2Loss(G, D, config=config.loss, real_tasks=real_tasks, fake_tasks=fake_tasks)
    return loss, Batch(img, no_labels, z, no_labels)


def gradients(module, terms):
    module.requires_grad_(True)
    for parameter in module.parameters():
        parameter.grad = None
    torch.manual_seed(2)
    for term in terms:
        term.backward()
    module.requires_grad_(False)
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method, decoded", [("stylegan2", 0), ("ggdr", 1), ("glead", 2)])
def test_no_work_is_thrown_away(method, decoded, monkeypatch):
    """Frozen networks compute no gradients of weights, targets record no graph, D's decoder serves tasks alone."""
    loss, b = built_as_configured(method)
    calls, decode, embed = [], Discriminator._decode, LPIPS.embed_target
    monkeypatch.setattr(Discriminator, "_decode", lambda self, x: calls.append("decoder") or decode(self, x))

    def embed_target(self, img):
        parts = embed(self, img)
        calls.append("target")
        assert not any(part.requires_grad for part in (img, *parts))
        return parts

    monkeypatch.setattr(LPIPS, "embed_target", embed_target)
    with WeightGradients() as g:
        grads = gradients(loss.G, loss.g_main(b))
    assert g.count == sum(grad.ndim == 4 for grad in grads.values()) > 0 and not calls
    with WeightGradients() as d:
        grads = gradients(loss.D, loss.d_main(b))
    of_decoder = [name for name in grads if "_dec." in name or "_proj" in name]
    convolutions = [name for name, grad in grads.items() if grad.ndim == 4]
    passes = {name: decoded if name in of_decoder else 2 for name in convolutions}
    assert d.count == sum(passes.values())
    assert calls.count("decoder") == decoded and calls.count("target") == (2 if method == "glead" else 0)
    calls.clear()
    gradients(loss.D, loss.d_penalty(b))
    gradients(loss.G, loss.g_path_length(b))
    assert not calls


@pytest.mark.parametrize("said, expected", [
    ({}, None), ({"half": "bfloat16"}, torch.bfloat16), ({"half": "bfloat16", "lpips_fp32": True}, None),
])
def test_half_precision_of_lpips_can_be_switched_off_by_itself(said, expected):
    loss, _ = built_as_configured("glead", **said)
    assert loss.real_tasks[0].distance.half_type == expected
    assert loss.D.b32.use_fp16 and loss.D.b32.half_type == said.get("half", "float16")


def test_bfloat16_bounds():
    """Gradients of all phases on the CPU against float32's. Seen: 0.02 to 0.05 of their length."""
    results = []
    for half in ("float16", "bfloat16"):
        loss, b = built_as_configured("glead", half=half)
        phases = [(loss.G, loss.g_main), (loss.G, loss.g_path_length), (loss.D, loss.d_main), (loss.D, loss.d_penalty)]
        results.append([torch.cat([grad.flatten() for grad in gradients(module, fn(b)).values()])
                        for module, fn in phases])
    for full, half in zip(*results):
        assert 0 < (half - full).norm() < 0.1 * full.norm()
