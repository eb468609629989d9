"""Networks as a description (class names and constructor arguments) and tensors.

The description is JSON:

    {"format": "glead-networks", "format_version": 1,
     "networks": {"G_ema": {"class_name": "Generator", "init_args": [], "init_kwargs": {"z_dim": 512, ...}}, ...},
     "training_set_kwargs": {"path": "...", ...} or null}

Names of tensors consist of the network's name and the name in its state dict: `G_ema.synthesis.b4.const`.
"""

import json
from typing import Any, Mapping, Sequence

import numpy as np
import torch

from dnnlib.util import UserError, to_easydict

from .. import persistence
from ..module_state import CLASS_OF, build_module

FORMAT = "glead-networks"
VERSION = 1
MAX_JSON_BYTES = 4 << 20    # 50 times what networks need.


def check_class(cls: type, key: str) -> None:
    """Raise UserError unless a network of this class may have the name `key` in a file.

    This project's classes must have their own names. Any other module may have any name.
    """
    ours = cls.__module__ in persistence.OUR_MODULES
    if ours and cls.__name__ != CLASS_OF[key] or not issubclass(cls, torch.nn.Module):
        raise UserError(f"{key} is of class {cls.__name__}, expected {CLASS_OF[key]}")


def describe(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Describe networks.

    Args:
        networks: Some of `network_pickle.KEYS`. Values of None are left out.

    Raises:
        UserError: A constructor's argument is not plain data.
    """
    modules = {}
    for key in CLASS_OF:
        module = networks.get(key)
        if module is not None:
            modules[key] = {
                "class_name": type(module).__name__,
                "init_args": _plain(list(module.init_args), f"the arguments of {key}"),
                "init_kwargs": _plain(dict(module.init_kwargs), f"the arguments of {key}"),
            }
    options = _plain(networks.get("training_set_kwargs"), "training_set_kwargs")
    return {"format": FORMAT, "format_version": VERSION, "networks": modules, "training_set_kwargs": options}


def tensors_of(networks: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Contiguous copies of all tensors, on the CPU. No two of them share memory."""
    return {
        f"{key}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key in CLASS_OF if networks.get(key) is not None
        for name, tensor in networks[key].state_dict().items()
    }


def parse(text: bytes | str) -> dict[str, Any]:
    """Read the JSON of a description.

    Raises:
        UserError: It is damaged or has an unknown version.
    """
    if len(text) > MAX_JSON_BYTES:
        raise UserError(f"its description of networks is longer than {MAX_JSON_BYTES >> 20} MiB")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError("its description of networks is damaged: no JSON") from e
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("networks"), dict):
        raise UserError(f"its description of networks is none of format {FORMAT!r}")
    version = found.get("format_version")
    if version != VERSION:
        raise UserError(f"its description of networks has version {str(version)[:20]}; this program reads {VERSION}")
    for key, entry in found["networks"].items():
        if key not in CLASS_OF:
            raise UserError(f"its description holds an unknown network {key[:40]!a}; known: {', '.join(CLASS_OF)}")
        if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
            raise UserError(f"its description of {key} lacks the name of a class")
        if not isinstance(entry.get("init_args"), list) or not isinstance(entry.get("init_kwargs"), dict):
            raise UserError(f"its description of {key} lacks constructor arguments")
    if not isinstance(found.get("training_set_kwargs"), dict | None):
        raise UserError("its training_set_kwargs are no dict")
    return found


def build(
    description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Build the networks of a description, and load their tensors.

    Args:
        description: A result of `parse`.
        tensors:     Tensors by name, such as `G_ema.synthesis.b4.const`.
        only:        Names of the networks to build; None = all.

    Returns:
        The networks (frozen, in eval mode, on the CPU) and, if the file has them, `training_set_kwargs`.

    Raises:
        UserError: A tensor is missing, unknown or of another shape. The message names it.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {key: {} for key in description["networks"]}
    for name, tensor in tensors.items():
        key, _, rest = name.partition(".")
        if key not in parts:
            raise UserError(f"holds a tensor {name[:120]!a} that belongs to no network in its description")
        parts[key][rest] = tensor
    wanted = [key for key in parts if only is None or key in only]
    found: dict[str, Any] = {key: _build(key, description["networks"][key], parts[key]) for key in wanted}
    options = description.get("training_set_kwargs")
    if options is not None and (only is None or "training_set_kwargs" in only):
        found["training_set_kwargs"] = to_easydict(options)
    return found


def _build(key: str, entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    try:
        cls = persistence.find_class(entry["class_name"])
    except UserError as e:
        raise UserError(f"{key} is of class {entry['class_name'][:80]!a}, which this project doesn't define") from e
    check_class(cls, key)
    arguments = {f"_{name}": to_easydict(entry[name]) for name in ("init_args", "init_kwargs")}
    return build_module(cls, {**arguments, "_parameters": tensors}, prefix=f"{key}.")


def _plain(value: Any, where: str) -> Any:
    """The value after a round trip through JSON: tuples become lists, NumPy numbers and arrays become Python's."""
    def default(item: Any) -> Any:
        if isinstance(item, (np.ndarray, np.generic)):
            return item.tolist()
        raise UserError(f"{where} hold a {type(item).__name__}: JSON can't hold it")

    return json.loads(json.dumps(value, default=default))
