"""Network pickles: writing, reading as data, other projects' files, and files made to do harm."""

import collections
import copy
import importlib
import io
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import legacy
from dnnlib.util import EasyDict, UserError
from torch_utils import network_pickle, persistence
from training.networks import Discriminator, Generator

ROOT = Path(__file__).resolve().parents[2]
G_KWARGS = dict(mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 64, "channel_max": 8})
FOREIGN_SOURCE = "# the same network in another project\nraise SystemExit('embedded source was run')\n"


def make_generator(**options):
    return Generator(8, 0, 16, **{"img_resolution": 8, "img_channels": 3, **G_KWARGS, **options})


def make_networks():
    D = Discriminator(0, 8, 3, channel_base=64, channel_max=8, decoder_res=8, glead_res_g=8, decoder_out_channel=16)
    kwargs = EasyDict(class_name="training.dataset.ImageFolderDataset", path="a.zip", max_size=None, xflip=True)
    return dict(G=make_generator(), D=D, G_ema=make_generator(), training_set_kwargs=kwargs, augment_pipe=None)


class Foreign:
    """Pickles as a persistent object of another project does."""

    def __init__(self, class_name, state, *, source=FOREIGN_SOURCE, **meta):
        self.meta = EasyDict(type="class", version=6, module_src=source, class_name=class_name, state=state, **meta)

    def __reduce__(self):
        return persistence._reconstruct_persistent_obj, (self.meta,)


def foreign_network(class_name, state_dict, **kwargs):
    """A network of another project: the ecosystem's tree of modules, with attributes that ours don't have."""

    def node(tensors):
        state = dict(training=False, _parameters=collections.OrderedDict(), _buffers=collections.OrderedDict())
        state.update(_modules=collections.OrderedDict(), _forward_hooks=collections.OrderedDict(), alien={1, 2})
        children = {}
        for name, tensor in tensors.items():
            head, _, tail = name.partition(".")
            if tail:
                children.setdefault(head, {})[tail] = tensor
            elif head in ("w_avg", "resample_filter", "noise_const"):
                state["_buffers"][head] = tensor
            else:
                state["_parameters"][head] = torch.nn.Parameter(tensor, requires_grad=False)
        for head, tensors in children.items():
            state["_modules"][head] = Foreign("SynthesisLayer", node(tensors))
        return state

    return Foreign(class_name, {**node(state_dict), "_init_args": (), "_init_kwargs": EasyDict(kwargs)})


def load(content, **options):
    return legacy.load_network_pkl(io.BytesIO(content if isinstance(content, bytes) else pickle.dumps(content)), **options)


def assert_same_network(actual, expected):
    expected = expected.state_dict()
    assert list(actual.state_dict()) == list(expected)
    for name, tensor in actual.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# ----------------------------------------------------------------------------------------------------------------------
# Our own files.


@pytest.mark.parametrize("trust", [False, True])
def test_round_trip(tmp_path, trust):
    networks = make_networks()
    networks["G"].train()
    path = tmp_path / "network-snapshot-000000.pkl"
    network_pickle.save_network_pkl(path, networks)
    assert networks["G"].training and all(p.requires_grad for p in networks["G"].parameters())
    loaded = legacy.load_network_pkl(path, trust=trust)
    assert list(loaded) == ["G", "D", "G_ema", "training_set_kwargs", "augment_pipe"]
    for key in ("G", "D", "G_ema"):
        assert_same_network(loaded[key], networks[key])
        assert not loaded[key].training and not any(p.requires_grad for p in loaded[key].parameters())
        assert loaded[key].init_kwargs == networks[key].init_kwargs and loaded[key].init_args == networks[key].init_args
    assert loaded["augment_pipe"] is None
    assert loaded["training_set_kwargs"] == networks["training_set_kwargs"] and loaded["training_set_kwargs"].path == "a.zip"
    assert os.listdir(tmp_path) == [path.name]


