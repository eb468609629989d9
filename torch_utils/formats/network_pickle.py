"""Network pickles. They are written atomically, and read as data: opening one never runs code from the file.

`data_unpickler` returns the file's content as plain data, in which a `ModuleRecord` stands for each network. This
project's constructors then build the networks, and load the tensors. Before sizes that a file declares take memory,
they are compared with the size of the file.
"""

import io
import os
import pickle
from typing import Any, BinaryIO, Mapping, Sequence

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError, atomic_write

from .. import module_state, persistence
from ..host_copy import host_copy
from ..module_state import CLASS_OF, ModuleRecord
from . import data_unpickler, tf_pickle
from .description import check_class

KEYS = ("G", "D", "G_ema", "training_set_kwargs", "augment_pipe")

# Limits for files of unknown origin: far above what networks need, and far below what a machine has.
_MAX_FILE_BYTES = 8 << 30
_READ_BYTES = 64 << 20
_MAX_CONSTRUCTOR_INT = 1 << 17
_MAX_PLAIN_VALUES = 2_000         # Number of values in constructor arguments or dataset options.
_BYTES_PER_BYTE = 4               # Bytes of a network's tensors for each byte of the file: tensors may share data.

_TRUST_HINT = "--trust-pickle runs the code in the file, with the ordinary unpickler (only if you trust its origin)"


