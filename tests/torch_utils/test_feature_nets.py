"""Opening and writing TorchScript nets."""

import warnings

import pytest
import torch

from dnnlib.util import UserError
from torch_utils.feature_nets import load_torchscript, read_metadata, save_torchscript


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x * self.factor)


def test_round_trip_gives_a_frozen_net_in_eval_mode(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_torchscript(Scale(), path, metadata={"seed": 4})
        net = load_torchscript(path, "cpu")
    assert net(torch.ones(100)).tolist() == [3.0] * 100  # no dropout
    assert not any(p.requires_grad for p in net.parameters())
    assert read_metadata(net) == {"seed": 4}
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_nets_from_elsewhere_have_no_metadata(tmp_path):
    torch.jit.save(torch.jit.script(Scale()), tmp_path / "net.pt")
    assert read_metadata(load_torchscript(tmp_path / "net.pt", "cpu")) == {}


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 broken"])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="net.pt is no TorchScript file") as caught:
        load_torchscript(path, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="can't open .*none.pt"):
        load_torchscript(tmp_path / "none.pt", "cpu")


def test_a_net_that_does_not_compile_leaves_no_file(tmp_path):
    class Unscriptable(torch.nn.Module):
        def forward(self, x):
            return x.to(unknown)  # noqa: F821

    with pytest.raises(Exception):
        save_torchscript(Unscriptable(), tmp_path / "net.pt", metadata={})
    assert not list(tmp_path.iterdir())