def test_loading_leaves_random_state_alone(tmp_path):
    network_pickle.save_network_pkl(tmp_path / "a.pkl", make_networks())
    before = torch.get_rng_state()
    legacy.load_network_pkl(tmp_path / "a.pkl")
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_pickle_load_in_scripts(tmp_path):
    networks = make_networks()
    network_pickle.save_network_pkl(tmp_path / "a.pkl", networks)
    program = "import pickle; G = pickle.load(open('a.pkl', 'rb'))['G_ema'].cpu(); print(type(G).__module__, G.num_ws)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"training.networks {networks['G_ema'].num_ws}\n"


def test_written_file_needs_only_globals_that_others_have(tmp_path):
    network_pickle.save_network_pkl(tmp_path / "a.pkl", make_networks())
    content = pickle.loads((tmp_path / "a.pkl").read_bytes())
    used = {arg.replace(" ", ".") for op, arg, _ in pickletools.genops(pickle.dumps(content, protocol=2)) if op.name == "GLOBAL"}
    assert used <= {
        "torch_utils.persistence._reconstruct_persistent_obj",
        "dnnlib.util.EasyDict",
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
        "_codecs.encode",
        "__builtin__.set",
    }
    assert (ROOT / "training" / "networks.py").read_bytes() in (tmp_path / "a.pkl").read_bytes()


def test_saving_refuses_unknown_keys_and_leaves_nothing_when_it_fails(tmp_path):
    with pytest.raises(ValueError, match="D_ema"):
        network_pickle.save_network_pkl(tmp_path / "a.pkl", {"G": None, "D_ema": None})
    G = make_generator()
    G.hook = lambda: None
    with pytest.raises(pickle.PicklingError, match="'hook' of persistent class Generator"):
        network_pickle.save_network_pkl(tmp_path / "a.pkl", {"G": G})
    assert not os.listdir(tmp_path)


def test_only_builds_what_is_asked_for(tmp_path):
    network_pickle.save_network_pkl(tmp_path / "a.pkl", make_networks())
    loaded = legacy.load_network_pkl(tmp_path / "a.pkl", only=("G_ema",))
    assert [key for key, value in loaded.items() if value is not None] == ["G_ema"]


@pytest.mark.parametrize("trust", [False, True])
def test_force_fp16_changes_precision_and_nothing_else(tmp_path, trust):
    networks = make_networks()
    network_pickle.save_network_pkl(tmp_path / "a.pkl", networks)
    loaded = legacy.load_network_pkl(tmp_path / "a.pkl", force_fp16=True, trust=trust)
    assert loaded["G_ema"].init_kwargs.synthesis_kwargs == {"channel_base": 64, "channel_max": 8, "num_fp16_res": 4, "conv_clamp": 256}
    assert loaded["D"].init_kwargs.num_fp16_res == 4 and loaded["D"].init_kwargs.conv_clamp == 256
    assert_same_network(loaded["G_ema"], networks["G_ema"])
    assert not loaded["G_ema"].training and not any(p.requires_grad for p in loaded["G_ema"].parameters())


# ----------------------------------------------------------------------------------------------------------------------
# Files of other projects.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["g_skip_r16_c5", "g_resnet_r16_c5", "g_skip_r32"])
def test_foreign_generator_golden(golden, name, protocol):
    g = golden(f"networks/{name}.npz")
    foreign = foreign_network("Generator", g.sub("sd/"), **g.meta["ctor"])
    data = pickle.dumps({"G_ema": foreign, "training_set_kwargs": {"path": "x"}}, protocol=protocol)
    label = g.get("in/c") if g.has("in/c") else None
    for G in (load(data)["G_ema"], pickle.loads(data)["G_ema"]):
        assert type(G) is Generator and not G.training
        g.compare("out/img_const", G(g.get("in/z"), label, noise_mode="const"))


