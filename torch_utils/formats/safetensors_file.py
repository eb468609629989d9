"""Networks in safetensors files. They hold tensors and, in the metadata under `glead`, the description, but no code.

The description is also written to NAME.json beside the file: for people to read, and in case another tool drops the
metadata. A file without any description can't be read, because tensors don't tell what network they belong to.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from dnnlib.util import UserError, atomic_write

from . import description

_METADATA_KEY = "glead"
_MAX_HEADER_BYTES = 2 * description.MAX_JSON_BYTES


def write(path: str | os.PathLike, networks: Mapping[str, Any], *, half: bool = False) -> list[Path]:
    """Write networks to NAME.safetensors, and their description to NAME.json. Returns both paths.

    Args:
        path:     File to write or replace.
        networks: Some of `network_pickle.KEYS`.
        half:     Round float32 to float16, which halves the size of the file.

    Raises:
        UserError: The networks can't be described by plain data.
    """
    from safetensors.torch import save

    described = description.describe(networks)
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(described)}
    json_path = Path(path).with_suffix(".json")
    tensors = description.tensors_of(networks)
    if half:
        tensors = {name: x.half() if x.dtype == torch.float32 else x for name, x in tensors.items()}
    with atomic_write(path) as f:
        f.write(save(tensors, metadata))
    with atomic_write(json_path) as f:
        f.write((json.dumps(described, indent=2) + "\n").encode())
    return [Path(path), json_path]


def read(data: bytes, *, path: str | None = None, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the networks in the bytes of a file; see `description.build`.

    Args:
        data: Content of the file.
        path: Path of the file. If the metadata lack a description, it is read from NAME.json beside the file.
        only: Names of the networks to build; None = all.

    Raises:
        UserError: The file is damaged or lacks a description, or its tensors don't fit the description.
    """
    described = _description(read_header(data), path)
    return description.build(described, read_tensors(data), only=only)


def read_header(data: bytes) -> dict[str, Any]:
    """The JSON object at the beginning of a file. Raises UserError if it is damaged."""
    (size,) = struct.unpack("<Q", data[:8])
    if size > len(data) - 8:
        raise UserError(f"truncated: its header says {size} bytes, {len(data) - 8} are there")
    if size > _MAX_HEADER_BYTES:
        raise UserError(f"its header of {size} bytes is larger than networks need")
    try:
        header = json.loads(data[8:8 + size])
    except (ValueError, RecursionError) as e:
        raise UserError("damaged: its header is no JSON") from e
    if not isinstance(header, dict):
        raise UserError("damaged: its header is no JSON object")
    return header


def _description(header: dict[str, Any], path: str | None) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and isinstance(metadata.get(_METADATA_KEY), str):
        return description.parse(metadata[_METADATA_KEY])
    beside = None if path is None else Path(path).with_suffix(".json")
    if beside is None or not beside.is_file():
        place = "" if beside is None else f", nor is {beside.name} beside it"
        raise UserError(f"a safetensors file without a description of networks: its metadata hold none{place}; "
                        "convert.py writes both")
    with open(beside, "rb") as f:
        text = f.read(description.MAX_JSON_BYTES + 1)
    try:
        return description.parse(text)
    except UserError as e:
        raise UserError(f"{beside.name}: {e}") from e


def read_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name. Raises UserError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:  # the last three: dtypes unknown to PyTorch
        raise UserError(f"truncated or damaged: {' '.join(str(e).split())[:200]}") from e
