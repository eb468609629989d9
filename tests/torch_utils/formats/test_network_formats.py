"""Networks in other formats: what is written reads back the same, and files that are wrong say so in one line."""

import argparse
import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import struct
import zipfile

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

import legacy
from dnnlib.util import UserError
from torch_utils.formats import FORMATS, description, onnx_file, safetensors_file, state_dict_file
from torch_utils.formats.network_pickle import save_network_pkl
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator

WRITERS = {
    "pkl": save_network_pkl, "safetensors": safetensors_file.write, "pt": state_dict_file.write,
}
SMALL = dict(channel_base=128, channel_max=16)


def shaken(module, seed):
    """All parameters and statistics away from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.ndim < 2 and tensor.is_floating_point():
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return module.eval().requires_grad_(False)


def make_generator(seed=0, *, arch="skip", c_dim=0, res=16, channels=3, **synthesis):
    torch.manual_seed(seed)
    G = Generator(12, c_dim, 12, res, channels, mapping_kwargs=dict(num_layers=3),
                  synthesis_kwargs=dict(SMALL, architecture=arch, **synthesis))
    return shaken(G, seed)


def make_networks(*, arch="skip", c_dim=0, res=16, channels=3, **synthesis):
    shape = dict(arch=arch, c_dim=c_dim, res=res, channels=channels, **synthesis)
    decoder = dict(decoder_res=8, glead_res_g=8, decoder_out_channel=12)
    D = Discriminator(c_dim, res, channels, architecture=arch, **decoder, **SMALL)
    options = dict(class_name="training.dataset.ImageFolderDataset", path="a.zip", max_size=None, xflip=True)
    pipe = AugmentPipe(xflip=1, brightness=1)
    pipe.p.fill_(0.25)
    return dict(G=make_generator(0, **shape), D=shaken(D, 2), G_ema=make_generator(1, **shape), augment_pipe=pipe,
                training_set_kwargs=options)


VARIANTS = {
    "skip": dict(res=16, resample_filter=[1, 2, 1]),
    "orig-gray": dict(arch="orig", channels=1, res=8),
    "resnet-labels": dict(arch="resnet", c_dim=3, res=32),
}


def draw(G, *, num=3, psi=0.7, noise_mode="const"):
    z = torch.from_numpy(np.random.RandomState(0).randn(num, G.z_dim)).float()
    c = torch.eye(G.c_dim)[torch.arange(num) % G.c_dim] if G.c_dim else None
    return G(z, c, truncation_psi=psi, noise_mode=noise_mode)


def assert_same(actual, expected):
    """The same arguments, the same bits."""
    assert [key for key in actual if actual[key] is not None] == list(expected)
    for key, value in expected.items():
        if isinstance(value, torch.nn.Module):
            assert type(actual[key]) is type(value)
            ours, theirs = value.state_dict(), actual[key].state_dict()
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert not actual[key].training
            assert not any(p.requires_grad for p in actual[key].parameters())
        else:
            assert actual[key] == value


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pair_of_formats_keeps_networks(variant, tmp_path):
    order = ["G", "D", "G_ema", "training_set_kwargs", "augment_pipe"]  # of pickles
    networks = make_networks(**VARIANTS[variant])
    networks = {key: networks[key] for key in order}
    formats = ["pkl", "safetensors"] + ["pt"] * (variant == "skip")
    for first in formats:
        a, b = tmp_path / f"a-{first}", tmp_path / f"b-{first}"
        WRITERS[first](a, networks)
        found = legacy.load_network_pkl(a)
        for second in formats:
            WRITERS[second](b, {key: value for key, value in found.items() if value is not None})
            again = legacy.load_network_pkl(b)
            if FORMATS[first].lossless and FORMATS[second].lossless:
                assert_same(again, networks)
            for key in ("G_ema", "G"):
                expected = networks[key].state_dict()
                assert all(torch.equal(expected[name], tensor) for name, tensor in again[key].state_dict().items())
                assert (draw(again[key]) - draw(networks[key])).abs().max() <= 1e-5, (first, second, key)


def test_only_and_half_precision_serve_every_format(tmp_path):
    networks = make_networks()
    for name in ("pkl", "safetensors", "pt"):
        WRITERS[name](tmp_path / "net", networks)
        found = legacy.load_network_pkl(tmp_path / "net", force_fp16=True, only=("G_ema",))
        assert [key for key, value in found.items() if value is not None] == ["G_ema"]
        assert found["G_ema"].synthesis.b16.use_fp16
        with open(tmp_path / "net", "rb") as f:  # a stream without a name, and without seeking
            stream = io.BytesIO(f.read())
            stream.seekable = lambda: False
            assert_same(legacy.load_network_pkl(stream, only=("G",)), {"G": networks["G"]})


# ----------------------------------------------------------------------------------------------------------------------
# State dicts under rosinality's names: images by their formulas, from nothing but the state dict.


def reference_images(state, z, *, mean=None, psi=1.0):
    def fully_connected(name, x, multiplier):
        weight = state[f"{name}.weight"]
        return x @ weight.t() * (multiplier / math.sqrt(weight.shape[1])) + state[f"{name}.bias"] * multiplier

    def activate(x):
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    def filtered(x, kernel, before, after):  # a true convolution of each channel
        x = F.pad(x, [before, after, before, after])
        kernel = kernel.flip([0, 1]).expand(x.shape[1], 1, *kernel.shape)
        return F.conv2d(x, kernel, groups=x.shape[1])

    def modulated(name, x, w, *, demodulate=True, kernel=None):
        style = fully_connected(f"{name}.modulation", w, 1.0)
        weight = state[f"{name}.weight"][0]  # [out, in, k, k]
        images = []
        for i in range(len(x)):
            k = weight / math.sqrt(weight[0].numel()) * style[i][None, :, None, None]
            if demodulate:
                k = k / (k.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt()
            if kernel is None:
                images.append(F.conv2d(x[i:i + 1], k, padding=k.shape[2] // 2))
            else:
                y = F.conv_transpose2d(x[i:i + 1], k.transpose(0, 1), stride=2)
                images.append(filtered(y, kernel, (len(kernel) - 3) // 2 + 1, (len(kernel) - 4) // 2 + 1))
        return torch.cat(images)

    def styled(name, x, w, noise, kernel=None):
        x = modulated(f"{name}.conv", x, w, kernel=kernel)
        x = x + state[f"{name}.noise.weight"] * state[f"noises.noise_{noise}"]
        return activate(x + state[f"{name}.activate.bias"][:, None, None])

    def to_rgb(name, x, w):
        return modulated(f"{name}.conv", x, w, demodulate=False) + state[f"{name}.bias"]

    def enlarged(img, kernel):
        spread = torch.zeros([*img.shape[:2], 2 * img.shape[2], 2 * img.shape[3]])
        spread[:, :, ::2, ::2] = img
        return filtered(spread, kernel, (len(kernel) - 1) // 2 + 1, (len(kernel) - 2) // 2)

    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for idx in range(1, sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in state) + 1):
        w = activate(fully_connected(f"style.{idx}", w, 0.01))
    w = w if mean is None else mean + psi * (w - mean)
    x = styled("conv1", state["input.input"].expand(len(z), -1, -1, -1), w, 0)
    img = to_rgb("to_rgb1", x, w)
    j = 0
    while f"to_rgbs.{j}.bias" in state:
        x = styled(f"convs.{2 * j}", x, w, 2 * j + 1, state[f"convs.{2 * j}.conv.blur.kernel"])
        x = styled(f"convs.{2 * j + 1}", x, w, 2 * j + 2)
        img = enlarged(img, state[f"to_rgbs.{j}.upsample.kernel"]) + to_rgb(f"to_rgbs.{j}", x, w)
        j += 1
    return img


def foreign_state_dict(*, res=16, w_dim=12, channels=(16, 12, 6), num_layers=2, taps=(1, 3, 3, 1)):
    """A generator of that project with random weights, by its naming rules."""
    generator = torch.Generator().manual_seed(5)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    state = {}
    for idx in range(1, num_layers + 1):
        state |= {f"style.{idx}.weight": randn(w_dim, w_dim) / 0.01, f"style.{idx}.bias": randn(w_dim) * 30}
    kernel = torch.outer(torch.tensor(taps), torch.tensor(taps)).float()
    kernel = kernel / kernel.sum() * 4

    def conv(name, c_in, c_out, k):
        state[f"{name}.conv.weight"] = randn(1, c_out, c_in, k, k)
        state[f"{name}.conv.modulation.weight"] = randn(c_in, w_dim)
        state[f"{name}.conv.modulation.bias"] = 1 + 0.2 * randn(c_in)

    def styled(name, c_in, c_out):
        conv(name, c_in, c_out, 3)
        state.update({f"{name}.noise.weight": randn(1) * 0.3, f"{name}.activate.bias": randn(c_out) * 0.3})

    def rgb(name, c_in):
        conv(name, c_in, 3, 1)
        state[f"{name}.bias"] = randn(1, 3, 1, 1) * 0.3

    state["input.input"] = randn(1, channels[0], 4, 4)
    styled("conv1", channels[0], channels[0])
    rgb("to_rgb1", channels[0])
    for j in range(int(math.log2(res)) - 2):
        styled(f"convs.{2 * j}", channels[j], channels[j + 1])
        styled(f"convs.{2 * j + 1}", channels[j + 1], channels[j + 1])
        rgb(f"to_rgbs.{j}", channels[j + 1])
        state[f"convs.{2 * j}.conv.blur.kernel"] = state[f"to_rgbs.{j}.upsample.kernel"] = kernel
    for k in range(2 * int(math.log2(res)) - 3):
        r = 2 ** ((k + 5) // 2)
        state[f"noises.noise_{k}"] = randn(1, 1, r, r)
    return state


def torch_saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def load(data, **options):
    return legacy.load_network_pkl(io.BytesIO(data), **options)


Z = torch.from_numpy(np.random.RandomState(3).randn(3, 12)).float()


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 2, 4, 3), (1, 1, 2, 3, 4, 5, 3, 2)], ids=str)
def test_their_generators_draw_the_images_of_their_formulas(taps):
    state, mean = foreign_state_dict(taps=taps), torch.linspace(-1, 1, 12)
    G = load(torch_saved({"g_ema": state, "latent_avg": mean}))["G_ema"]
    for psi in (1.0, 0.5):
        expected = reference_images(state, Z, mean=mean, psi=psi)
        actual = G(Z, None, truncation_psi=psi, noise_mode="const")
        assert (actual - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    back = state_dict_file.to_state_dict(G)
    assert set(back) == set(state)
    assert all(torch.allclose(back[name], state[name], atol=1e-6) for name in state)


@pytest.mark.parametrize("res", [4, 8, 32])
def test_our_generators_draw_the_same_by_their_formulas(res):
    G = make_generator(4, res=res)
    state = state_dict_file.to_state_dict(G)
    expected = G(Z, None, truncation_psi=0.6, noise_mode="const")
    assert (reference_images(state, Z, mean=G.mapping.w_avg, psi=0.6) - expected).abs().max() <= 1e-5


def test_files_as_training_programs_write_them():
    state = foreign_state_dict()
    options = argparse.Namespace(size=16, path="x")
    own = torch.nn.Linear(1, 1).state_dict()    # an OrderedDict with an attribute
    own.clear()
    own.update(state)
    assert own._metadata
    checkpoint = {"g": state, "g_ema": own, "d": {}, "args": options, "ada_aug_p": 0.5}
    checkpoint["latent_avg"] = torch.ones(1, 12)
    moments = {"step": 3, "exp_avg": torch.ones(2)}
    checkpoint["g_optim"] = {"state": {140234567890123: moments}, "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99)}]}
    with pytest.warns(UserWarning, match="discriminator in the file"):
        found = load(torch_saved(checkpoint))
    assert found["D"] is None and torch.equal(found["G"].mapping.w_avg, torch.ones(12))
    expected = draw(found["G_ema"])
    checkpoint.pop("d")
    half = {name: tensor.double() for name, tensor in state.items()} | {"style.0.kernel": torch.ones(1)}
    for content, options in (
        (checkpoint, dict(_use_new_zipfile_serialization=False)),       # the format before PyTorch 1.6
        ({"g_ema": half, "latent_avg": torch.ones(12)}, {}),
    ):
        assert torch.equal(draw(load(torch_saved(content, **options))["G_ema"]), expected)


def test_a_missing_mean_is_computed_and_said():
    with pytest.warns(UserWarning, match="lacks latent_avg"):
        G = load(torch_saved(foreign_state_dict()))["G_ema"]  # the bare state dict
    ws = G.mapping(torch.randn([20_000, 12], generator=torch.Generator().manual_seed(1)), None)[:, 0]
    assert (G.mapping.w_avg - ws.mean(0)).abs().max() < 0.05 * ws.std()


@pytest.mark.parametrize("options,message", [
    (dict(arch="resnet"), "architecture 'resnet'"),
    (dict(arch="orig"), "architecture 'orig'"),
    (dict(c_dim=2), "conditional"),
    (dict(channels=1), "1 channels"),
    (dict(use_noise=False), "no noise"),
    (dict(activation="relu"), "activation"),
])
def test_state_dicts_refuse_what_they_cannot_express(options, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        state_dict_file.write(tmp_path / "x.pt", {"G_ema": make_generator(**options)})
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------------------
# ONNX.


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Exports are slow: one of each kind. Path and the generator that it should be."""
    folder = tmp_path_factory.mktemp("onnx")
    plain = make_generator(resample_filter=[1, 2, 1])
    labels = make_generator(arch="resnet", c_dim=3, res=8, channels=1, resample_filter=[1, 2, 3, 3, 2, 1])
    onnx_file.write(folder / "none.onnx", {"G_ema": plain}, noise_mode="none")
    onnx_file.write(folder / "const.onnx", {"G_ema": labels, "training_set_kwargs": {"path": "a.zip"}})
    return {"none": (folder / "none.onnx", plain), "const": (folder / "const.onnx", labels)}


