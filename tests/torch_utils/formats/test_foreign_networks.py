"""Networks of other projects become ours: arguments, defaults, shapes, buffers."""

import pickle

import numpy as np
import pytest
import torch

from dnnlib.util import UserError
from tests.torch_utils.formats.pickle_makers import Foreign, as_foreign, load
from torch_utils.formats import network_pickle, read_networks
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator

SMALL = dict(channel_base=64, channel_max=8)
COMMON = dict(z_dim=8, c_dim=0, w_dim=12, img_resolution=16, img_channels=3)


def generator(*, mapping_kwargs=None, synthesis_kwargs=None, **options):
    mapping_kwargs = {"num_layers": 2, **(mapping_kwargs or {})}
    synthesis_kwargs = {**SMALL, **(synthesis_kwargs or {})}
    kwargs = {**COMMON, **options, "mapping_kwargs": mapping_kwargs, "synthesis_kwargs": synthesis_kwargs}
    return randomized(Generator(**kwargs)), kwargs


def discriminator(**options):
    kwargs = {"c_dim": 0, "img_resolution": 16, "img_channels": 3, **SMALL, **options}
    return randomized(Discriminator(**kwargs)), kwargs


def randomized(module):
    rng = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.add_(torch.randn(tensor.shape, generator=rng) / 10)
    return module.eval().requires_grad_(False)


def outputs(module):
    rng = torch.Generator().manual_seed(1)
    c = torch.eye(5)[:2, :module.c_dim]
    if isinstance(module, Generator):
        z = torch.randn(2, module.z_dim, generator=rng)
        return [module(z, c, noise_mode="const"), module(z, c, truncation_psi=0.5, noise_mode="none")]
    shape = [2, module.img_channels, module.img_resolution, module.img_resolution]
    return [x for x in module.run(torch.randn(shape, generator=rng), c) if isinstance(x, torch.Tensor)]


def assert_same(actual, expected):
    assert not actual.training
    for a, b in zip(outputs(actual), outputs(expected), strict=True):
        assert torch.equal(a, b)
    for (name, a), (_, b) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


