import copy
import importlib
import inspect
import os
import pickle
import pickletools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dnnlib.util import EasyDict, UserError
from paths import ROOT
from torch_utils import persistence

SOURCE = '''
import pathlib
import torch
from torch_utils import persistence

@persistence.persistent_class
class TestLayer(torch.nn.Module):
    """A layer."""

    def __init__(self, width, gain=1.0, *, names=("a",)):
        super().__init__()
        self.gain = gain
        self.weight = torch.nn.Parameter(torch.randn([width, width]))

    def forward(self, x):
        return x @ self.weight * self.gain

@persistence.persistent_class
class TestNet(torch.nn.Module):
    def __init__(self, width, layer_kwargs={}):
        super().__init__()
        self.first = TestLayer(width, **layer_kwargs)
        self.rest = torch.nn.ModuleList([TestLayer(width, gain=0.5)])
        self.register_buffer("w_avg", torch.arange(width, dtype=torch.float32))

    def forward(self, x):
        return self.rest[0](self.first(x)) + self.w_avg

@persistence.persistent_class
class TestChild(TestNet):
    def __init__(self, size, *, depth=1):
        super().__init__(size, layer_kwargs={"gain": 3.0})
        self.depth = depth

class TestUndecorated(TestNet):
    pass

@persistence.persistent_class
class TestUpgraded:
    def __init__(self, new=1):
        self.new = new

    @classmethod
    def _upgrade_state(cls, state):
        return {"new": state.pop("old", None), **state}
'''


@pytest.fixture
def nets(tmp_path, monkeypatch, request):
    """The source above as a module that can be imported, and whose classes are known while the test runs."""
    monkeypatch.setattr(persistence, "_registry", {name: dict(found) for name, found in persistence._registry.items()})
    name = f"nets_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    sys.modules.pop(name)
    persistence._module_sources.pop(name)


def reconstruct(class_name, state, **meta):
    return persistence._reconstruct_persistent_obj(dict(type="class", version=6, class_name=class_name, state=state,
                                                        **meta))


def metadata_of(obj):
    function, (meta,) = obj.__reduce_ex__(4)
    assert function is persistence._reconstruct_persistent_obj
    return meta


def test_the_decorated_class_stays_itself(nets):
    assert isinstance(nets.TestNet, type)
    assert nets.TestNet.__name__ == "TestNet" and nets.TestNet.__bases__ == (torch.nn.Module,)
    assert str(inspect.signature(nets.TestLayer)) == "(width, gain=1.0, *, names=('a',))"
    assert nets.TestLayer.__doc__ == "A layer."
    assert isinstance(nets.TestChild(2), nets.TestNet)
    assert [name for name, _ in nets.TestNet(2).named_parameters()] == ["first.weight", "rest.0.weight"]


def test_is_persistent_tells_classes_and_instances(nets):
    assert persistence.is_persistent(nets.TestNet) and persistence.is_persistent(nets.TestNet(2))
    assert not persistence.is_persistent(torch.nn.Linear(1, 1))
    assert not persistence.is_persistent(nets.TestUndecorated(2))


def test_constructor_arguments_are_kept_as_copies(nets):
    kwargs = {"gain": 2.0}
    net = nets.TestNet(3, layer_kwargs=kwargs)
    kwargs["gain"] = 7.0
    assert net.init_args == (3,) and net.init_kwargs == {"layer_kwargs": {"gain": 2.0}}
    net.init_kwargs.layer_kwargs["gain"] = 9.0
    assert net.init_kwargs.layer_kwargs == {"gain": 2.0}
    assert net.__dict__["_init_kwargs"].layer_kwargs.gain == 2.0 and net.first.init_kwargs == {"gain": 2.0}
    assert type(pickle.loads(pickle.dumps(net)).init_kwargs.layer_kwargs) is EasyDict


def test_a_subclass_keeps_its_own_arguments(nets):
    child = nets.TestChild(2, depth=4)
    assert child.init_args == (2,) and child.init_kwargs == {"depth": 4}
    copied = pickle.loads(pickle.dumps(child))
    assert type(copied) is nets.TestChild and copied.depth == 4 and copied.first.gain == 3.0


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickling_gives_the_same_network(nets, protocol):
    net = nets.TestNet(4).eval()
    net.first.weight.requires_grad_(False)
    copied = pickle.loads(pickle.dumps(net, protocol=protocol))
    x = torch.randn(2, 4)
    assert type(copied) is nets.TestNet and not copied.training
    assert torch.equal(copied(x), net(x))
    assert [p.requires_grad for p in copied.parameters()] == [False, True]
    assert copied.init_args == (4,)


def test_deepcopy_is_independent_and_keeps_the_class(nets):
    net = nets.TestUndecorated(2)
    copied = copy.deepcopy(net)
    assert type(copied) is nets.TestUndecorated and torch.equal(copied.first.weight, net.first.weight)
    with torch.no_grad():
        copied.first.weight.add_(1)
    assert not torch.equal(copied.first.weight, net.first.weight)
    shared = torch.nn.ModuleList([net, net])
    assert copy.deepcopy(shared)[0] is not net and len(set(map(id, copy.deepcopy(shared)))) == 1


