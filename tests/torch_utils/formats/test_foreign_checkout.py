"""Our network pickles in other people's checkouts: opened by plain `pickle.load` beside a stand-in for their code."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import legacy
from dnnlib.util import EasyDict
from paths import ROOT
from torch_utils.formats import network_pickle
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator

CHECKOUT = Path(__file__).with_name("foreign_checkout")
SMALL = dict(channel_base=128, channel_max=8)
HEADS = dict(decoder_res=[16], glead_res_g=16, decoder_out_channel=12)
TRANSFORMS = (
    "xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation imgfilter noise "
    "cutout".split()
)
METHODS = {  # (options of G, of its synthesis network, of D)
    "stylegan2": (dict(c_dim=3), dict(), dict(c_dim=3, mapping_kwargs=dict(num_layers=2))),
    "ggdr": (dict(), dict(architecture="resnet"), dict(decoder_res=16, architecture="skip")),
    "glead": (dict(), dict(num_fp16_res=4, conv_clamp=1), dict(num_fp16_res=4, conv_clamp=256, **HEADS)),
    "glead+ggdr": (dict(img_channels=1), dict(architecture="orig"), dict(img_channels=1, **HEADS)),
}


def make(method):
    g_options, synthesis_kwargs, d_options = METHODS[method]
    common = dict(c_dim=0, img_resolution=32, img_channels=3)
    torch.manual_seed(0)
    G = Generator(
        z_dim=8, w_dim=12, **{**common, **g_options}, mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs={**SMALL, **synthesis_kwargs},
    )
    D = Discriminator(**{**common, **SMALL, **d_options})
    with torch.no_grad():
        for parameter in [*G.parameters(), *D.parameters()]:
            parameter.add_(torch.randn_like(parameter) / 10)
        G.mapping.w_avg.normal_()
    pipe = AugmentPipe(**dict.fromkeys(TRANSFORMS, 1), imgfilter_bands=[1, 0.5, 1, 1])
    pipe.p.fill_(0.75)
    inputs = dict(z=torch.randn(4, 8), c=torch.eye(3)[[0, 1, 2, 0], :G.c_dim],
                  images=torch.randn(4, G.img_channels, 32, 32))
    return G, D, pipe, inputs


def expected_results(G, D, pipe, z, c, images):
    const = G(z, c, noise_mode="const")
    run = D.run(images, c)
    results = {
        "const": const,
        "copied": const,
        "built anew": const,
        "none, truncated": G(z, c, truncation_psi=0.6, truncation_cutoff=4, noise_mode="none"),
        "unfused": G.synthesis(G.mapping(z, c, truncation_psi=0.5), noise_mode="const"),
        "D": run.logits,
        "D.logits": run.logits,
        "p": torch.tensor(0.75),
        **{f"D.{key}": getattr(run, key) for key in ("f", "img", "w") if getattr(run, key) is not None},
        **{f"D.fmaps.{res}": value for res, value in run.fmaps.items()},
    }
    torch.manual_seed(4)
    results["augmented"] = pipe(images, debug_percentile=0.3)
    torch.manual_seed(5)
    results["random"] = G(z, c)
    torch.manual_seed(6)
    results["augmented at random"] = pipe(images)
    return results


@pytest.mark.parametrize("checkout", ["stylegan2-ada", "stylegan3"])
def test_others_render_the_same_from_our_pickles(checkout, tmp_path):
    """All four methods, within 1e-5 of what this project computes, in float32."""
    shutil.copytree(CHECKOUT, tmp_path, dirs_exist_ok=True)
    expected = {}
    for method in METHODS:
        G, D, pipe, inputs = make(method)
        kwargs = EasyDict(class_name="training.dataset.ImageFolderDataset", path="data.zip")
        networks = dict(G=G, D=D, G_ema=G, augment_pipe=pipe, training_set_kwargs=kwargs)
        network_pickle.save_network_pkl(tmp_path / f"{method}.pkl", networks)
        torch.save(inputs, tmp_path / f"{method}.inputs")
        frozen = [module.eval().requires_grad_(False) for module in (G, D, pipe)]
        expected[method] = expected_results(*frozen, **inputs)
    env = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "CHECKOUT": checkout, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "render.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    actual = torch.load(tmp_path / "results.pt", weights_only=True)
    assert actual.keys() == expected.keys()
    for method in METHODS:
        assert actual[method].keys() == expected[method].keys()
        for name, tensor in expected[method].items():
            error = (actual[method][name] - tensor).abs().max().item()
            assert actual[method][name].shape == tensor.shape
            assert error <= 1e-5, f"{method}, {name}: {error}"
        again = legacy.load_network_pkl(tmp_path / f"{method}.again")  # what they write is ours to read
        inputs = torch.load(tmp_path / f"{method}.inputs", weights_only=True)
        assert torch.equal(again["G_ema"](inputs["z"], inputs["c"], noise_mode="const"), expected[method]["const"])
        assert torch.equal(again["D"](inputs["images"], inputs["c"]), expected[method]["D"])
        assert again["augment_pipe"].p == 0.75


@pytest.mark.parametrize("name", ["networks", "augment"])
def test_embedded_source_is_for_old_pythons_too(name):
    """StyleGAN2-ADA asks for Python 3.7."""
    source = (ROOT / "training" / f"{name}.py").read_text()
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported & {"misc", "persistence", "upfirdn2d"}
    used = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id in ("misc", "persistence", "upfirdn2d", "bias_act", "conv2d_resample", "fma", "dnnlib")
    }
    assert used <= {
        "misc.assert_shape", "misc.profiled_function", "misc.constant", "misc.suppress_tracer_warnings",
        "persistence.persistent_class", "persistence.is_persistent", "persistence.import_hook",
        "upfirdn2d.setup_filter", "upfirdn2d.upfirdn2d", "upfirdn2d.filter2d", "upfirdn2d.upsample2d",
        "upfirdn2d.downsample2d",
        "bias_act.activation_funcs", "bias_act.bias_act", "conv2d_resample.conv2d_resample", "fma.fma",
    }