def test_foreign_discriminator_golden(golden):
    g = golden("networks/glead_d_r32_dec16_resg8_512.npz")
    D = load({"D": foreign_network("Discriminator", g.sub("sd/"), **g.meta["ctor"])})["D"]
    assert_same_network(D, load_strictly(Discriminator(**g.meta["ctor"]), g.sub("sd/")))


def load_strictly(network, state_dict):
    network.load_state_dict(state_dict, strict=True)
    return network


def test_state_may_hold_what_files_hold():
    G = make_generator()
    foreign = foreign_network("Generator", G.state_dict(), z_dim=8, c_dim=0, w_dim=np.int64(16), img_resolution=8, img_channels=3, **G_KWARGS)
    foreign.meta.state.update(
        array=np.arange(6.0).reshape(2, 3),
        scalar=np.float32(2.5),
        device=torch.device("cuda:1"),
        dtype=torch.float16,
        size=torch.Size([2, 3]),
        frozen=frozenset("ab"),
        modules=torch.nn.ModuleList(),
        half=torch.ones(3, dtype=torch.float16)[1:],
        empty=torch.empty(0),
    )
    for protocol in (2, 4):
        assert_same_network(load(pickle.dumps({"G": foreign}, protocol=protocol))["G"], G)


def test_tensors_are_read_exactly(tmp_path):
    G = make_generator()
    source = torch.arange(1000, dtype=torch.float32)
    state = {name: source[:tensor.numel()].flip(0).reshape(tensor.shape) for name, tensor in G.state_dict().items()}
    state["synthesis.b8.conv0.weight"] = state["synthesis.b8.conv0.weight"].contiguous(memory_format=torch.channels_last)
    state["mapping.fc0.weight"] = state["mapping.fc0.weight"].t().contiguous().t()
    state["mapping.w_avg"] = source[7:39:2]
    foreign = foreign_network("Generator", state, z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3, **G_KWARGS)
    assert_same_network(load({"G": foreign})["G"], load_strictly(G, state))


def test_mismatches_name_the_parameter_and_both_shapes():
    kwargs = dict(z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3, **G_KWARGS)
    state = make_generator().state_dict()
    wrong = {**state, "mapping.fc1.weight": torch.zeros(16, 15)}
    with pytest.raises(UserError, match=r"mapping\.fc1\.weight of shape \[16, 15\], expected \[16, 16\]"):
        load({"G_ema": foreign_network("Generator", wrong, **kwargs)})
    lacking = {name: tensor for name, tensor in state.items() if name != "mapping.fc0.bias"}
    with pytest.raises(UserError, match=r"lacks mapping\.fc0\.bias \[16\]"):
        load({"G_ema": foreign_network("Generator", lacking, **kwargs)})
    with pytest.raises(UserError, match=r"has 'synthesis\.b8\.odd', which this project's Generator lacks"):
        load({"G_ema": foreign_network("Generator", {**state, "synthesis.b8.odd": torch.zeros(2)}, **kwargs)})
    with pytest.raises(UserError, match="layers of StyleGAN3; only its StyleGAN2 configurations"):
        load({"G_ema": foreign_network("Generator", {**state, "synthesis.input.freqs": torch.zeros(2)}, **kwargs)})
    with pytest.raises(UserError, match=r"can't be built from the arguments in the pickle: TypeError.*magic"):
        load({"G_ema": foreign_network("Generator", state, **kwargs, magic=1)})


def test_unknown_class_is_named_and_its_source_not_run():
    with pytest.raises(UserError, match=r"class 'SwinGenerator'.*--trust-pickle"):
        load({"G_ema": foreign_network("SwinGenerator", {})})
    with pytest.raises(UserError, match="G_ema is a Discriminator; a Generator was expected"):
        load({"G_ema": foreign_network("Discriminator", {})})