def test_pickles_have_the_known_format(nets):
    meta = metadata_of(nets.TestNet(2))
    assert isinstance(meta, EasyDict) and set(meta) == {"type", "version", "module_src", "class_name", "state"}
    assert (meta.type, meta.version, meta.class_name, meta.module_src) == ("class", 6, "TestNet", SOURCE)
    assert {"_init_args", "_init_kwargs", "_parameters", "_buffers", "_modules", "training"} <= set(meta.state)
    globals_used = {arg for op, arg, _ in pickletools.genops(pickle.dumps(nets.TestNet(2), protocol=2))
                    if op.name == "GLOBAL"}
    assert {"torch_utils.persistence _reconstruct_persistent_obj", "torch.storage _load_from_bytes"} <= globals_used
    assert not any(nets.__name__ in name for name in globals_used)


def test_source_is_that_of_the_import_not_of_a_later_edit(nets):
    Path(nets.__file__).write_text("# edited while a run goes on\n")
    assert metadata_of(nets.TestNet(2)).module_src == SOURCE


def test_pickle_of_our_class_opens_in_another_process(nets, tmp_path):
    net = nets.TestNet(3)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(net))
    program = (f"import pickle, {nets.__name__}; "
               "print(float(sum(p.detach().sum() for p in pickle.load(open('net.pkl', 'rb')).parameters())))")
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(float(sum(p.detach().sum() for p in net.parameters())), rel=1e-6)


def test_unknown_class_is_an_error_that_names_it_and_runs_nothing(tmp_path):
    source = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass NoSuchClass:\n    pass\n"
    with pytest.raises(UserError, match=r"'NoSuchClass'.*--trust-pickle"):
        reconstruct("NoSuchClass", {}, module_src=source)
    assert not (tmp_path / "ran").exists()


def test_source_in_the_pickle_is_not_run_for_a_known_class(nets, tmp_path):
    meta = metadata_of(nets.TestNet(2))
    meta.module_src = f"open({str(tmp_path / 'ran')!r}, 'w')\n" + SOURCE
    assert type(persistence._reconstruct_persistent_obj(meta)) is nets.TestNet
    assert not (tmp_path / "ran").exists()


def test_trusted_source_runs_once_and_only_within_the_context(nets, tmp_path):
    log = tmp_path / "log"
    source = f"open({str(log)!r}, 'a').write('x')\n" + SOURCE.replace("self.gain\n", "self.gain * 100\n")
    meta = metadata_of(nets.TestNet(2))
    meta.module_src = source
    with persistence.trust_embedded_source():
        first = persistence._reconstruct_persistent_obj(meta)
        second = persistence._reconstruct_persistent_obj(meta)
    assert type(first) is type(second) is not nets.TestNet and log.read_text() == "x"
    assert type(persistence._reconstruct_persistent_obj(meta)) is nets.TestNet
    assert metadata_of(copy.deepcopy(first)).module_src == source


def test_trust_does_not_reach_other_threads(tmp_path):
    seen = []
    with persistence.trust_embedded_source():
        thread = threading.Thread(target=lambda: seen.append(persistence._trusted.get()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_trusted_source_that_lacks_an_import_falls_back_with_a_warning(nets):
    meta = metadata_of(nets.TestNet(2))
    meta.module_src = "import no_such_module_here\n" + SOURCE
    with persistence.trust_embedded_source(), pytest.warns(UserWarning, match="TestNet.*no_such_module_here"):
        assert type(persistence._reconstruct_persistent_obj(meta)) is nets.TestNet


def test_import_hooks_see_and_change_the_metadata(nets, monkeypatch):
    monkeypatch.setattr(persistence, "_import_hooks", [])

    @persistence.import_hook
    def rename(meta):
        return EasyDict(meta, class_name=meta.class_name.replace("Old", "Test"))

    meta = metadata_of(nets.TestNet(2))
    meta.class_name = "OldNet"
    assert type(persistence._reconstruct_persistent_obj(meta)) is nets.TestNet


def test_state_of_another_version_of_the_class_is_upgraded(nets):
    assert reconstruct("TestUpgraded", {"old": 5}, module_src="# another version").new == 5
    assert reconstruct("TestUpgraded", {"new": 6}, module_src=SOURCE).new == 6


def test_metadata_of_older_versions_is_completed(nets):
    assert persistence._reconstruct_persistent_obj({"class_name": "TestUpgraded", "version": 2,
                                                    "state": {"old": 1}}).new == 1
    for bad in ({"version": 7}, {"version": 1}, {"type": "function"}, {"class_name": 3}, {"module_src": b""}):
        with pytest.raises(UserError):
            persistence._reconstruct_persistent_obj({"class_name": "TestUpgraded", "state": {"new": 1}, **bad})


def test_classes_below_the_top_level_do_not_pickle(nets):
    @persistence.persistent_class
    class Local:
        pass

    with pytest.raises(pickle.PicklingError, match="Local is not at the top level"):
        pickle.dumps(Local())


def test_a_class_without_source_is_refused():
    with pytest.raises(TypeError, match="source"):
        exec(
            "from torch_utils import persistence\n@persistence.persistent_class\nclass A: pass",
            {"__name__": "made_of_nothing"},
        )


def test_a_name_defined_twice_is_ambiguous_only_for_foreign_source(nets, tmp_path, monkeypatch):
    (tmp_path / "second_definition.py").write_text("# second\n" + SOURCE)
    second = importlib.import_module("second_definition")
    assert type(pickle.loads(pickle.dumps(second.TestNet(2)))) is second.TestNet
    with pytest.raises(UserError, match="several modules"):
        reconstruct("TestNet", {}, module_src="# third")
