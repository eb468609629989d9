"""The networks against golden numbers: values, gradients, second derivatives, and every state dict loaded strictly."""

import inspect
import re

import pytest
import torch

import legacy
from torch_utils.formats import network_pickle
from torch_utils.ops import upfirdn2d
from training import networks
from training.networks import Discriminator, Generator, SynthesisState

GENERATORS = ["g_skip_r32", "g_skip_r16_c5", "g_resnet_r16_c5", "g_orig_r16"]
DISCRIMINATORS = [
    "d_resnet_r32", "d_resnet_r16_c5", "d_skip_r16", "d_orig_r16_c5", "ggdr_d_r32_dec16", "ggdr_d_r16_c5_dec16",
    "glead_d_r32_dec16_512", "glead_d_r32_dec16_resg8_512", "glead_d_r16_dec16_nohead_c5",
]


def load(cls, g, **kwargs):
    net = cls(**g.meta["ctor"], **kwargs)
    net.load_state_dict(g.sub("sd/"), strict=True)
    return net.eval()


def label(g):
    return g.get("in/c") if g.has("in/c") else None


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    G, z, c = load(Generator, g), g.get("in/z"), label(g)
    assert G.num_ws == g.meta["num_ws"]
    g.compare("out/ws", G.mapping(z, c))
    g.compare("out/img_const", G(z, c, noise_mode="const"))
    g.compare("out/img_none", G(z, c, noise_mode="none"))
    g.compare("out/img_const_unfused", G(z, c, noise_mode="const", fused_modconv=False))
    for key, kwargs in {"img_psi0.7": dict(truncation_psi=0.7),
                        "img_psi0.7_cut3": dict(truncation_psi=0.7, truncation_cutoff=3)}.items():
        g.compare(f"out/{key}", G(z, c, noise_mode="const", **kwargs))
        g.compare(f"out/ws_{key}", G.mapping(z, c, **kwargs))


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_gradients_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    G, z = load(Generator, g), g.get("in/z").requires_grad_()
    (G(z, label(g), noise_mode="const") * g.get("in/cot")).sum().backward()
    g.compare("out/dz", z.grad)
    grads = [key for key in g.arrays.files if key.startswith("out/grad/")]
    assert grads
    for key in grads:
        g.compare(key, G.get_parameter(key[len("out/grad/"):]).grad)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_in_training_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    G, z, c = load(Generator, g).train(), g.get("in/z"), label(g)
    ws = G.mapping(z, c)
    g.compare("out/train/w_avg_after", G.mapping.w_avg)
    G.mapping(z, c, skip_w_avg_update=True)
    g.compare("out/train/w_avg_after_skip", G.mapping.w_avg)
    g.compare("out/train/img", G.synthesis(ws, noise_mode="const"))
    g.compare("out/train/ws_psi0.5_after_update", G.mapping(z, c, truncation_psi=0.5, skip_w_avg_update=True))


def outputs(D, g):
    out = D.run(g.get("in/img").requires_grad_(), label(g))
    named = {"logits": out.logits, **{f"fmap{res}": fmap for res, fmap in out.fmaps.items()}}
    if D.spatial_heads:
        named.update(inter_feat=out.f, inter_img=out.img, ws=out.w.unsqueeze(1))
    return named


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    D = load(Discriminator, g)
    named = outputs(D, g)
    expected = {k[len("in/cot_"):] for k in g.arrays.files if k.startswith("in/cot_")}
    assert set(named) == expected
    for key, value in named.items():
        g.compare(f"out/{key}", value)
    g.compare("out/logits", D(g.get("in/img"), label(g)))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_gradients_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    D, img = load(Discriminator, g), g.get("in/img").requires_grad_()
    out = D.run(img, label(g))
    loss = (out.logits * g.get("in/cot_logits")).sum()
    extra = {f"fmap{res}": fmap for res, fmap in out.fmaps.items()}
    if D.spatial_heads:
        extra.update(inter_feat=out.f, inter_img=out.img, ws=out.w.unsqueeze(1))
    for key, value in extra.items():
        loss = loss + (value * g.get(f"in/cot_{key}")).sum() / value.numel() ** 0.5
    loss.backward()
    g.compare("out/dimg", img.grad)
    keys = [key for key in g.arrays.files if key.startswith("out/grad/")]
    assert keys
    for key in keys:
        g.compare(key, D.get_parameter(key[len("out/grad/"):]).grad)