@pytest.mark.parametrize("noise_mode", ["none", "const"])
def test_graphs_draw_the_same_images_in_batches_of_any_size(graphs, noise_mode):
    path, G = graphs[noise_mode]
    session = onnx_file.Session(path)
    for num in (1, 2, 5):
        z = torch.from_numpy(np.random.RandomState(0).randn(num, 12)).float()
        c = torch.eye(3)[torch.arange(num) % 3] if G.c_dim else None
        for psi in (None, 1.0, 0.4, -0.5):
            expected = draw(G, num=num, psi=1 if psi is None else psi, noise_mode=noise_mode)
            assert (session(z, c, psi) - expected).abs().max() <= 1e-5
    assert (draw(G, psi=1) - draw(G, psi=0.4)).abs().max() > 0.01


@pytest.mark.parametrize("noise_mode", ["none", "const"])
def test_graphs_read_back_as_generators(graphs, noise_mode):
    path, G = graphs[noise_mode]
    found = legacy.load_network_pkl(path)
    expected = onnx_file.without_noise(G) if noise_mode == "none" else G
    options = {} if noise_mode == "none" else {"training_set_kwargs": {"path": "a.zip"}}
    assert_same(found, {"G_ema": expected} | options)
    assert torch.equal(draw(found["G_ema"], noise_mode=noise_mode), draw(G, noise_mode=noise_mode))


