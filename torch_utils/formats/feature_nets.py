"""Feature nets from files: recognises formats, opens files, and decides which programs may run.

| format      | content                                                | is opened                                  |
|-------------|--------------------------------------------------------|--------------------------------------------|
| safetensors | the weights and architecture of a `ClassifierNet`      | always: it is data                         |
| ONNX        | a graph for onnxruntime, without gradients             | always: it can't run code or write files   |
| DINOv2      | the authors' weights; the architecture comes from timm | always: it is data                         |
| TorchScript | a program                                              | if its SHA-256 is trusted                  |

`known-nets.txt` in the cache folder lists the nets that the user trusts (`trust_net`), with their paths and URLs.

Nets are called like NVIDIA's feature nets. `CALL_OPTIONS` has the arguments for each output.
"""

import hashlib
import io
import json
import os
import warnings
import zipfile
from typing import Any, Collection, Literal, NamedTuple

import torch

from dnnlib.util import UserError, append_text, atomic_write, cache_dir, open_url
from torch_utils.formats import dinov2, is_onnx, is_safetensors
from torch_utils.formats.classifier_net import ClassifierNet
from torch_utils.formats.onnx_file import open_session
from torch_utils.formats.safetensors_file import read_header, read_tensors

Output = Literal["features", "probabilities", "lpips"]

CALL_OPTIONS: dict[Output, dict[str, bool]] = {
    "features":      {"return_features": True},
    "probabilities": {"no_output_bias": True},
    "lpips":         {"resize_images": False, "return_lpips": True},
}
_METADATA_KEY = "glead_feature_net"
_KNOWN_NAME = "known-nets.txt"
_MAX_FILE_BYTES = 4 << 30
_MAX_RESOLUTION = 1024


class OpenNet(NamedTuple):
    module: torch.nn.Module     # In eval mode, without gradients for its weights.
    digest: str                 # SHA-256 of the file.
    outputs: frozenset[Output]  # The outputs that it has.


def open_net(source: str | os.PathLike, device: str | torch.device, *, trusted: Collection[str] = ()) -> OpenNet:
    """Open a feature net of any format for inference.

    Args:
        source:  Path or http(s) URL. A URL is downloaded once; a line on stderr says so.
        device:  Where the net runs. ONNX nets run on the CPU, but take tensors on any device and return them there.
        trusted: SHA-256 of TorchScript files that may be opened, in addition to those that the user trusts.

    Raises:
        UserError: The file can't be had, is no feature net, or is a TorchScript file that is not trusted.
    """
    name, data = os.fspath(source), _read(source)
    digest = hashlib.sha256(data).hexdigest()
    outputs: set[Output] = set(CALL_OPTIONS)
    if not _is_torchscript(data) and (state := dinov2.read_state(data)) is not None:
        module: torch.nn.Module = dinov2.build(state, name).to(device)
        outputs = {"features"}
    elif is_safetensors(data):
        module = _build_classifier(data, name).to(device)
    elif is_onnx(data):
        module = OnnxNet(data, name)
        outputs = set(module.output_names)
    elif _is_torchscript(data):
        if digest not in trusted and not origins(digest):
            raise UserError(f"{name} is a TorchScript file, which is a program and can do what you can, such as delete "
                            f"files: say --trust-net once if you trust it (SHA-256 {digest}, which is then remembered)")
        module = _load_torchscript(data, name, device)
        arguments = {argument.name for argument in module.forward.schema.arguments}  # type: ignore[attr-defined]
        outputs = {output for output, options in CALL_OPTIONS.items() if options.keys() <= arguments}
    else:
        raise UserError(f"{name} is no feature net: neither a safetensors file by feature_net.py, nor ONNX, nor "
                        "TorchScript (made by torch.jit.save), nor weights of DINOv2")
    for parameter in module.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad = False
    return OpenNet(module.eval(), digest, frozenset(outputs))


# ----------------------------------------------------------------------------------------------------------------------
# Trust.


def origins(digest: str) -> list[str]:
    """The paths and URLs of the trusted net with this SHA-256; empty for other nets."""
    return [origin for known, origin in _known() if known == digest]


def trust_net(source: str | os.PathLike, *, always_the_same: bool = False) -> None:
    """Trust the TorchScript net at a path or URL from now on, and all copies of it. Other formats need no trust.

    Args:
        source:          Path or URL.
        always_the_same: Trust only the first content that ever came from this source.

    Raises:
        UserError: The file can't be had, or has changed although it should be `always_the_same`.
    """
    data = _read(source)
    if not always_the_same and not _is_torchscript(data):
        return
    digest, origin = hashlib.sha256(data).hexdigest(), ascii(os.fspath(source))[1:-1]
    before = [known for known, known_origin in _known() if known_origin == origin]
    if digest in before:
        return
    if always_the_same and before:
        raise UserError(f"what is stored of {origin} has SHA-256 {digest}, and had {before[-1]} when it first came: "
                        f"delete the file, or that line in {cache_dir(_KNOWN_NAME)} if the net was renewed")
    cache_dir().mkdir(parents=True, exist_ok=True)
    append_text(cache_dir(_KNOWN_NAME), f"{digest}  {origin}\n")