@pytest.mark.parametrize("name", [n for n in DISCRIMINATORS if not n.startswith("glead")])
def test_r1_second_order_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    D, img = load(Discriminator, g), g.get("in/img").requires_grad_()
    (d_img,) = torch.autograd.grad(D(img, label(g)).sum(), img, create_graph=True)
    penalty = d_img.square().sum([1, 2, 3])
    g.compare("out/r1/penalty", penalty)
    penalty.mean().backward()
    for key in [key for key in g.arrays.files if key.startswith("out/r1/grad/")]:
        p = D.get_parameter(key[len("out/r1/grad/"):])
        # The gradient of this one bias nearly cancels, and float32 loses its digits (the file's observed tolerance).
        factor = 200 if (name, key) == ("d_orig_r16_c5", "out/r1/grad/b16.fromrgb.bias") else 1
        g.compare(key, torch.zeros_like(p) if p.grad is None else p.grad, factor=factor)


def test_features_of_synthesis_golden(golden):
    g = golden("networks/ggdr_g_feat_r16.npz")
    G = load(Generator, g)
    out = G.synthesis.run(G.mapping(g.get("in/z"), None), keep=[4, 8, 16], noise_mode="const")
    g.compare("out/img", out.img)
    for res in (4, 8, 16):
        g.compare(f"out/feat{res}", out.states[res].x)


@pytest.mark.parametrize("name", ["glead_g_r32", "glead_g_r32_w16"])
def test_going_on_from_a_state_golden(golden, name):
    g = golden(f"networks/{name}.npz")
    G = load(Generator, g)
    ws = G.mapping(g.get("in/z"), None)
    g.compare("out/ws", ws)
    own = G.synthesis.run(ws, keep=[4, 8, 16, 32], noise_mode="const")
    g.compare("out/get_feat/img", own.img)
    g.compare("out/get_feat/inter_img16", own.states[16].img)
    for res in (4, 8, 16, 32):
        g.compare(f"out/get_feat/feat{res}", own.states[res].x)
    again = G.synthesis.run(ws[:, 5:], start=own.states[16], noise_mode="const")
    g.compare("out/self_recon/img", again.img)

    for key, call in g.meta["calls"].items():
        if not key.startswith("feat2img"):
            continue
        res = int(key[len("feat2img"):])
        x, img, w = (g.get(f"in/{key}/{k}").requires_grad_() for k in ("feature_map", "inter_image", "ws"))
        assert G.synthesis.num_ws_from(res) == call["w_amount"]
        start, w_all = SynthesisState(res, x, img), w.repeat(1, call["w_amount"], 1)
        g.compare(f"out/{key}/img_const", G.synthesis.run(w_all, start=start, noise_mode="const").img)
        plain = G.synthesis.run(w_all, start=start, noise_mode="none").img
        g.compare(f"out/{key}/img_none", plain)
        if g.has(f"in/{key}/cot"):
            dx, dimg, dw = torch.autograd.grad((plain * g.get(f"in/{key}/cot")).sum(), [x, img, w])
            for out, value in dict(dfeat=dx, dinter=dimg, dws=dw).items():
                g.compare(f"out/{key}/{out}", value)
        if g.has(f"in/{key}/ws_distinct"):
            distinct = G.synthesis.run(g.get(f"in/{key}/ws_distinct"), start=start, noise_mode="const").img
            g.compare(f"out/{key}/img_distinct_ws", distinct)
        # Without a basis image the feature map takes the place of G's own, and G's own image is kept.
        mine = G.synthesis.run(ws, keep=[res], noise_mode="const").states[res]
        used = sum(getattr(G.synthesis, f"b{r}").num_conv for r in G.synthesis.block_resolutions if r <= res)
        if used < G.num_ws - 1:
            replaced = G.synthesis.run(ws[:, used:], start=SynthesisState(res, x, mine.img), noise_mode="const").img
            g.compare(f"out/{key}/img_no_inter_image", replaced)