def test_graphs_are_valid_and_name_no_folders(graphs):
    for path, _ in graphs.values():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert not re.search(rb"\.py|/torch", path.read_bytes())
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_foreign_and_lying_graphs_are_refused(graphs, tmp_path):
    def changed(change):
        model = onnx.load(graphs["const"][0])
        change(model, next(t for t in model.graph.initializer if t.name.endswith("fc0.weight")))
        return model.SerializeToString()

    def outside(model, tensor):
        (tmp_path / "secret").write_bytes(bytes(4 * 12 * 24))
        onnx.external_data_helper.set_external_data(tensor, str(tmp_path / "secret"), 0, 4 * 12 * 24)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL

    def lie(model, tensor):
        tensor.dims[0] = 1 << 60

    def rename(model, tensor):
        tensor.name += "x"

    for change, message in (
        (outside, "no float32 tensor within the file"), (lie, "no float32 tensor within the file"),
        (rename, "lacks G_ema.mapping.fc0.weight"),
        (lambda model, _: model.ClearField("metadata_props"), "convert.py didn't write"),
    ):
        with pytest.raises(UserError, match=message):
            load(changed(change))


# ----------------------------------------------------------------------------------------------------------------------
# Files that are wrong.


def safetensors_bytes(tmp_path, change=lambda described, tensors: None, **metadata):
    """A file with changes to its description and tensors."""
    safetensors_file.write(tmp_path / "x.safetensors", {"G_ema": make_generator(res=8)})
    described = json.loads((tmp_path / "x.json").read_text())
    tensors = load_safetensors((tmp_path / "x.safetensors").read_bytes())
    change(described, tensors)
    return save_safetensors(tensors, metadata or {"glead": json.dumps(described)})