def test_trust_runs_the_source_in_the_file(tmp_path, capsys):
    source = "import torch\nprint('source runs')\nclass Odd(torch.nn.Module):\n    img_channels = 3\n"
    content = {"G_ema": Foreign("Odd", {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}}, source=source)}
    assert type(load(content, trust=True)["G_ema"]).__name__ == "Odd"
    assert capsys.readouterr().out == "source runs\n"


# ----------------------------------------------------------------------------------------------------------------------
# Files that are no network pickles.


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"PK\x03\x04 and more", "zip archive"),
        (b"\x89PNG\r\n", "PNG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"hello", "something else"),
        (b"(lp0\n.", "something else"),
        (pickle.dumps([1, 2]), "no network pickle"),
        (pickle.dumps({"H": 1}), "no network pickle"),
        (pickle.dumps({"G": None, "D": None}), "no network pickle"),
        (pickle.dumps({"G": 5}), "G is no network"),
        (pickle.dumps({"G_ema": Foreign("Generator", None)}), "without state"),
        (pickle.dumps({"G_ema": Foreign("Generator", {})}), "lacks the arguments"),
        (b"\x80\x04N", "truncated"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_other_files_are_one_clear_line(tmp_path, data, message, named):
    path = tmp_path / "net.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        legacy.load_network_pkl(path if named else io.BytesIO(data))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert str(caught.value).startswith(str(path)) == named


def test_files_cut_anywhere_are_errors(tmp_path):
    network_pickle.save_network_pkl(tmp_path / "a.pkl", {"G_ema": make_generator()})
    data = (tmp_path / "a.pkl").read_bytes()
    for length in [1, 2, 3, 10, 100] + list(range(1000, len(data), 7001)) + [len(data) - 1]:
        with pytest.raises(UserError):
            load(data[:length])


def test_files_with_flipped_bytes_load_or_are_errors(tmp_path):
    network_pickle.save_network_pkl(tmp_path / "a.pkl", {"G_ema": make_generator()})
    data = (tmp_path / "a.pkl").read_bytes()
    rng = np.random.RandomState(0)
    outcomes = collections.Counter()
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.randint(len(data))] ^= 1 << rng.randint(8)
        try:
            load(bytes(damaged))
            outcomes["loaded"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 5 and sum(outcomes.values()) == 150


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="can't open .*nothing.pkl"):
        legacy.load_network_pkl(tmp_path / "nothing.pkl")


# ----------------------------------------------------------------------------------------------------------------------
# Files made to do harm. Each must come to an error, fast and small, and leave no trace.


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Storage(Call):
    """Pickles as a storage with these bytes."""

    def __init__(self, data):
        super().__init__(torch.storage._load_from_bytes, data)


def storage_bytes(numel, *, declared=None, data=None, kind="torch\nFloatStorage\n"):
    """A storage as torch writes it, with sizes of our choice."""
    declared = numel if declared is None else declared
    identity = b"\x80\x02(X\x07\0\0\0storagec" + kind.encode() + b"X\x01\0\0\x000X\x03\0\0\0cpu" + b"\x8a\x08" + struct.pack("<q", declared)
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [identity + b"NtQ.", pickle.dumps(["0"], 2), struct.pack("<q", numel)]
    return b"".join(parts) + (bytes(4 * numel) if data is None else data)


def tensor(storage, size, stride, offset=0):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict())


def network_of(tensor=None, **kwargs):
    state = {} if tensor is None else {"mapping.w_avg": torch.zeros(1)}
    foreign = foreign_network("Generator", state, **{**dict(z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3), **kwargs})
    if tensor is not None:
        foreign.meta.state["_buffers"]["extra"] = tensor
    return pickle.dumps({"G_ema": foreign}, 2)


def nested(levels, step, start):
    """Code in which each level holds the one before twice, by way of the memo."""
    code = b"\x80\x04" + start
    for level in range(levels):
        code += b"r" + struct.pack("<I", level) + b"0" + step.replace(b"@", b"j" + struct.pack("<I", level))
    return code