def test_modulated_conv2d_golden(golden):
    g = golden("ops/modulated_conv2d.npz")
    for name, variant in g.meta["variants"].items():
        x, w, s = (g.get(f"in/{name}/{k}").requires_grad_() for k in ("x", "w", "styles"))
        dy = g.get(f"in/{name}/dy").requires_grad_()
        noise = g.get(f"in/{name}/noise") if g.has(f"in/{name}/noise") else None
        f = g.get(f"in/{name}/f") if g.has(f"in/{name}/f") else None
        y = networks.modulated_conv2d(x, w, s, noise=noise, resample_filter=f, **variant["kwargs"])
        dx, dw, ds = torch.autograd.grad(y, [x, w, s], dy, create_graph=True)
        norm = dx.square().sum() + ds.square().sum()
        second = torch.autograd.grad(norm, [dy, w, s, x], allow_unused=True)
        results = dict(y=y, dx=dx, dw=dw, ds=ds, **dict(zip(["s_dy", "s_w", "s_s", "s_x"], second)))
        for key, value in results.items():
            g.compare(f"out/{name}/{key}", value)


def test_layers_golden(golden):
    g = golden("ops/layers.npz")
    g.compare("out/norm2/y", networks.normalize_2nd_moment(g.get("in/norm2/x")))
    for name, variant in g.meta["variants"].items():
        kwargs = variant.get("kwargs") or {k: v for k, v in variant.items() if k != "cls"}
        layer = getattr(networks, variant["cls"])(**kwargs)
        layer.load_state_dict(g.sub(f"sd/{name}."), strict=True)
        x = g.get(f"in/{name}/x").requires_grad_()
        y = layer(x, **variant.get("call", {}))
        y.backward(g.get(f"in/{name}/dy"))
        g.compare(f"out/{name}/y", y)
        g.compare(f"out/{name}/dx", x.grad)
        for key, p in layer.named_parameters():
            g.compare(f"out/{name}/d_{key}", p.grad)


def small_d(**kwargs):
    return Discriminator(0, 32, 3, channel_base=128, channel_max=8, epilogue_kwargs=dict(mbstd_group_size=2), **kwargs)


def test_w_only_head():
    D = small_d(decoder_res=16, glead_res_g=1, decoder_out_channel=24)
    out = D.run(torch.randn([2, 3, 32, 32]))
    assert out.w.shape == (2, 24) and out.f is None and out.img is None
    assert "final_proj.weight" in D.state_dict() and "img_proj.weight" not in D.state_dict()


def test_frozen_layers_are_buffers():
    D = small_d(block_kwargs=dict(freeze_layers=4))  # fromrgb, conv0, conv1, skip of the first block
    assert not list(D.b32.parameters()) and list(D.b16.parameters())
    assert D.state_dict().keys() == small_d().state_dict().keys()


def test_w_only_reconstruction_runs_every_layer():
    G = Generator(8, 0, 8, 16, 3, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=dict(channel_base=64)).eval()
    w = torch.randn([2, 1, 8])
    ws = w.repeat(1, G.synthesis.num_ws_from(0), 1)
    assert ws.shape[1] == G.num_ws
    assert torch.equal(G.synthesis.run(ws, noise_mode="const").img, G.synthesis(ws, noise_mode="const"))


@pytest.mark.parametrize("call", [
    lambda: small_d(decoder_res=64),
    lambda: small_d(decoder_res=12),
    lambda: small_d(architecture="dense"),
    lambda: Generator(8, 0, 8, 24, 3),
    lambda: small_d()(torch.zeros([3, 3, 32, 32])),  # groups of 2
])
def test_bad_arguments(call):
    with pytest.raises(ValueError):
        call()


def test_module_needs_only_what_other_checkouts_have():
    """The names listed in the documentation of the pickle format, and nothing else of this project."""
    allowed = {
        "misc.assert_shape", "misc.profiled_function", "misc.constant", "misc.suppress_tracer_warnings",
        "persistence.persistent_class", "upfirdn2d.setup_filter", "upfirdn2d.upfirdn2d", "upfirdn2d.upsample2d",
        "upfirdn2d.downsample2d", "bias_act.activation_funcs", "bias_act.bias_act", "conv2d_resample.conv2d_resample",
        "fma.fma",
    }
    source = inspect.getsource(networks)
    used = set(re.findall(r"\b((?:misc|persistence|upfirdn2d|bias_act|conv2d_resample|fma)\.\w+)", source))
    imports = re.findall(r"^(?:from|import) (\S+)", source, re.M)
    assert used <= allowed and set(imports) == {"typing", "numpy", "torch", "torch_utils", "torch_utils.ops"}
    optional = re.findall(r"^try:\n    from (\S+) import .*\nexcept ImportError:", source, re.M)
    assert optional == re.findall(r"^ +from (\S+) import", source, re.M) == ["torch_utils.ops.modconv_epilogue"]


