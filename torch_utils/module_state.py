"""Builds modules from their state as pickles hold it."""

import dataclasses
import types
import warnings
from typing import Any, Mapping

import torch

from dnnlib.util import UserError

CLASS_OF = {"G": "Generator", "D": "Discriminator", "G_ema": "Generator", "augment_pipe": "AugmentPipe"}
_MAX_NODES, _MAX_DEPTH, _MAX_NAME = 10_000, 16, 128  # Limits for module trees, ten times what networks need.
_MAX_LAYERS = 100                                    # Limit for layers of a mapping network.


@dataclasses.dataclass(kw_only=True, eq=False)
class ModuleRecord:
    """Stands for a module while a pickle is read as data (see `data_unpickler`)."""

    class_name: str = "container"
    module_src: str = ""
    state: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of ModuleList and other containers call this."""
        if not isinstance(state, dict):
            raise ValueError("a module whose state is no dict")
        self.state = state


@dataclasses.dataclass(eq=False)
class TensorRecord:
    """Stands for a tensor while a pickle is read as data: a view of bytes, with checked bounds."""

    data: bytes = dataclasses.field(repr=False)
    dtype: torch.dtype
    start: int                 # Offset in `data`, in bytes.
    size: tuple[int, ...]
    stride: tuple[int, ...]    # In values.
    requires_grad: bool = False

    __setstate__ = None  # pickles can't change it

    def to_tensor(self) -> torch.Tensor:
        """A view of the bytes, which must not be written to."""
        values = torch.empty(0, dtype=self.dtype)
        if 0 not in self.size:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to it
                values = torch.frombuffer(self.data, dtype=self.dtype, offset=self.start)
        tensor = values.as_strided(self.size, self.stride)
        return tensor.requires_grad_(self.requires_grad and tensor.is_floating_point())


def state_of(child: torch.nn.Module | ModuleRecord) -> Mapping[str, Any]:
    """The `__dict__` of a module, or the one that a file has for it."""
    return child.state if isinstance(child, ModuleRecord) else vars(child)


def build_module(cls: type, state: Mapping[str, Any], *, prefix: str = "") -> torch.nn.Module:
    """Build a module by calling its constructor, and load the parameters and buffers of a state.

    The state's tensors must have the shapes of the module. This is checked before the module takes memory.

    Args:
        cls:    A persistent `torch.nn.Module` class.
        state:  A module's `__dict__`, in which children are modules or `ModuleRecord`s. `_init_args` and
                `_init_kwargs` are the constructor's arguments. Filters (`resample_filter`) may be missing: they follow
                from these arguments.
        prefix: Prefix of the names of tensors in error messages.

    Returns:
        The module, on the CPU, with the training mode and `requires_grad` of the state. Global random state is
        unchanged.

    Raises:
        UserError: The constructor rejects the arguments, or the tensors don't fit. The message names the first tensor
            that doesn't.
    """
    tensors = flatten_state(state)
    with torch.device("meta"):  # has shapes but takes no memory
        _check_tensors(_construct(cls, state), tensors, prefix)
    module = _construct(cls, state)
    module.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, strict=False)
    module.train(state.get("training") is True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(tensors[name].requires_grad)
    return module


def _construct(cls: type, state: Mapping[str, Any]) -> torch.nn.Module:
    """Call the constructor of `cls` with the arguments in a state. Global random state is unchanged."""
    args, kwargs = state.get("_init_args"), state.get("_init_kwargs")
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise UserError(f"{cls.__name__} in the file lacks the arguments that it was built with")
    for options in (kwargs, *args, *kwargs.values()):
        count = options.get("num_layers") if isinstance(options, Mapping) else None
        if isinstance(count, (int, float)) and count > _MAX_LAYERS:     # layers take time even without memory
            raise UserError(f"{cls.__name__} in the file has {count} layers in a mapping network; at most "
                            f"{_MAX_LAYERS} are read")
    try:
        with torch.random.fork_rng(devices=[]):
            return cls(*args, **kwargs)
    except UserError:
        raise
    except Exception as e:  # arguments from a file can make a constructor raise any exception
        reason = " ".join(str(e).split())[:200]
        message = f"{cls.__name__} can't be built from the arguments in the file: {type(e).__name__}: {reason}"
        raise UserError(message) from e


def _check_tensors(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Raise a `UserError` unless `tensors` has the names and shapes of the state dict of `module`."""
    cls = type(module).__name__
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            if name.endswith("resample_filter"):
                continue
            raise UserError(f"{cls} in the file lacks {prefix}{name} {list(tensor.shape)}: another architecture")
        if tensors[name].shape != tensor.shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(tensor.shape)}"
            raise UserError(f"{cls} in the file has {prefix}{name} of shape {shapes}: another architecture")
    unknown = [prefix + name for name in tensors if name not in expected]
    if unknown:
        more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise UserError(f"{cls} in the file has {unknown[0][:200]!a}{more}, which this project's {cls} lacks")


def flatten_state(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors in the `__dict__` of a module and its children, by the names of `state_dict()`.

    Raises:
        UserError: The state is not a module's, or is too large for a network.
    """
    tensors: dict[str, torch.Tensor] = {}
    pending = [("", state, 0)]
    num_nodes = 0
    while pending:
        prefix, node, depth = pending.pop()
        num_nodes += 1
        if not isinstance(node, Mapping) or depth > _MAX_DEPTH or num_nodes + len(tensors) > _MAX_NODES:
            raise UserError("a module in the pickle is damaged, or too large for a network")
        transient = node.get("_non_persistent_buffers_set")
        for name, tensor in _named_children(node, "_parameters") + _named_children(node, "_buffers"):
            if tensor is not None and not (isinstance(transient, set) and name in transient):
                tensors[prefix + name] = tensor.to_tensor() if isinstance(tensor, TensorRecord) else tensor
        for name, child in _named_children(node, "_modules"):
            if child is not None:
                pending.append((f"{prefix}{name}.", state_of(child), depth + 1))
    return tensors


def _named_children(node: Mapping[str, Any], group: str) -> list[tuple[str, Any]]:
    """The checked items of `_parameters`, `_buffers` or `_modules`."""
    children = node.get(group) or {}
    allowed = (torch.nn.Module, ModuleRecord) if group == "_modules" else (torch.Tensor, TensorRecord)
    if not isinstance(children, Mapping) or len(children) > _MAX_NODES:
        raise UserError("a module in the pickle is damaged, or too large for a network")
    for name, child in children.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME or not isinstance(child, (types.NoneType, *allowed)):
            raise UserError(f"a module in the pickle is damaged: its {group[1:]} hold something else")
    return list(children.items())