def _known() -> list[tuple[str, str]]:
    """The lines of `known-nets.txt`: (SHA-256, path or URL)."""
    path = cache_dir(_KNOWN_NAME)
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(digest, origin) for digest, _, origin in (line.partition("  ") for line in lines)]


def _read(source: str | os.PathLike) -> bytes:
    with open_url(source) as f:
        if f.seek(0, os.SEEK_END) > _MAX_FILE_BYTES:
            raise UserError(f"{os.fspath(source)} is larger than {_MAX_FILE_BYTES >> 30} GiB: no feature net")
        f.seek(0)
        return f.read()


# ----------------------------------------------------------------------------------------------------------------------
# TorchScript.


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _load_torchscript(data: bytes, name: str, device: str | torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # PyTorch 2.15 warns that TorchScript is deprecated. The field's published nets have this format, however.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+. is (deprecated|not supported)")
        try:
            return torch.jit.load(io.BytesIO(data), map_location=torch.device(device))
        except RuntimeError as e:
            reason = str(e).strip().splitlines()[0].partition(". ")[0][:160]
            raise UserError(f"{name} is a damaged TorchScript file: {reason}") from e


# ----------------------------------------------------------------------------------------------------------------------
# Our own nets.


def save_classifier(net: ClassifierNet, path: str | os.PathLike, *, metadata: dict[str, Any]) -> None:
    """Write a folded net atomically, with its architecture and `metadata`, which is plain data."""
    from safetensors.torch import save

    text = json.dumps({"architecture": net.architecture, "training": metadata}, sort_keys=True)
    with atomic_write(path) as f:
        f.write(save(net.state_dict(), {"format": "pt", _METADATA_KEY: text}))


def _build_classifier(data: bytes, name: str) -> ClassifierNet:
    try:
        metadata = read_header(data).get("__metadata__", {})
        if not isinstance(metadata, dict) or not isinstance(metadata.get(_METADATA_KEY), str):
            raise UserError("a safetensors file that feature_net.py did not write: it doesn't say of what net it is")
        tensors = read_tensors(data)
    except UserError as e:
        raise UserError(f"{name}: {e}") from e
    try:
        architecture = json.loads(metadata[_METADATA_KEY])["architecture"]
        if architecture["resolution"] not in range(1, _MAX_RESOLUTION + 1):
            raise ValueError("images would be scaled to that")
        with torch.device("meta"):  # takes no memory, even if the file claims huge sizes
            net = ClassifierNet(architecture["num_classes"], width=architecture["width"],
                                resolution=architecture["resolution"])
            net.fold()
        net.load_state_dict(tensors, assign=True)
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError) as e:
        raise UserError(f"{name}: its tensors and the architecture that it names don't belong together") from e
    return net


# ----------------------------------------------------------------------------------------------------------------------
# ONNX.


class OnnxNet(torch.nn.Module):
    """A graph that onnxruntime computes, on the CPU and without gradients.

    It has one input, [N, 3, H, W] in 0..255, uint8 or float32, with any N. Its outputs have the names in
    `CALL_OPTIONS`. A single output with another name is taken for the features.

    Args:
        data: Content of the file.
        name: Name of the file in error messages.

    Raises:
        UserError: The file is damaged, has its weights in other files, or has other inputs or outputs.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__()
        try:
            self._session = open_session(data)
        except Exception as e:  # onnxruntime's exceptions have no other common base
            raise UserError(f"{name} is no ONNX file that onnxruntime can open: {_one_line(e)}") from e
        inputs, outputs = self._session.get_inputs(), [output.name for output in self._session.get_outputs()]
        if len(inputs) != 1 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
            got = ", ".join(f"{value.name}: {value.type}" for value in inputs)
            raise UserError(f"{name}: a feature net takes one input, images as uint8 or float32; this takes {got}")
        self._input, self._dtype = inputs[0].name, torch.uint8 if "uint8" in inputs[0].type else torch.float32
        self.output_names = {output: output for output in CALL_OPTIONS if output in outputs}
        if not self.output_names and len(outputs) == 1:
            self.output_names = {"features": outputs[0]}
        if not self.output_names:
            raise UserError(f"{name}: of its outputs {', '.join(outputs)} none is called {', '.join(CALL_OPTIONS)}")

    def forward(
        self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False,
        resize_images: bool = False, return_lpips: bool = False,
    ) -> torch.Tensor:
        output: Output = "features" if return_features else "lpips" if return_lpips else "probabilities"
        pixels = img.detach().cpu().to(self._dtype).numpy()
        try:
            result, = self._session.run([self.output_names[output]], {self._input: pixels})
        except Exception as e:  # onnxruntime's exceptions have no other common base
            raise RuntimeError(_one_line(e)) from e
        return torch.from_numpy(result).to(img.device)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