def doubled_in(key):
    data = pickle.dumps({"G_ema": Foreign("Generator", {"_init_args": (), "_init_kwargs": {}, key: "MARKER"})}, 2)
    code = b"]"
    for level in range(60):
        code += b"r" + struct.pack("<I", 1000 + level) + b"0]" + 2 * (b"j" + struct.pack("<I", 1000 + level) + b"a")
    marker = b"X\x06\0\0\0MARKERq"
    start = data.index(marker)
    return data[:start] + code + data[start + len(marker) + 1:]


def module_dag(levels):
    state = {"_parameters": {}, "_modules": {}}
    for _ in range(levels):
        child = Foreign("SynthesisLayer", state)
        state = {"_modules": {"a": child, "b": child}, "_init_args": (), "_init_kwargs": {}}
    return pickle.dumps({"G_ema": Foreign("Generator", state)})


def deep_modules(levels):
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x0a\0\0\0class_nameX\x09\0\0\0GeneratorsX\x05\0\0\0state}"
    return b"\x80\x02}X\x05\0\0\0G_ema" + (call + b"X\x08\0\0\0_modules}X\x01\0\0\0a") * levels + b"N" + b"sss\x85R" * levels + b"s."


HOSTILE = {
    "os.system": lambda t: pickle.dumps({"G_ema": Call(os.system, f"touch {t}")}),
    "os.system, protocol 2": lambda t: pickle.dumps({"G_ema": Call(os.system, f"touch {t}")}, 2),
    "eval": lambda t: pickle.dumps({"G_ema": Call(eval, f"open({str(t)!r}, 'w')")}),
    "exec": lambda t: pickle.dumps({"G_ema": Call(exec, f"open({str(t)!r}, 'w')")}),
    "open": lambda t: pickle.dumps({"G_ema": Call(open, str(t), "w")}),
    "subprocess": lambda t: pickle.dumps({"G_ema": Call(subprocess.Popen, ["touch", str(t)])}),
    "importlib": lambda t: pickle.dumps({"G_ema": Call(importlib.import_module, "antigravity")}),
    "getattr chain": lambda t: pickle.dumps({"G_ema": Call(getattr, "x", "format")}),
    "reduce chain": lambda t: pickle.dumps({"G_ema": Call(map, Call(eval, "1"), [str(t)])}),
    "INST": lambda t: b"\x80\x02(X" + struct.pack("<I", len(f"touch {t}")) + f"touch {t}".encode() + b"ios\nsystem\n.",
    "OBJ": lambda t: b"\x80\x02(cos\nsystem\nX" + struct.pack("<I", len(f"touch {t}")) + f"touch {t}".encode() + b"o.",
    "dotted global": lambda t: b"\x80\x04\x8c\x16torch_utils.persistence\x8c\x09io.open\x93.",
    "lookalike": lambda t: b"\x80\x04ctorch_utils.persistence\nos\n.",
    "torch.load": lambda t: pickle.dumps({"G_ema": Call(torch.load, str(t))}),
    "persistent id": lambda t: b"\x80\x02X\x01\0\0\0aQ.",
    "extension registry": lambda t: b"\x80\x02\x82\x01.",
    "embedded source": lambda t: pickle.dumps(
        {"G_ema": Foreign("Generator", {"_init_args": (), "_init_kwargs": {}}, source=f"open({str(t)!r}, 'w')")}
    ),
    "embedded source of an unknown class": (
        lambda t: pickle.dumps({"G_ema": Foreign("Evil", {}, source=f"open({str(t)!r}, 'w')")})
    ),
    "pickle in a storage": (
        lambda t: network_of(tensor(Storage(pickle.dumps(Call(os.system, f"touch {t}"))), (1,), (1,)))
    ),
    "torch.save file in a storage": (
        lambda t: network_of(tensor(Storage(torch_saved(Call(os.system, f"touch {t}"))), (1,), (1,)))
    ),
    "storage of an odd class": lambda t: network_of(tensor(Storage(storage_bytes(4, kind="os\nsystem\n")), (1,), (1,))),
    "BUILD on a global": (
        lambda t: b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x01\0\0\0aX\x01\0\0\0bsb."
    ),
    "BUILD on a dict": lambda t: b"\x80\x02}}X\x01\0\0\0aX\x01\0\0\0bsb.",
    "constructor arguments with code": lambda t: network_of(mapping_kwargs=Call(eval, f"open({str(t)!r}, 'w')")),
    # Sizes.
    "storage declared huge": lambda t: network_of(tensor(Storage(storage_bytes(1, declared=1 << 40)), (1,), (1,))),
    "storage length huge": lambda t: network_of(tensor(Storage(storage_bytes(1 << 40, data=b"1234")), (1,), (1,))),
    "storage length negative": lambda t: network_of(tensor(Storage(storage_bytes(-1, data=b"")), (1,), (1,))),
    "tensor larger than its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (1 << 30,), (0,))),
    "tensor beyond its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (2,), (1 << 20,))),
    "tensor before its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (2,), (1,), offset=-8)),
    "tensor of negative size": lambda t: network_of(tensor(Storage(storage_bytes(4)), (-2,), (1,))),
    "tensor of many dimensions": lambda t: network_of(tensor(Storage(storage_bytes(4)), (1,) * 1000, (1,) * 1000)),
    "tensor with a product that overflows": (
        lambda t: network_of(tensor(Storage(storage_bytes(4)), (1 << 32, 1 << 32), (0, 0)))
    ),
    "bytes declared huge": lambda t: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "string declared huge": lambda t: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "number declared huge": lambda t: b"\x80\x02\x8b" + struct.pack("<I", 1 << 30) + b"abc.",
    "frame declared huge": lambda t: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "memo index huge": lambda t: b"\x80\x02Nr\xff\xff\xff\xff.",
    "network of a billion layers": lambda t: network_of(mapping_kwargs={"num_layers": 10**9}),
    "network of 2**17 layers": lambda t: network_of(mapping_kwargs={"num_layers": 1 << 17, "layer_features": 1}),
    "network of endless width": lambda t: network_of(w_dim=1 << 17),
    "network of endless latents": lambda t: network_of(z_dim=1 << 70),
    "network of endless resolution": lambda t: network_of(img_resolution=1 << 17),
    "network of unlimited channels": (
        lambda t: network_of(synthesis_kwargs={"channel_base": 1 << 17, "channel_max": 1 << 17})
    ),
    "network with a wide filter": lambda t: network_of(synthesis_kwargs={"resample_filter": [[1] * 40] * 40}),
    "network arguments of odd types": lambda t: network_of(mapping_kwargs=[1], synthesis_kwargs="x", z_dim=None),
    "array larger than its data": lambda t: pickle.dumps({"G_ema": np.zeros(10)}).replace(b"K\x0a\x85", b"K\x7f\x85"),
    "array of objects": lambda t: pickle.dumps({"G_ema": np.array([None, {}], dtype=object)}, 2),
    # Shapes.
    "deep lists": lambda t: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": lambda t: b"\x80\x02N" + b"\x85" * 200_000 + b".",
    "deep tuple as a key": lambda t: b"\x80\x02}N" + b"\x85" * 10_000 + b"Ns.",
    "tuple doubled 60 times as a key": lambda t: nested(60, b"@@\x86", b"}N\x85") + b"Ns.",
    "tuple doubled 60 times in a set": lambda t: nested(60, b"@@\x86", b"\x8f(N\x85") + b"\x90.",
    "list doubled 60 times": lambda t: nested(60, b"]@a@a", b"}X\x05\0\0\0G_ema]") + b"s.",
    "list doubled 60 times as arguments": lambda t: doubled_in("_init_kwargs"),
    "list doubled 60 times as modules": lambda t: doubled_in("_modules"),
    "modules doubled 40 times": lambda t: module_dag(40),
    "deep modules": lambda t: deep_modules(3000),
    "a list that holds itself": lambda t: b"\x80\x02}X\x05\0\0\0G_ema]q\x01h\x01as.",
    "arguments that hold themselves": lambda t: pickle.dumps({"G_ema": Foreign("Generator", cyclic())}),
    "a string copied endlessly": lambda t: b"\x80\x02X" + struct.pack("<I", 1 << 22) + b"a" * (1 << 22) + b"q\x00"
    + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00X\x06\0\0\0latin1\x86R" * 20_000 + b".",
    "a list made into sets endlessly": lambda t: b"\x80\x02](" + b"K\x01" * 100_000 + b"e\x85q\x00"
    + b"cbuiltins\nset\nq\x01" + b"h\x01h\x00R" * 60_000 + b".",
    "a storage read endlessly": lambda t: b"\x80\x03B" + struct.pack("<I", len(storage_bytes(1))) + storage_bytes(1) + b"\x85q\x00"
    + b"ctorch.storage\n_load_from_bytes\nq\x01" + b"h\x01h\x00R" * 100_000 + b".",
    "colliding keys": lambda t: b"\x80\x02}(" + b"".join(
        b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little", signed=True) + b"N" for k in range(90_000)
    ) + b"u.",
    "a million marks": lambda t: b"\x80\x02" + b"(" * 1_000_000 + b".",
    "a million sets": lambda t: b"\x80\x04" + b"\x8f" * 1_000_000 + b".",
    "many refused names": lambda t: b"\x80\x02" + b"".join(b"ca%d\nb\n" % k for k in range(50_000)) + b".",
    "long refused name": lambda t: b"\x80\x02c" + b"a" * (1 << 24) + b"\nb\n.",
    "names with control characters": lambda t: b"\x80\x02ca\x1b[31m\rb\nc\n.",
    "attribute names of odd types": lambda t: pickle.dumps({"G_ema": Foreign("Generator", {1: 2, None: 3})}),
    "modules that are no modules": lambda t: pickle.dumps({"G_ema": Foreign("Generator", {"_modules": {"a": 5}})}),
    "parameters that are no tensors": (
        lambda t: pickle.dumps({"G_ema": Foreign("Generator", {"_parameters": {"a": "b"}})})
    ),
    "metadata that is no dict": lambda t: pickle.dumps({"G_ema": Call(persistence._reconstruct_persistent_obj, [1])}),
}