def test_truncated_files_say_so(graphs, tmp_path):
    networks = make_networks(res=8)
    for name in ("safetensors", "pt", "onnx", "pkl"):
        if name == "onnx":
            shutil.copy(graphs["const"][0], tmp_path / "net")
        else:
            WRITERS[name](tmp_path / "net", networks)
        data = (tmp_path / "net").read_bytes()
        for size in (3, 9, 30, 200, len(data) // 2, len(data) - 1):
            (tmp_path / "net").write_bytes(data[:size])
            with pytest.raises(UserError) as e:
                legacy.load_network_pkl(tmp_path / "net")
            assert "\n" not in str(e.value) and str(e.value).startswith(f"{tmp_path / 'net'}: "), (name, size)


def set_clamp(described, tensors):
    described["networks"]["G_ema"]["init_kwargs"]["synthesis_kwargs"]["conv_clamp"] = "red"


def set_version(described, tensors):
    described["format_version"] = 2


def set_class(described, tensors):
    described["networks"]["G_ema"]["class_name"] = "Popen"


def set_argument(described, tensors):
    described["networks"]["G_ema"]["init_kwargs"]["colour"] = "red"


def set_huge(described, tensors):
    described["networks"]["G_ema"]["init_args"][3] = 65536
    described["networks"]["G_ema"]["init_kwargs"]["synthesis_kwargs"] |= dict(channel_base=1 << 17, channel_max=1 << 20)


def set_deep(described, tensors):
    described["networks"]["G_ema"]["init_kwargs"]["mapping_kwargs"]["num_layers"] = 1_000_000


def drop(described, tensors):
    del tensors["G_ema.synthesis.b8.conv0.weight"]


def add(described, tensors):
    tensors["G_ema.synthesis.b8.conv9.weight"] = torch.ones(1)


def add_network(described, tensors):
    tensors["G.synthesis.b8.conv0.weight"] = torch.ones(1)


def reshape(described, tensors):
    tensors["G_ema.synthesis.b8.conv0.weight"] = torch.ones(2, 3)


def drop_networks(described, tensors):
    described["networks"] = [described["networks"]]


@pytest.mark.parametrize("change,message", [
    (set_version, "version 2; this program reads 1"),
    (set_class, "G_ema is of class 'Popen', which this project doesn't define"),
    (set_argument, "can't be built"),
    (set_clamp, "can't be built from the arguments in the file: ValueError: could not convert string to float: 'red'"),
    (set_huge, r"synthesis.b4.const of shape \[16, 4, 4\], expected \[32768, 4, 4\]"),
    (set_deep, "1000000 layers in a mapping network"),
    (drop, r"lacks G_ema.synthesis.b8.conv0.weight \[16, 16, 3, 3\]"),
    (add, "has 'G_ema.synthesis.b8.conv9.weight'"),
    (add_network, "'G.synthesis.b8.conv0.weight' that belongs to no network"),
    (reshape, r"G_ema.synthesis.b8.conv0.weight of shape \[2, 3\], expected \[16, 16, 3, 3\]"),
    (drop_networks, "none of format"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_safetensors_that_do_not_fit_are_refused(change, message, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as e:
        load(safetensors_bytes(tmp_path, change))
    assert "\n" not in str(e.value) and "pickle" not in str(e.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_a_description_beside_the_file_serves_where_it_holds_none(tmp_path):
    data = safetensors_bytes(tmp_path, some="thing")
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert_same(legacy.load_network_pkl(path), {"G_ema": make_generator(res=8)})
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="x.json: its description of networks is damaged"):
        legacy.load_network_pkl(path)
    os.remove(tmp_path / "x.json")
    with pytest.raises(UserError, match="nor is x.json beside it; convert.py writes both"):
        legacy.load_network_pkl(path)
    with pytest.raises(UserError, match="its metadata hold none; convert.py writes both"):
        load(data)


@pytest.mark.parametrize("data,message", [
    (struct.pack("<Q", 1 << 31) + b"{}", "truncated: its header says 2147483648 bytes"),
    (struct.pack("<Q", 2) + b"{}", "without a description"),
    (struct.pack("<Q", 4) + b"{{}}", "header is no JSON"),
    (struct.pack("<Q", 9 << 20) + b"{" + bytes(9 << 20), "larger than networks need"),
])
def test_wrong_headers_of_safetensors(data, message):
    with pytest.raises(UserError, match=message):
        load(data)


class Call:
    def __reduce__(self):
        return os.system, ("touch called",)


def zipped(files, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_lying_storage():
    data = torch_saved({"g_ema": {"input.input": torch.zeros(7)}})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    lied = files[name].replace(b"K\x07", b"J\xff\xff\xff\x7f")
    assert lied != files[name]
    return zipped(files | {name: lied})


def broken(**changes):
    return {name: tensor for name, tensor in (foreign_state_dict() | changes).items() if tensor is not None}


DOUBLED = b"N\x85" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(45))  # 2**45 tuples, seen as a tree
AS_A_KEY = b"\x80\x02}" + DOUBLED + b"Ns."
IN_AN_ORDERED_DICT = b"\x80\x02ccollections\nOrderedDict\n](]" + DOUBLED + b"aNae\x85R."


def old_save(code):
    """A file by torch.save before its zip archives, with code in place of its content."""
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*parts, code, pickle.dumps([], 2)])


STATE_DICT_ERRORS = {
    "endless key": (lambda: zipped({"x/data.pkl": AS_A_KEY}), "neither a short string nor a small number"),
    "endless key, old": (lambda: old_save(AS_A_KEY), "neither a short string nor a small number"),
    "endless arguments": (lambda: zipped({"x/data.pkl": IN_AN_ORDERED_DICT}), "truncated, damaged"),
    "endless arguments, old": (lambda: old_save(IN_AN_ORDERED_DICT), "truncated, damaged"),
    "two pickles": (lambda: zipped({"x/data.pkl": b"\x80\x02}.", "x/DATA.pkl": AS_A_KEY}), "a name stands twice"),
    "code": (lambda: torch_saved({"g_ema": {}, "x": Call()}), "refused, because it asks for .*system"),
    "others": (lambda: torch_saved({"model": {}}), "without the generator"),
    "dataset": (lambda: zipped({"00000/img.png": b""}), "a dataset?"),
    "program": (lambda: zipped({"x/data.pkl": b"", "x/constants.pkl": b""}), "TorchScript program"),
    "bomb": (lambda: zipped({"x/data.pkl": bytes(1 << 24)}, zipfile.ZIP_DEFLATED), "compressed zip archive"),
    "storage": (with_lying_storage, "truncated, damaged"),
    "missing": (lambda: torch_saved({"g_ema": broken(**{"to_rgb1.bias": None})}), "g_ema lacks to_rgb1.bias"),
    "unknown": (lambda: torch_saved({"g": broken(**{"x.y": torch.ones(1)})}), "g has 'x.y'"),
    "shape": (lambda: torch_saved({"g_ema": broken(**{"convs.0.noise.weight": torch.ones(2)})}),
              r"convs.0.noise.weight of shape \[2\], expected \[1\]"),
    "expanded": (lambda: torch_saved({"g_ema": broken(**{"input.input": torch.ones(1).expand(1, 1 << 17, 4, 4)})}),
                 "more numbers than the file has bytes"),
    "channels": (lambda: torch_saved({"g_ema": foreign_state_dict(channels=(8, 12, 16))}), "8 channels at 4x4"),
    "kernel": (lambda: torch_saved({"g_ema": broken(**{"to_rgbs.0.upsample.kernel": torch.eye(4)})}),
               "up-sampling kernels"),
    "list": (lambda: torch_saved({"g_ema": broken(**{"input.input": [1]})}), "no tensor of floating-point"),
    "mean": (lambda: torch_saved({"g_ema": foreign_state_dict(), "latent_avg": torch.ones(5)}),
             r"latent_avg has the shape \[5\]"),
}


@pytest.mark.parametrize("case", STATE_DICT_ERRORS)
def test_state_dicts_that_do_not_fit_are_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = STATE_DICT_ERRORS[case]
    with pytest.raises(UserError, match=message) as e:
        load(make())
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_arguments_that_json_cannot_hold_are_refused():
    G = make_generator(res=8)
    G._init_kwargs["x"] = {1, 2}
    with pytest.raises(UserError, match="hold a set"):
        description.describe({"G": G})
    G._init_kwargs["x"] = (np.int64(1), np.ones(2), {"y": None})
    assert description.describe({"G": G})["networks"]["G"]["init_kwargs"]["x"] == [1, [1.0, 1.0], {"y": None}]