GENERATORS = {
    "4x4": dict(img_resolution=4),
    "64x64": dict(img_resolution=64, synthesis_kwargs=dict(channel_base=256)),
    "grayscale": dict(img_channels=1),
    "conditional": dict(c_dim=5),
    "conditional, widths": dict(c_dim=5, mapping_kwargs=dict(embed_features=3, layer_features=7, num_layers=4)),
    "orig": dict(synthesis_kwargs=dict(architecture="orig")),
    "resnet": dict(synthesis_kwargs=dict(architecture="resnet")),
    "no float16": dict(synthesis_kwargs=dict(num_fp16_res=0, conv_clamp=None)),
    "channels last": dict(synthesis_kwargs=dict(num_fp16_res=4, conv_clamp=256, fp16_channels_last=True)),
    "no noise": dict(synthesis_kwargs=dict(use_noise=False)),
    "other filter": dict(synthesis_kwargs=dict(resample_filter=[1, 2, 1])),
    "other filter, resnet": dict(synthesis_kwargs=dict(architecture="resnet", resample_filter=[1, 4, 6, 4, 1])),
}
DISCRIMINATORS = {
    "grayscale": dict(img_channels=1),
    "conditional": dict(c_dim=5, mapping_kwargs=dict(num_layers=2)),
    "conditional, label only embedded": dict(c_dim=5, cmap_dim=6, mapping_kwargs=dict(num_layers=0, embed_features=6)),
    "skip": dict(architecture="skip"),
    "orig": dict(architecture="orig"),
    "no minibatch std": dict(epilogue_kwargs=dict(mbstd_num_channels=0)),
    "minibatch std of 2 channels": dict(epilogue_kwargs=dict(mbstd_group_size=2, mbstd_num_channels=2)),
    "float16": dict(num_fp16_res=4, conv_clamp=256),
    "frozen layers": dict(block_kwargs=dict(freeze_layers=4)),
    "other filter": dict(block_kwargs=dict(resample_filter=[1, 2, 1])),
    "GGDR": dict(decoder_res=16),
    "GLeaD": dict(decoder_res=[16], glead_res_g=8, decoder_out_channel=12, decoder_conv_kernel_size=1),
    "GLeaD, w only": dict(decoder_res=[8], glead_res_g=1, decoder_out_channel=12),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_of_all_kinds(name):
    expected, kwargs = generator(**GENERATORS[name])
    assert_same(load({"G_ema": as_foreign(expected, **kwargs)})["G_ema"], expected)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_of_all_kinds(name):
    expected, kwargs = discriminator(**DISCRIMINATORS[name])
    assert_same(load({"D": as_foreign(expected, **kwargs)})["D"], expected)


def test_filters_are_for_layers_that_resample():
    """In the state dicts of StyleGAN2-ADA, other layers keep [1, 3, 3, 1] in their buffers, which nothing uses."""
    G = Generator(**COMMON, synthesis_kwargs={**SMALL, "architecture": "resnet", "resample_filter": [1, 2, 1]})
    D = Discriminator(0, 16, 3, **SMALL, block_kwargs={"resample_filter": [1, 2, 1]}, decoder_res=8)
    taps = [{name.removesuffix("resample_filter"): len(tensor) for name, tensor in net.state_dict().items()
             if name.endswith("resample_filter")} for net in (G.synthesis, D)]
    resample = {f"b{res}.{part}": 3 for res in (8, 16) for part in ("", "skip.")}
    assert taps[0] == resample | {"b4.": 3, "b8.conv0.": 3, "b16.conv0.": 3, "b4.conv1.": 4, "b8.conv1.": 4,
                                  "b16.conv1.": 4}
    assert taps[1] == resample | {
        "b8.conv1.": 3, "b16.conv1.": 3, "b8.conv0.": 4, "b16.conv0.": 4, "b16.fromrgb.": 4, "b4.conv.": 4,
        "b8_dec.": 4}


@pytest.mark.filterwarnings("ignore:the source embedded")
def test_networks_of_stylegan3_itself_are_one_line():
    """The tree of modules of configurations T and R; trusting the file doesn't help, and isn't recommended."""

    def node(class_name, *, options=None, **modules):
        state = dict(training=False, _parameters={}, _buffers={}, _modules=modules, size=np.array([36, 36]))
        state.update({} if options is None else dict(_init_args=(), _init_kwargs=options))
        return Foreign(class_name, state, source="from torch_utils.ops import filtered_lrelu\n")

    layer = node("SynthesisLayer", affine=node("FullyConnectedLayer"))
    synthesis = node("SynthesisNetwork", input=node("SynthesisInput"), L0_36_512=layer)
    options = {**COMMON, "channel_base": 64, "magnitude_ema_beta": 0.999}
    G = node("Generator", options=options, synthesis=synthesis, mapping=node("MappingNetwork"))
    for trust in (False, True):
        with pytest.raises(UserError, match="of StyleGAN3, only the StyleGAN2 configurations are supported$"):
            load({"G": G, "D": None, "G_ema": G}, trust=trust)


def test_stylegan3_passes_synthesis_arguments_flat_and_has_other_defaults():
    expected, kwargs = generator(
        mapping_kwargs=dict(w_avg_beta=0.998),
        synthesis_kwargs=dict(num_fp16_res=2, conv_clamp=256, architecture="resnet")
    )
    assert not expected.synthesis.b4.use_fp16 and expected.synthesis.b8.use_fp16
    flat = {**COMMON, "mapping_kwargs": {"num_layers": 2}, **SMALL, "architecture": "resnet"}
    for mode in ("inference_only", True):
        for G in (
            load({"G_ema": as_foreign(expected, **flat, fused_modconv_default=mode)})["G_ema"],
            pickle.loads(pickle.dumps(as_foreign(expected, **flat, fused_modconv_default=mode))),
        ):
            assert_same(G, expected)
            assert G.init_kwargs == kwargs
    D, kwargs = discriminator(num_fp16_res=2, conv_clamp=256)
    loaded = load({"D": as_foreign(D, c_dim=0, img_resolution=16, img_channels=3, **SMALL)})["D"]
    assert_same(loaded, D)
    assert loaded.init_kwargs == kwargs and loaded.b8.conv0.conv_clamp == 256 and loaded.b16.use_fp16


@pytest.mark.parametrize("clamp", [None, 0.25])
def test_a_clamp_that_is_left_to_the_default_is_that_of_the_file(clamp):
    expected, kwargs = generator(synthesis_kwargs=dict(conv_clamp=clamp))
    del kwargs["synthesis_kwargs"]["conv_clamp"]
    G = load({"G_ema": as_foreign(expected, **kwargs)})["G_ema"]
    assert_same(G, expected)
    assert G.synthesis.b16.torgb.conv_clamp == clamp
    expected, kwargs = discriminator(conv_clamp=clamp)
    del kwargs["conv_clamp"]
    assert_same(load({"D": as_foreign(expected, **kwargs)})["D"], expected)


def test_arguments_by_position():
    expected, kwargs = generator()
    foreign = as_foreign(expected, **kwargs)
    foreign.meta.state.update(_init_args=tuple(kwargs.values()), _init_kwargs={})
    assert_same(load({"G": foreign})["G"], expected)


def test_mismatches_name_the_parameter_and_both_shapes():
    for network, kwargs, change, message in [
        (*generator(), dict(img_channels=1),
         r"synthesis\.b4\.torgb\.weight of shape \[3, 8, 1, 1\], expected \[1, 8, 1, 1\]"),
        (*generator(), dict(c_dim=5), r"lacks mapping\.embed\.weight \[12, 5\]"),
        (*generator(img_resolution=32), dict(img_resolution=16), r"synthesis\.b32\.[a-z0-9._]+' and \d+ others"),
        (*generator(img_resolution=16), dict(img_resolution=32), r"lacks synthesis\.b32\.[a-z0-9._]+ \["),
        (*discriminator(), dict(architecture="skip"), r"lacks b8\.fromrgb\.weight \[8, 3, 1, 1\]"),
        (*discriminator(), dict(channel_max=4), r"b16\.fromrgb\.weight of shape \[4, 3, 1, 1\]|of shape .* expected "),
        (*discriminator(decoder_res=8), dict(decoder_res=None), r"has 'b8_dec\."),
        (
            *discriminator(epilogue_kwargs=dict(mbstd_num_channels=0)), dict(epilogue_kwargs={}),
            r"b4\.conv\.weight of shape \[8, 8, 3, 3\], expected \[8, 9, 3, 3\]",
        ),
    ]:
        key = "G" if isinstance(network, Generator) else "D"
        with pytest.raises(UserError, match=message):
            load({key: as_foreign(network, **{**kwargs, **change})})


# ----------------------------------------------------------------------------------------------------------------------
# Augmentation.


AUGMENT = dict(xflip=1, rotate90=1, xint=1, scale=1, xfrac_std=0.25, imgfilter=1, imgfilter_bands=[1, 0.5, 1, 0],
               noise_std=0.2)


@pytest.mark.parametrize("class_name", ["AugmentPipe", "AugmentPipeGFeat"])
def test_augmentation_pipes_keep_arguments_strength_and_buffers(class_name, tmp_path):
    pipe = AugmentPipe(**AUGMENT).eval().requires_grad_(False)
    pipe.p.fill_(0.375)
    pipe.Hz_fbank.mul_(0.5)  # what stands in the file counts
    foreign = as_foreign(pipe, class_name=class_name, **AUGMENT)
    D, kwargs = discriminator()
    loaded = load({"D": as_foreign(D, **kwargs), "augment_pipe": foreign})["augment_pipe"]
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = pipe(images, debug_percentile=0.7)
    for actual in (loaded, pickle.loads(pickle.dumps(foreign))):
        assert type(actual) is AugmentPipe and actual.init_kwargs == AUGMENT
        assert actual.imgfilter_bands == [1, 0.5, 1, 0]
        assert actual.p == 0.375 and actual.p.shape == () and not actual.training
        assert torch.equal(actual(images, debug_percentile=0.7), expected)
    network_pickle.save_network_pkl(tmp_path / "a.pkl", {"D": D, "augment_pipe": loaded})
    with open(tmp_path / "a.pkl", "rb") as f:
        again = read_networks(f)["augment_pipe"]
    assert again.p == 0.375 and torch.equal(again(images, debug_percentile=0.7), expected)


def test_augmentation_pipes_that_do_not_fit_are_one_line():
    pipe = AugmentPipe(xflip=1)
    D, kwargs = discriminator()

    def loaded(foreign):
        return load({"D": as_foreign(D, **kwargs), "augment_pipe": foreign})

    with pytest.raises(UserError, match="AugmentPipe can't be built.*TypeError.*sparkle"):
        loaded(as_foreign(pipe, xflip=1, sparkle=1))
    with pytest.raises(UserError, match="AugmentPipe can't be built.*imgfilter_bands has 3 numbers, expected 4"):
        loaded(as_foreign(pipe, imgfilter_bands=[1, 1, 1]))
    pipe.register_buffer("Hz_geom", torch.zeros(8))
    with pytest.raises(UserError, match=r"Hz_geom of shape \[8\], expected \[12\]"):
        loaded(as_foreign(pipe, xflip=1))
    with pytest.raises(UserError, match="augment_pipe is of class Discriminator, expected AugmentPipe"):
        loaded(as_foreign(D, **kwargs))
