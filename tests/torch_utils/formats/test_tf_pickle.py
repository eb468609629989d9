"""Networks of TensorFlow: what our networks compute from their variables, against the formulas of those programs."""

import io
import pickle

import numpy as np
import pytest
import torch

import legacy
from dnnlib.util import EasyDict, UserError
from tests.torch_utils.formats import tf_networks


def load(content, *, protocol=4, **options):
    return legacy.load_network_pkl(io.BytesIO(tf_networks.dumps(content, protocol)), **options)


def close(actual, expected):
    bound = 1e-5 * expected.abs().max().item()
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max().item() <= bound


def one_hot(n, classes):
    return torch.eye(classes, dtype=torch.float64)[torch.arange(n) % classes]


GENERATORS = {
    "skip": dict(),
    "resnet": dict(architecture="resnet"),
    "orig": dict(architecture="orig"),
    "labels": dict(label="LabelEmbed", label_size=4),
    "labels of the first program": dict(label="LabelConcat", label_size=4),
    "gray 32x32": dict(resolution=32, num_channels=1, mapping_layers=1),
    "4x4": dict(resolution=4),
    "options": dict(fmap_base=96, fmap_max=5, mapping_lrmul=0.5, resample_kernel=[1, 2, 4, 3], conv_clamp=256,
                    num_fp16_res=2),
}