def read(data: bytes, *, trust: bool = False, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the networks in the bytes of a network pickle; see `formats.read_networks`.

    Returns:
        The networks and options by name, without those that the file lacks. Modules are on the CPU.
    """
    _check_kind(data)
    content = tf_pickle.networks_of(_load_trusted(data) if trust else _load_as_data(data))
    if not isinstance(content, dict) or not any(content.get(key) is not None for key in ("G", "D", "G_ema")):
        raise UserError("no network pickle: a dict with G, D or G_ema was expected")
    wanted = [key for key in (KEYS if only is None else only) if content.get(key) is not None]
    found = {key: _network(key, content[key], len(data), trust=trust) for key in wanted}
    for key in found.keys() & CLASS_OF.keys():
        if not isinstance(found[key], torch.nn.Module):
            raise UserError(f"{key} is no network")
    return found


def save_network_pkl(path: str | os.PathLike, networks: Mapping[str, Any]) -> None:
    """Write a network pickle that other StyleGAN2-style checkouts can read. It is written atomically.

    Args:
        path:     File to write or replace.
        networks: Some of `KEYS`; the others are written as None. Modules may be on any device, and are not changed. The
                  file gets copies on the CPU, in eval mode, whose parameters require no gradient. An optional `method`,
                  such as "glead+centring", is written for people to read.

    Raises:
        ValueError: There is an unknown key.
    """
    unknown = sorted(set(networks) - {*KEYS, "method"})
    if unknown:
        raise ValueError(f"a network pickle has the keys {', '.join(KEYS)}; got {', '.join(unknown)}")
    content: dict[str, Any] = {"method": networks["method"]} if networks.get("method") else {}
    for key in KEYS:
        value = networks.get(key)
        copied = host_copy(value).wait()
        content[key] = copied.cpu().eval().requires_grad_(False) if isinstance(value, torch.nn.Module) else copied
    with atomic_write(path) as f:
        pickle.dump(content, f, protocol=4)  # readable from Python 3.4 on


def read_all(file: BinaryIO) -> bytes:
    """Read the rest of a file. Raises UserError if it is too large for networks."""
    buffer = io.BytesIO()
    while chunk := file.read(_READ_BYTES):  # `read` allocates the size that it is given
        buffer.write(chunk)
        if buffer.tell() > _MAX_FILE_BYTES:
            raise UserError(f"larger than {_MAX_FILE_BYTES >> 30} GiB: no networks")
    return buffer.getvalue()


def _check_kind(data: bytes) -> None:
    if not data:
        raise UserError("the file is empty; a network pickle was expected")
    if data[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        kinds = {
            b"PK\x03\x04": "a zip archive (a dataset, or written by torch.save)",
            b"\x89PNG": "a PNG image",
            b"\xff\xd8": "a JPEG image",
        }
        kind = next((kind for start, kind in kinds.items() if data.startswith(start)), None)
        if kind is None and data[:200].lstrip()[:1] == b"<":
            kind = "a web page"
        raise UserError(f"the file is {kind or 'something else'}; a network pickle was expected")


class _TrustedUnpickler(pickle.Unpickler):
    """The ordinary unpickler, except that it reads all tensors to the CPU."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        if (module, name) == ("dnnlib.tflib.network", "Network"):
            return data_unpickler.TfNetwork  # the original would need TensorFlow
        return super().find_class(module, name)


def _load_trusted(data: bytes) -> Any:
    try:
        with persistence.trust_embedded_source():
            return _TrustedUnpickler(io.BytesIO(data)).load()
    except Exception as e:  # code in the file, or damage, can raise any exception
        kind = "" if isinstance(e, UserError) else f"{type(e).__name__}: "
        raise UserError(f"can't be unpickled: {kind}{' '.join(str(e).split())[:300]}") from e


def _load_as_data(data: bytes) -> Any:
    content, refused = data_unpickler.loads(data)
    if "tfutil.Network" in refused:
        raise UserError("networks of progressive growing (TensorFlow); only those of StyleGAN2 are supported")
    if refused:
        shown = ", ".join(ascii(name)[1:-1] for name in refused[:8])
        shown += f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise UserError(f"refused, because it asks for {shown}; {_TRUST_HINT}")
    return content


# ----------------------------------------------------------------------------------------------------------------------
# Building networks from records.


def _network(key: str, value: Any, num_bytes: int, *, trust: bool) -> Any:
    """Build the network or options under `key`. `num_bytes` is the size of the file."""
    if isinstance(value, data_unpickler.TfNetwork):
        record = tf_pickle.rebuild(value, CLASS_OF[key], max_bytes=_BYTES_PER_BYTE * num_bytes)
        return _build(persistence.find_class(record.class_name), record.state, num_bytes)
    if trust:
        return value
    if key not in CLASS_OF:
        return _plain_copy(value)
    if not isinstance(value, ModuleRecord):
        raise UserError(f"{key} is no network")
    cls = persistence.find_class(value.class_name, value.module_src)
    check_class(cls, key)
    return _build(cls, persistence.upgrade_state(cls, value.state, value.module_src), num_bytes)


def _build(cls: type, state: Mapping[str, Any], num_bytes: int) -> torch.nn.Module:
    state = dict(state)
    for name in ("_init_args", "_init_kwargs"):
        if name in state:
            state[name] = _plain_copy(state[name], max_int=_MAX_CONSTRUCTOR_INT)
    tensors = module_state.flatten_state(state).values()
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _BYTES_PER_BYTE * num_bytes:
        raise UserError("a network in the pickle is declared to be larger than the file")
    return module_state.build_module(cls, state)


def _plain_copy(value: Any, *, max_int: int = 1 << 63) -> Any:
    """A copy of plain data, in which dicts are EasyDicts.

    Raises:
        UserError: It is too large, nested too deeply, or not plain data.
    """
    remaining = _MAX_PLAIN_VALUES

    def visit(value: Any, depth: int) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0 or depth > 16:
            raise UserError("the options of a network or data set in the pickle are too large")
        if isinstance(value, dict):
            return EasyDict({key: visit(item, depth + 1) for key, item in value.items()})
        if isinstance(value, (list, tuple)):
            return type(value)(visit(item, depth + 1) for item in value)
        if isinstance(value, (set, frozenset)):
            return type(value)(value)
        if isinstance(value, int) and abs(value) > max_int:
            raise UserError("the options of a network or data set in the pickle hold a number out of range")
        if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, torch.dtype, torch.device)):
            return value
        if isinstance(value, data_unpickler.Array):
            return value.to_numpy()
        kind = type(value).__name__.strip("_")
        raise UserError(f"the options of a network or data set in the pickle hold a {kind}, not plain data")

    return visit(value, 0)
