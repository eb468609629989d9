"""Network files: network pickles, safetensors, state dicts by torch.save, ONNX.

| module             | suffix         | holds                                                               |
|--------------------|----------------|---------------------------------------------------------------------|
| `network_pickle`   | `.pkl`         | all networks, with the source code that defines them                |
| `safetensors_file` | `.safetensors` | all networks, as tensors and a JSON description, without code       |
| `state_dict_file`  | `.pt`          | generators of the skip architecture, under rosinality's names       |
| `onnx_file`        | `.onnx`        | G_ema, as a graph that other runtimes execute                       |

`read_networks` recognises the formats by content. Reading never runs code from a file: this project's constructors
build the networks that a file describes, and then load its tensors. Names and shapes of the tensors must match.
"""

import os
from typing import Any, BinaryIO, NamedTuple, Sequence

from dnnlib.util import UserError

from . import network_pickle

_PICKLED_TORCH_SAVE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before PyTorch 1.6.


class Format(NamedTuple):
    """Properties of a format."""

    suffix: str
    keys: tuple[str, ...]   # The part of `network_pickle.KEYS` that it can hold.
    lossless: bool          # Whether reading a file gives the same constructor arguments and bitwise equal tensors.
    tolerance: float        # Largest change of images by conversion, divided by the largest value (at least 1).


FORMATS = {
    "pkl": Format(".pkl", network_pickle.KEYS, True, 1e-5),
    "safetensors": Format(".safetensors", network_pickle.KEYS, True, 1e-5),
    "safetensors-float16": Format(".safetensors", network_pickle.KEYS, False, 0.05),
    "pt": Format(".pt", ("G", "G_ema"), False, 1e-5),
    "onnx": Format(".onnx", ("G_ema", "training_set_kwargs"), False, 1e-4),
}


def read_networks(file: BinaryIO, *, trust: bool = False, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Read networks of any format in `FORMATS`, recognised by its content.

    Args:
        file:  A file that is open in binary mode.
        trust: Read network pickles with the ordinary unpickler, and run the source code in them. Other formats hold no
               code.
        only:  Build only these of `network_pickle.KEYS`; None = all.

    Returns:
        A dict with the keys `network_pickle.KEYS`. Modules are on the CPU. Values that the file lacks are None.

    Raises:
        UserError: The file has another format, is damaged, asks for globals that are not allowed, or holds networks of
            another architecture. The message is one line and begins with the file's name.
    """
    name = getattr(file, "name", None)
    path = os.fspath(name) if isinstance(name, (str, os.PathLike)) else None
    try:
        return dict.fromkeys(network_pickle.KEYS) | _read(network_pickle.read_all(file), path, trust, only)
    except UserError as e:
        raise UserError(str(e) if path is None else f"{path}: {e}") from e


def _read(data: bytes, path: str | None, trust: bool, only: Sequence[str] | None) -> dict[str, Any]:
    if data.startswith((b"PK\x03\x04", _PICKLED_TORCH_SAVE)):
        from . import state_dict_file
        return state_dict_file.read(data, only=only)
    if is_safetensors(data):
        from . import safetensors_file
        return safetensors_file.read(data, path=path, only=only)
    if is_onnx(data):
        from . import onnx_file
        return onnx_file.read(data, only=only)
    return network_pickle.read(data, trust=trust, only=only)


def is_safetensors(head: bytes) -> bool:
    """Recognise a safetensors file by the size of its header (less than 4 GiB), and the header's first byte."""
    return head[4:9] == b"\0\0\0\0{"


def is_onnx(head: bytes) -> bool:
    """Recognise an ONNX file by its first two fields: the version, and any other field of a ModelProto."""
    return len(head) > 2 and head[0] == 0x08 and head[1] < 0x20 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42"
