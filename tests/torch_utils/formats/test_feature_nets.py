"""Opening feature nets of all formats, and which of them are trusted."""

import json
import sys
import types
import warnings
import zipfile

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.torch import save_file

from dnnlib.util import UserError, cache_dir
from small_networks import Overwriting, save_torchscript
from torch_utils.formats.classifier_net import ClassifierNet
from torch_utils.formats.feature_nets import CALL_OPTIONS, OnnxNet, open_net, origins, save_classifier, trust_net


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.dropout(img * self.factor)


def classifier():
    net = ClassifierNet(5, width=4, resolution=16)
    net.fold()
    return net


def pixels(side=32):
    return torch.randint(256, (3, 3, side, side)).to(torch.uint8)


def write_onnx(path, *, outputs=("features",), dtype=TensorProto.FLOAT, inputs=("img",)):
    """The mean colour under each of these names, times 1, 2, ..."""
    cast = helper.make_node("Cast", [inputs[0]], ["float"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["float"], ["mean"], axes=[2, 3], keepdims=0)
    factors = [helper.make_tensor(f"factor{i}", TensorProto.FLOAT, [], [i + 1]) for i in range(len(outputs))]
    nodes = [helper.make_node("Mul", ["mean", f"factor{i}"], [name]) for i, name in enumerate(outputs)]
    graph = helper.make_graph(
        [cast, mean, *nodes], "g", [helper.make_tensor_value_info(name, dtype, ["N", 3, "H", "W"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in outputs], factors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def error_of(path):
    with pytest.raises(UserError) as caught:
        open_net(path, "cpu")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_our_nets_are_data_and_give_the_same_numbers(tmp_path):
    """As the very net, and as TorchScript makes of it, which these files held before."""
    net, path = classifier(), tmp_path / "net.pt"  # the name says nothing
    save_classifier(net, path, metadata={"seed": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(net)
    opened = open_net(path, "cpu")
    assert opened.outputs == CALL_OPTIONS.keys() and not opened.module.training
    assert not any(p.requires_grad for p in opened.module.parameters())
    for options in CALL_OPTIONS.values():
        ours, expected, before = (m(pixels_, **options) for pixels_ in [pixels()] for m in (opened.module, net, script))
        assert torch.equal(ours, expected) and torch.equal(ours, before)
    with safe_open(path, "pt") as f:
        described = json.loads(f.metadata()["glead_feature_net"])
    assert described == {"architecture": {"num_classes": 5, "width": 4, "resolution": 16}, "training": {"seed": 4}}
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"], "no trust was needed"


@pytest.mark.parametrize("changes", [
    {"width": 8}, {"width": -4}, {"width": "4"}, {"num_classes": 10**30}, {"resolution": 10**9}, {"resolution": 16.5},
])
def test_an_architecture_that_does_not_fit(tmp_path, changes):
    net = classifier()
    net.architecture |= changes
    save_classifier(net, tmp_path / "net.safetensors", metadata={})
    assert "don't belong together" in error_of(tmp_path / "net.safetensors")


def test_torchscript_runs_nothing_before_it_is_trusted(tmp_path):
    mine, path = tmp_path / "mine", save_torchscript("net.pt", Overwriting(str(tmp_path / "mine")), trust=False)
    mine.write_text("work of years")
    message = error_of(path)
    assert "--trust-net" in message and "a program" in message and mine.read_text() == "work of years"
    trust_net(path)
    copy = tmp_path / "other-name"
    copy.write_bytes((tmp_path / path).read_bytes())
    assert open_net(copy, "cpu").outputs == {"features"} and mine.read_bytes() != b"work of years"
    digest = open_net(copy, "cpu").digest
    assert origins(digest) == ["net.pt"] and digest in message and digest in cache_dir("known-nets.txt").read_text()
    other = save_torchscript("net.pt", Scale(), trust=False)
    assert "--trust-net" in error_of(other), "another file at the same place"


def test_trusted_torchscript_is_frozen_and_in_eval_mode(tmp_path):
    path = save_torchscript(tmp_path / "net.pt", Scale())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = open_net(path, "cpu").module
    assert net(torch.ones(100)).tolist() == [3.0] * 100  # no dropout
    assert not any(p.requires_grad for p in net.parameters())


def test_a_source_that_always_gives_the_same(tmp_path):
    path = save_torchscript(tmp_path / "net.pt", Scale(), trust=False)
    for _ in range(2):
        trust_net(path, always_the_same=True)
    assert len(cache_dir("known-nets.txt").read_text().splitlines()) == 1
    save_torchscript(path, Overwriting("x"), trust=False)
    with pytest.raises(UserError, match="has SHA-256 [0-9a-f]{64}, and had [0-9a-f]{64} when it first came"):
        trust_net(path, always_the_same=True)


def test_onnx_nets(tmp_path):
    img = pixels()
    for dtype in (TensorProto.FLOAT, TensorProto.UINT8):
        net = open_net(write_onnx(tmp_path / "a", dtype=dtype, outputs=["probabilities", "x", "features"]), "cpu")
        assert isinstance(net.module, OnnxNet) and net.outputs == {"features", "probabilities"}
        for factor, output in ((1, "probabilities"), (3, "features")):
            expected = factor * img.float().mean(dim=(2, 3))
            torch.testing.assert_close(net.module(img, **CALL_OPTIONS[output]), expected)
    assert open_net(write_onnx(tmp_path / "b", outputs=["pooled"]), "cpu").outputs == {"features"}
    assert "takes one input" in error_of(write_onnx(tmp_path / "c", inputs=["a", "b"]))
    assert "takes one input" in error_of(write_onnx(tmp_path / "d", dtype=TensorProto.DOUBLE))
    assert "a, b none is called features" in error_of(write_onnx(tmp_path / "e", outputs=["a", "b"]))
    assert not (tmp_path / "cache").exists(), "no trust was needed"


def test_dinov2_from_the_authors_weights(tmp_path):
    timm = pytest.importorskip("timm", reason="the architecture of DINOv2 is in the package timm")
    net = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    with torch.no_grad():
        for block in net.blocks:    # which would hardly do anything
            block.ls1.gamma.fill_(1), block.ls2.gamma.fill_(1)
    state = net.state_dict() | {"mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov2.pth")
    opened = open_net(tmp_path / "dinov2.pth", "cpu")
    assert opened.outputs == {"features"} and not opened.module.training
    img, mean, std = pixels(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    large = torch.nn.functional.interpolate(img.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        expected = net((large / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        features = opened.module(img, return_features=True)
    assert features.shape == (3, 384)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)

    rows = torch.arange(1369.0).div(37).floor()[None, :, None].repeat(1, 1, 384)    # 37x37, as the published ones have
    state["pos_embed"] = torch.cat([torch.full([1, 1, 384], -1.0), rows], dim=1)
    save_file(state, tmp_path / "dinov2.safetensors")
    positions = open_net(tmp_path / "dinov2.safetensors", "cpu").module.net.pos_embed[0, :, 0]
    assert positions[0] == -1
    rows = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(positions[1:].view(16, 16)[2:-2, 5], rows[2:-2], rtol=0, atol=0.05)


def test_dinov2_that_can_not_be_built(tmp_path, monkeypatch):
    state = {"cls_token": torch.zeros(1, 1, 1536), "pos_embed": torch.zeros(1, 257, 1536),
             "blocks.0.ls1.gamma": torch.zeros(1536)}
    torch.save(state, tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "in the package timm: pip install timm" in error_of(tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace())
    assert "the nets of widths 384, 768, 1024 without registers are known" in error_of(tmp_path / "net.pth")


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "net.pt"
    for content in (b"", b"nothing of the kind", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        assert "is no feature net" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"")
    assert "is no feature net" in error_of(path)
    path.write_bytes(write_onnx(tmp_path / "whole").read_bytes()[:100])
    assert "is no ONNX file that onnxruntime can open" in error_of(path)
    save_file({"a": torch.zeros(1)}, path)
    assert "feature_net.py did not write" in error_of(path)
    save_classifier(classifier(), path, metadata={})
    path.write_bytes(path.read_bytes()[:-4])
    assert "truncated or damaged" in error_of(path)
    whole = save_torchscript(path, Scale())
    path.write_bytes(b"\0" * 16 + whole.read_bytes())   # still a zip, which PyTorch can't read
    trust_net(path)
    assert "is a damaged TorchScript file" in error_of(path)
    path.unlink()
    assert "can't open" in error_of(path)