@pytest.mark.parametrize("name, protocol", [(name, 4) for name in GENERATORS] + [("skip", 2), ("skip", 5)])
def test_generator_renders_what_the_formulas_say(name, protocol):
    options = GENERATORS[name]
    network, variables = tf_networks.make_generator(np.random.RandomState(0), **options)
    G = load((network, network, network), protocol=protocol, only=("G_ema",))["G_ema"]
    z = torch.randn(2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = one_hot(2, 4) if "label" in options else None
    keys = dict(architecture=options.get("architecture", "skip"), lrmul=options.get("mapping_lrmul", 0.01))
    keys["kernel"] = options.get("resample_kernel", (1, 3, 3, 1))
    for noise_mode in ("const", "none"):
        expected = [
            tf_networks.generate(variables, z[i], None if labels is None else labels[i], noise=noise_mode == "const",
                                 **keys)
            for i in range(2)
        ]
        close(G(z.float(), None if labels is None else labels.float(), noise_mode=noise_mode), torch.stack(expected))
    assert torch.equal(G.mapping.w_avg, torch.from_numpy(variables["dlatent_avg"]))
    assert not G.training and not any(p.requires_grad for p in G.parameters())


DISCRIMINATORS = {
    "resnet": dict(),
    "skip": dict(architecture="skip"),
    "orig": dict(architecture="orig"),
    "whole batch": dict(function="D_main"),
    "groups of 2": dict(mbstd_group_size=2, mbstd_num_features=2),
    "no minibatch std": dict(mbstd_num_features=0),
    "labels": dict(label_size=4, function="D_main"),
    "mapped labels": dict(label_size=4, function="D_main", mapping_layers=2, mapping_lrmul=0.2),
    "gray, kernel": dict(num_channels=1, resample_kernel=[1, 2, 4, 3]),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_scores_as_the_formulas_say(name):
    options = DISCRIMINATORS[name]
    network, variables = tf_networks.make_discriminator(np.random.RandomState(0), **options)
    D = load((network, network, network), only=("D",))["D"]
    shape = [8, options.get("num_channels", 3), 16, 16]
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = one_hot(8, 4)
    default = 4 if options.get("function", "D_stylegan2") == "D_stylegan2" else None
    expected = tf_networks.discriminate(
        variables, images, labels, architecture=options.get("architecture", "resnet"),
        group_size=options.get("mbstd_group_size", default), num_features=options.get("mbstd_num_features", 1),
        kernel=options.get("resample_kernel", (1, 3, 3, 1)), lrmul=options.get("mapping_lrmul", 0.1),
    )
    close(D(images.float(), labels.float())[:, 0], expected)


def three_networks(rng, **options):
    G, variables = tf_networks.make_generator(rng)
    return (tf_networks.make_generator(rng)[0], tf_networks.make_discriminator(rng)[0], G), variables


@pytest.mark.parametrize("trust", [False, True])
def test_file_holds_G_D_and_the_averaged_G(trust, tmp_path):
    content, variables = three_networks(np.random.RandomState(0))
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for network in content:
        network.state.update(build_module_src=source, static_kwargs=EasyDict(network.state["static_kwargs"]))
    networks = load(content, trust=trust, force_fp16=not trust)
    assert [key for key, value in networks.items() if value is None] == ["training_set_kwargs", "augment_pipe"]
    assert torch.equal(networks["G_ema"].mapping.w_avg, torch.from_numpy(variables["dlatent_avg"]))
    assert not torch.equal(networks["G"].mapping.w_avg, networks["G_ema"].mapping.w_avg)
    z = torch.randn(4, 10)
    assert networks["D"](networks["G_ema"](z, None)).shape == (4, 1)
    assert not (tmp_path / "ran").exists()
    again = pickle.loads(pickle.dumps(networks["G_ema"]))
    assert torch.equal(again(z, None, noise_mode="const"), networks["G_ema"](z, None, noise_mode="const"))


def test_other_networks_are_one_line():
    rng = np.random.RandomState(0)
    (G, D, Gs), _ = three_networks(rng)
    for content, message in [
        (Gs, "one network of TensorFlow"),
        ((G, Gs), "the three of StyleGAN2"),
        ((G, D, 5), "the three of StyleGAN2"),
        ((D, D, D), r"'16x16/FromRGB/weight' of shape \[1, 1, 3, 4\].*no place in a Generator"),
        ((G, G, G), r"'dlatent_avg' of shape \[12\].*no place in a Discriminator"),
    ]:
        with pytest.raises(UserError, match=message):
            load(content)
    older = tf_networks.Network([("ToRGB_lod0/weight", np.zeros([1, 1, 4, 3], np.float32))], function="G_style")
    with pytest.raises(UserError, match="StyleGAN1 or of progressive growing"):
        load((older, D, older))
    with pytest.raises(UserError, match="progressive growing"):
        legacy.load_network_pkl(io.BytesIO(b"\x80\x03ctfutil\nNetwork\n)\x81."))
    with pytest.raises(UserError, match="normalize latents"):
        load((tf_networks.Network([], normalize_latents=False),) * 3)
    conditional = tf_networks.make_discriminator(rng)[0]
    conditional.state["variables"] = [
        (k, np.zeros([v.shape[0], 5], np.float32) if k == "Output/weight" else v)
        for k, v in conditional.state["variables"]
    ]
    with pytest.raises(UserError, match="one output for each class"):
        load((G, conditional, Gs))
    assert load((G, conditional, Gs), only=("G_ema",))["G_ema"] is not None


def test_damaged_networks_are_named():
    rng = np.random.RandomState(0)

    def broken(change):
        network, _ = tf_networks.make_generator(rng)
        change(network.state, network.state["components"]["synthesis"].state)
        return (network,) * 3

    def without(name):
        def change(_state, synthesis):
            synthesis["variables"] = [item for item in synthesis["variables"] if item[0] != name]

        return change

    def variables_are(value):
        return lambda state, _synthesis: state.update(variables=value)

    for change, message in [
        (without("8x8/Conv1/bias"), r"lacks synthesis\.b8\.conv1\.bias \[8\]"),
        (without("16x16/ToRGB/weight"), "lacks 'synthesis.b16.torgb.weight'"),
        (lambda state, _: state["static_kwargs"].update(fmap_max=4), r"of shape \[.*8.*\], expected \[.*4.*\]"),
        (lambda state, _: state["static_kwargs"].update(fmap_base="x"), "option fmap_base"),
        (lambda state, _: state.update(components={"mapping": 3}), "its components are no networks"),
        (variables_are(None), "it has no variables"),
        (variables_are([("a", 3)]), "a variable is no named array"),
        (variables_are([(3, np.zeros(1, np.float32))]), "a variable is no named array"),
        (variables_are([("a", np.zeros(1, np.int64))]), "'a' of the TensorFlow network is of type int64"),
        (variables_are([("lod", np.zeros(1, np.float32))] * 2), "variables are repeated"),
        (variables_are([("a\nb", np.zeros(1, np.float32))]), r"'a\\nb' of shape \[1\]"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load(broken(change), only=("G_ema",))
        assert "\n" not in str(caught.value)


def test_files_that_are_cut_or_damaged_load_or_are_errors():
    network, _ = tf_networks.make_generator(np.random.RandomState(0), fmap_max=2)
    data = tf_networks.dumps((network,) * 3)
    rng = np.random.RandomState(0)
    outcomes = {True: 0, False: 0}
    damaged = [data[:length] for length in rng.randint(1, len(data), size=30)]
    starts = [i for i in range(len(data) - 8) if data[i:i + 1] in (b"\x8c", b"\x94", b"h", b"K", b"R", b"b", b"t")]
    for position in rng.choice(starts, size=120):
        flipped = bytearray(data)
        flipped[position + rng.randint(3)] ^= 1 << rng.randint(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        try:
            legacy.load_network_pkl(io.BytesIO(content), only=("G_ema",))
            outcomes[True] += 1
        except UserError:
            outcomes[False] += 1
    assert outcomes[False] > 30 and sum(outcomes.values()) == 150
