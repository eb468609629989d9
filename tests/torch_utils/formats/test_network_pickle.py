"""Network pickles: writing, reading as data, other projects' files, and files made to do harm."""

import collections
import copy
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import legacy
from dnnlib.util import EasyDict, UserError
from paths import ROOT
from tests.torch_utils.formats.hostile_pickles import HOSTILE, NAMED
from tests.torch_utils.formats.pickle_makers import (
    G_KWARGS,
    Call,
    Foreign,
    foreign_network,
    load,
    make_generator,
    make_networks,
)
from torch_utils.formats import data_unpickler, network_pickle
from training.networks import Discriminator, Generator


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
    assert loaded["training_set_kwargs"] == networks["training_set_kwargs"]
    assert loaded["training_set_kwargs"].path == "a.zip"
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
    used = {arg.replace(" ", ".") for op, arg, _ in pickletools.genops(pickle.dumps(content, protocol=2))
            if op.name == "GLOBAL"}
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
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):  # the latter before Python 3.14
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
    assert loaded["G_ema"].init_kwargs.synthesis_kwargs == {"channel_base": 64, "channel_max": 8, "num_fp16_res": 4,
                                                            "conv_clamp": 256}
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
    foreign = foreign_network("Generator", G.state_dict(), z_dim=8, c_dim=0, w_dim=np.int64(16), img_resolution=8,
                              img_channels=3, **G_KWARGS)
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


def test_an_easy_dict_may_have_an_empty_state():
    """Python 3.10 writes one."""
    data = pickle.dumps(EasyDict(a=1), 2)
    assert data_unpickler.loads(data[:-1] + b"}b.").value == {"a": 1} and not data_unpickler.loads(data).refused


def test_tensors_are_read_exactly(tmp_path):
    G = make_generator()
    source = torch.arange(1000, dtype=torch.float32)
    state = {name: source[:tensor.numel()].flip(0).reshape(tensor.shape) for name, tensor in G.state_dict().items()}
    name = "synthesis.b8.conv0.weight"
    state[name] = state[name].contiguous(memory_format=torch.channels_last)
    state["mapping.fc0.weight"] = state["mapping.fc0.weight"].t().contiguous().t()
    state["mapping.w_avg"] = source[7:39:2]
    foreign = foreign_network("Generator", state, z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3,
                              **G_KWARGS)
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
    with pytest.raises(UserError, match="of StyleGAN3, only the StyleGAN2 configurations"):
        load({"G_ema": foreign_network("Generator", {**state, "synthesis.input.freqs": torch.zeros(2)}, **kwargs)})
    with pytest.raises(UserError, match=r"can't be built from the arguments in the file: TypeError.*magic"):
        load({"G_ema": foreign_network("Generator", state, **kwargs, magic=1)})


def test_unknown_class_is_named_and_its_source_not_run():
    with pytest.raises(UserError, match=r"class 'SwinGenerator'.*--trust-pickle"):
        load({"G_ema": foreign_network("SwinGenerator", {})})
    with pytest.raises(UserError, match="G_ema is of class Discriminator, expected Generator"):
        load({"G_ema": foreign_network("Discriminator", {})})


def test_trust_runs_the_source_in_the_file(tmp_path, capsys):
    source = "import torch\nprint('source runs')\nclass Odd(torch.nn.Module):\n    img_channels = 3\n"
    content = {"G_ema": Foreign("Odd", {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}},
                                source=source)}
    assert type(load(content, trust=True)["G_ema"]).__name__ == "Odd"
    assert capsys.readouterr().out == "source runs\n"
    content = {"G_ema": Foreign("Odd", {}, source="import torch_utils.ops.odd")}
    with pytest.raises(UserError,
                       match="'Odd', which this project doesn't define; the source code .* can't run here$"), \
            pytest.warns(UserWarning, match="No module named 'torch_utils.ops.odd'"):
        load(content, trust=True)


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


HOSTILE_SCRIPT = Path(__file__).with_name("hostile_pickles.py")


@pytest.fixture(scope="module")
def hostile_rows():
    """What came of each attack, with limits on memory and time, in processes of their own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, str(HOSTILE_SCRIPT), "--json"], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {row["attack"]: row for row in json.loads(result.stdout)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures through /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_comes_to_a_quick_error(name, hostile_rows):
    row = hostile_rows[name]
    assert row["kind"] == "UserError", row
    assert row["effects"] == [], row
    assert row["seconds"] < 2 and row["mib"] < 1024, row
    assert row["message"].isprintable() and len(row["message"]) < 1500, row
    if name in NAMED:
        assert NAMED[name] in row["message"] and "--trust-pickle" in row["message"], row


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
