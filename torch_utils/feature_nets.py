"""Feature nets as TorchScript files: the one place that opens and writes them."""

import contextlib
import json
import os
import warnings
from typing import Any, BinaryIO, Iterator

import torch

from dnnlib.util import UserError, atomic_write, open_url


@contextlib.contextmanager
def _without_deprecation_notices() -> Iterator[None]:
    """PyTorch 2.15 deprecates TorchScript, which is the format of the field's published nets: no news to the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is (deprecated|not supported)")
        yield


def load_torchscript(source: str | os.PathLike, device: str | torch.device) -> torch.jit.ScriptModule:
    """Open a TorchScript net for inference: eval mode, frozen weights, on `device`.

    Args:
        source: Path or http(s) URL; a URL is downloaded once, which is announced on stderr.
        device: Where the weights go.

    Raises:
        UserError: The file can't be had, or is no TorchScript file.
    """
    with open_url(source) as f:
        return parse_torchscript(f, name=os.fspath(source), device=device)


def parse_torchscript(file: BinaryIO, *, name: str, device: str | torch.device) -> torch.jit.ScriptModule:
    """The same from an open file; `name` is what errors call it."""
    with _without_deprecation_notices():
        try:
            net = torch.jit.load(file, map_location=torch.device(device))
        except RuntimeError as e:
            reason = str(e).strip().splitlines()[0].partition(". ")[0][:160]
            raise UserError(f"{name} is no TorchScript file (made by torch.jit.save), or damaged: {reason}") from e
    for parameter in net.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad = False
    return net.eval()


def save_torchscript(net: torch.nn.Module, path: str | os.PathLike, *, metadata: dict[str, Any]) -> None:
    """Compile `net` and write it atomically; `metadata` becomes the string attribute `metadata`, as JSON."""
    with _without_deprecation_notices():
        net.metadata = json.dumps(metadata, sort_keys=True)
        script = torch.jit.script(net)
        with atomic_write(path) as f:
            torch.jit.save(script, f)


def read_metadata(net: torch.jit.ScriptModule) -> dict[str, Any]:
    """What `save_torchscript` was given; empty for nets from elsewhere."""
    return json.loads(net.metadata) if hasattr(net, "metadata") else {}