def torch_saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def cyclic():
    args = {"a": 1}
    args["self"] = args
    return {"_init_args": (), "_init_kwargs": args}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_comes_to_a_quick_error(name, tmp_path):
    trace = tmp_path / "trace"
    data = HOSTILE[name](trace)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load(data)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1500, message
    assert not trace.exists() and os.listdir(tmp_path) == []
    assert "antigravity" not in sys.modules


def test_refusal_names_all_globals_and_the_way_to_accept_them():
    data = pickle.dumps({"G": Call(os.getcwd), "D": Call(eval, "1"), "G_ema": make_generator()})
    with pytest.raises(UserError, match=r"asks for builtins\.eval, posix\.getcwd; --trust-pickle"):
        load(data)


def test_trusted_pickles_that_cannot_be_opened_are_errors():
    for data in (b"\x80\x04N", b"\x80\x04cno_such_module\nName\n.", pickle.dumps({"G": None})):
        with pytest.raises(UserError):
            load(data, trust=True)


def test_copies_of_loaded_networks_are_independent_of_the_file():
    data = pickle.dumps({"G": make_generator()})
    first, second = load(data)["G"], load(data)["G"]
    with torch.no_grad():
        for parameter in copy.deepcopy(first).parameters():
            parameter.zero_()
        first.mapping.fc0.weight.add_(1)
    assert torch.equal(first.mapping.fc0.weight, second.mapping.fc0.weight + 1)