@pytest.mark.gpu
def test_half_precision_is_close():
    G = Generator(16, 0, 16, 64, 3, mapping_kwargs=dict(num_layers=2),
                  synthesis_kwargs=dict(channel_base=1024, num_fp16_res=3, conv_clamp=256)).cuda().eval()
    z = torch.randn([4, 16], device="cuda")
    full = G(z, None, noise_mode="const", force_fp32=True)
    half = G(z, None, noise_mode="const")
    assert (full - half).abs().max() < 0.02 * full.abs().max()


def test_bfloat16_on_the_cpu_is_close(tmp_path):
    """Also after a round trip through a pickle, which keeps the choice."""
    common = dict(channel_base=1024, num_fp16_res=2, conv_clamp=256)
    G = Generator(16, 0, 16, 32, 3, mapping_kwargs=dict(num_layers=2),
                  synthesis_kwargs=dict(common, half_type="bfloat16"))
    D = Discriminator(0, 32, 3, **common, block_kwargs=dict(half_type="bfloat16"), decoder_res=16, glead_res_g=8,
                      decoder_out_channel=16)
    network_pickle.save_network_pkl(tmp_path / "net.pkl", {"G": G, "D": D, "G_ema": G.eval()})
    nets = legacy.load_network_pkl(str(tmp_path / "net.pkl"))
    z = torch.randn([4, 16])
    full, half = (nets["G_ema"](z, None, noise_mode="const", force_fp32=force) for force in (True, False))
    assert 0 < (full - half).abs().max() < 0.02 * full.abs().max() and half.dtype == torch.float32
    full, half = (nets["D"].run(full, force_fp32=force) for force in (True, False))
    for a, b in zip((full.logits, full.f, full.img, full.w), (half.logits, half.f, half.img, half.w)):
        assert 0 < (a - b).norm() < 0.02 * a.norm() and b.dtype == torch.float32
    with pytest.raises(ValueError, match="half_type is 'float16' or 'bfloat16', got 'float8'"):
        Generator(16, 0, 16, 32, 3, synthesis_kwargs=dict(half_type="float8"))


def test_memory_format_changes_nothing(monkeypatch):
    """Networks compute channels-last on CPUs; in the ordinary format they give the same."""
    G = Generator(16, 0, 16, 32, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=dict(channel_base=512))
    D = Discriminator(0, 32, 3, channel_base=512, architecture="skip")
    ws = G.mapping(torch.randn([2, 16]), None)
    results = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(networks, "precision", lambda *args: (torch.float32, memory_format))  # noqa: B023
        img = G.synthesis(ws, noise_mode="const", fused_modconv=False)
        results.append(torch.cat([img.flatten(), D(img, None).flatten()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_upsampling_keeps_the_mean():
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    y = upfirdn2d.upsample2d(torch.ones([1, 1, 8, 8]), f)
    assert torch.allclose(y[:, :, 2:-2, 2:-2], torch.ones([1, 1, 12, 12]))


def test_activation_of_the_decoder():
    """GGDR's ablation: each level is activated as other layers are, by leaky ReLU times sqrt(2)."""
    sizes = dict(c_dim=0, img_resolution=16, img_channels=3, channel_base=64, decoder_res=8)
    linear, lrelu = Discriminator(**sizes), Discriminator(**sizes, decoder_act="lrelu")
    lrelu.load_state_dict(linear.state_dict())
    img = torch.randn([4, 3, 16, 16])
    expected = torch.nn.functional.leaky_relu(linear.run(img).fmaps[8], 0.2) * 2**0.5
    torch.testing.assert_close(lrelu.run(img).fmaps[8], expected)
