"""Writes G_ema as an ONNX graph, for runtimes without PyTorch, and reads it back.

Inputs: z [N, z_dim]; c [N, c_dim], if the generator is conditional; truncation_psi [], optional with default 1, if the
generator tracks the mean w. Output: img [N, C, R, R], float32, about [-1, 1]. Noise is constant.

The graph's initialisers have the names of the state dict, and its metadata hold the description. The generator can
therefore be rebuilt from the file. Other ONNX files can't be read: a graph doesn't name its constructor.
"""

import copy
import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence

import numpy as np
import torch

from dnnlib.util import UserError, atomic_write

from . import description

_METADATA_KEY = "glead"
_KEY = "G_ema"
_OPSET = 18                     # From 2022, widely supported.
_MAX_BYTES = 2_000_000_000      # A protobuf message is limited to 2 GiB.


def write(
    path: str | os.PathLike, networks: Mapping[str, Any], *, noise_mode: Literal["const", "none"] = "const"
) -> list[Path]:
    """Export `G_ema`.

    Args:
        path:       File to write or replace.
        networks:   Holds `G_ema`, on the CPU.
        noise_mode: "none" exports, and describes, a generator without noise inputs.

    Raises:
        UserError: The packages for ONNX are missing, or the network is too large for one file.
    """
    onnx = _import("onnx")
    _import("onnxscript")  # torch.onnx needs it
    if not hasattr(getattr(networks[_KEY], "synthesis", None), "block_resolutions"):
        raise UserError(f"{_KEY} is a {type(networks[_KEY]).__name__}: only generators of StyleGAN2 can be exported as "
                        "ONNX files; use .safetensors")
    G = networks[_KEY] if noise_mode == "const" else without_noise(networks[_KEY])
    if sum(t.numel() * t.element_size() for t in G.state_dict().values()) > _MAX_BYTES:
        raise UserError(f"{_KEY} takes more than the 2 GB that an ONNX file can hold; use .safetensors")
    model = _export(G)
    _strip(model)
    stored = {initializer.name for initializer in model.graph.initializer}
    wanted = [name for name in G.state_dict() if not name.endswith("resample_filter")]  # unused filters are left out
    missing = [name for name in wanted if f"{_KEY}.{name}" not in stored]
    if missing:
        raise RuntimeError(f"the exported graph lacks {', '.join(missing)}")
    if G.mapping.w_avg_beta is not None:
        one = onnx.numpy_helper.from_array(np.ones([], np.float32), "truncation_psi")
        model.graph.initializer.append(one)  # an initialiser makes an input optional
    described = description.describe({_KEY: G, "training_set_kwargs": networks.get("training_set_kwargs")})
    onnx.helper.set_model_props(model, {_METADATA_KEY: json.dumps(described)})
    onnx.checker.check_model(model)
    with atomic_write(path) as f:
        f.write(model.SerializeToString())
    return [Path(path)]


def read(data: bytes, *, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Read a generator back from the bytes of a file that `write` wrote; see `description.build`.

    Raises:
        UserError: The file is damaged or was written by another program, or the package `onnx` is missing.
    """
    onnx = _import("onnx")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf's own errors, of several kinds
        raise UserError(f"begins like an ONNX model, but is truncated or damaged ({type(e).__name__})") from e
    text = next((prop.value for prop in model.metadata_props if prop.key == _METADATA_KEY), None)
    if text is None:
        raise UserError("an ONNX model that convert.py didn't write: only its own hold the description of a network")
    described = description.parse(text)
    if set(described["networks"]) != {_KEY}:
        raise UserError(f"damaged: its description is not one of {_KEY} alone")
    tensors = {tensor.name: _to_tensor(onnx, tensor) for tensor in model.graph.initializer
               if tensor.name.startswith(f"{_KEY}.")}
    return description.build(described, tensors, only=only)


def without_noise(G: torch.nn.Module) -> torch.nn.Module:
    """The same generator without noise inputs."""
    kwargs = G.init_kwargs
    kwargs["synthesis_kwargs"] = dict(kwargs.get("synthesis_kwargs", {}), use_noise=False)
    with torch.random.fork_rng(devices=[]):
        result = type(G)(*G.init_args, **kwargs)
    result.load_state_dict({name: value for name, value in G.state_dict().items() if ".noise_" not in name})
    return result.eval().requires_grad_(False)


def open_session(model: bytes | str) -> Any:
    """An onnxruntime session on the CPU, for the path or the content of a file. It logs nothing."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Session:
    """An exported generator, run by onnxruntime on the CPU."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._session = open_session(os.fspath(path))

    def __call__(self, z: torch.Tensor, c: torch.Tensor | None, truncation_psi: float | None = None) -> torch.Tensor:
        """Images [N, C, R, R]. Inputs of None are left out."""
        inputs = {"z": z.numpy()}
        if c is not None:
            inputs["c"] = c.numpy()
        if truncation_psi is not None:
            inputs["truncation_psi"] = np.array(truncation_psi, np.float32)
        return torch.from_numpy(self._session.run(["img"], inputs)[0])


class _Sampler(torch.nn.Module):
    """The module to export. Names of initialisers begin with `G_ema.`, after its attribute."""

    def __init__(self, G: torch.nn.Module) -> None:
        super().__init__()
        self.G_ema = G

    def forward(
        self, z: torch.Tensor, c: torch.Tensor | None = None, truncation_psi: torch.Tensor | None = None
    ) -> torch.Tensor:
        ws = self.G_ema.mapping(z, c)
        if truncation_psi is not None:
            ws = ws * truncation_psi + self.G_ema.mapping.w_avg * (1 - truncation_psi)  # exact for 1
        return self.G_ema.synthesis(ws, noise_mode="const", fused_modconv=False)  # fused needs a fixed batch size


def _export(G: torch.nn.Module) -> Any:
    G = copy.deepcopy(G).eval().requires_grad_(False)
    batch = torch.export.Dim("N")
    inputs: dict[str, torch.Tensor] = {"z": torch.zeros([2, G.z_dim])}
    shapes: dict[str, dict] = {"z": {0: batch}}
    if G.c_dim > 0:
        inputs["c"], shapes["c"] = torch.zeros([2, G.c_dim]), {0: batch}
    if G.mapping.w_avg_beta is not None:
        inputs["truncation_psi"], shapes["truncation_psi"] = torch.ones([]), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about its own internals
        program = torch.onnx.export(
            _Sampler(G).eval(), kwargs=inputs, dynamo=True, dynamic_shapes=shapes, input_names=list(inputs),
            output_names=["img"], opset_version=_OPSET, verbose=False,
            optimize=False,  # optimisation would rename weights
        )
    return program.model_proto


def _strip(model: Any) -> None:
    """Remove the stack traces of the export. They name folders of this machine, and can be larger than the network."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (graph, *graph.node, *values, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.producer_name = "glead"


def _to_tensor(onnx: Any, tensor: Any) -> torch.Tensor:
    num_values = int(np.prod(list(tensor.dims), dtype=object))
    plain = tensor.data_type == onnx.TensorProto.FLOAT and tensor.data_location == onnx.TensorProto.DEFAULT
    if not plain or any(dim < 0 for dim in tensor.dims) or len(tensor.raw_data) != 4 * num_values:
        raise UserError(f"damaged: {tensor.name[:120]!a} is no float32 tensor within the file")
    return torch.from_numpy(np.frombuffer(tensor.raw_data, "<f4").astype(np.float32).reshape(list(tensor.dims)))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(f"ONNX files need the package {name}, which is not installed: pip install onnx onnxscript "
                        "onnxruntime") from e
