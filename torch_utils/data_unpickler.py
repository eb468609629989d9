"""Pickles read as data: a small machine for pickle's language that imports and calls nothing of the file's choice.

Globals are known by their *names* only. Each allowed one stands for a function of this module: an object of a
persistent class becomes a `ModuleRecord`, a storage the bytes in the file, a tensor a view of them. Any other global is
noted as refused, and what the file does with it has no effect. Work and memory stay in proportion to the size of the
file.
"""

import dataclasses
import io
import pickletools
import re
import struct
import warnings
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError

from . import persistence
from .module_state import ModuleRecord

_MAX_OPCODES = 300_000   # The networks of a 256x256 GLeaD run take about 90,000, the storages and calls included.
_CALL_OPCODES = 10       # A call counts as so many.
_MAX_REFUSED = 100       # Names that are noted.


class Damaged(Exception):
    """The bytes break the rules of pickle, or a limit."""


class Content(NamedTuple):
    """What a pickle holds."""

    value: Any             # Plain data, tensors, and what stands for the rest: `ModuleRecord`, `TfNetwork`, `Array`.
    refused: list[str]     # Globals that are not allowed, as `module.name`, sorted; if any, `value` is of no use.


def loads(data: bytes) -> Content:
    """Read a pickle as data.

    Args:
        data: A pickle; the tensors in the result are views of it, and must not be written to.

    Returns:
        The content, and the names of the globals that it asks for and that are not allowed.

    Raises:
        UserError: The pickle is truncated or damaged, or does what no network pickle does.
    """
    machine = _Machine(_NETWORK_GLOBALS, work_limit=2 * len(data) + (1 << 18))
    try:
        return Content(machine.run(io.BytesIO(data)), sorted(machine.refused))
    except (Damaged, UserError) as e:
        if not machine.refused:
            if isinstance(e, UserError):
                raise
            raise UserError(f"the file is truncated, damaged, or no network pickle ({e})") from e
        return Content(None, sorted(machine.refused))


# ----------------------------------------------------------------------------------------------------------------------
# The machine.


@dataclasses.dataclass(frozen=True)
class _Global:
    """A global, as no more than its name."""

    name: str


class _Refused:
    """Stands for a global that is not allowed, and for whatever comes of calling it."""


_MARK = object()
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


class _Machine:
    """Pickle's stack machine over plain values.

    Args:
        functions:      What each allowed global is, by `module.name`: a function of (machine, arguments...), None where
                        it is only referred to, or a constant.
        work_limit:     Bound on the total size of the containers and strings that are handed to functions.
        persistent_ids: Whether persistent ids may occur; they are taken as they are.
    """

    def __init__(
        self,
        functions: Mapping[str, Any],
        *,
        work_limit: int,
        persistent_ids: bool = False,
    ) -> None:
        self.functions = functions
        self.work_limit = work_limit
        self.persistent_ids = persistent_ids
        self.refused: set[str] = set()
        self.num_opcodes = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Run the next pickle of the stream, up to its end, and return its value; `Damaged` if it has none."""
        self.stack, self.memo = [], {}
        try:
            for opcode, arg, _ in pickletools.genops(stream):
                self.count(1)
                if opcode.name in _LITERALS:
                    self.stack.append(bytes(arg) if isinstance(arg, bytearray) else arg)
                elif opcode.name in _CONSTANTS:
                    self.stack.append(_CONSTANTS[opcode.name]())
                elif opcode.name == "STOP":
                    return self._pop()
                else:
                    step = getattr(self, f"_op_{opcode.name.lower()}", None)
                    if step is None:
                        raise Damaged(f"unexpected operation {opcode.name}")
                    step(arg)
        except UserError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, RuntimeError, struct.error) as e:
            reason = "".join(c if c.isprintable() else " " for c in str(e)[:120])
            raise Damaged(reason or type(e).__name__) from e
        raise Damaged("it has no end")

    def count(self, num_opcodes: int) -> None:
        self.num_opcodes += num_opcodes
        if self.num_opcodes > _MAX_OPCODES:
            raise Damaged("too many operations")

    def _call(self, function: Any, args: Any) -> Any:
        if isinstance(function, _Refused):
            return _Refused()
        if not isinstance(function, _Global) or not isinstance(args, (tuple, list)):
            raise Damaged("call of something that is no function")
        implementation = self.functions[function.name]
        if implementation is None:
            raise Damaged(f"call of {function.name}")
        self.count(_CALL_OPCODES)
        self._charge(*args)
        return implementation(self, *args)

    def _charge(self, *values: Any) -> None:
        """Count the size of what is about to be copied: a small file could have a large string copied endlessly."""
        sized = (str, bytes, list, tuple, dict, set)
        self.work_limit -= sum(len(value) for value in values if isinstance(value, sized))
        if self.work_limit < 0:
            raise Damaged("it uses the same data too often")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Damaged("a value is missing")
        return value

    def _pop_mark(self) -> list[Any]:
        """The values above the topmost mark."""
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                values = self.stack[start + 1:]
                del self.stack[start:]
                return values
        raise Damaged("a mark is missing")

    def _container(self, kind: type) -> Any:
        """The container on top of the stack; a throw-away one in place of what is refused."""
        value = self.stack[-1]
        if isinstance(value, _Refused):
            return kind()
        if not isinstance(value, kind):
            raise Damaged(f"a {kind.__name__} was expected")
        return value

    # Operations, named after those in `pickletools`.

    def _op_proto(self, _version: int) -> None:
        pass

    def _op_frame(self, _num_bytes: int) -> None:
        pass

    def _op_pop(self, _arg: None) -> None:
        self.stack.pop()

    def _op_pop_mark(self, _arg: None) -> None:
        self._pop_mark()

    def _op_dup(self, _arg: None) -> None:
        self.stack.append(self.stack[-1])

    def _op_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _op_binget = _op_long_binget = _op_get

    def _op_tuple(self, _arg: None) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _op_tuple1(self, _arg: None) -> None:
        self.stack.append((self._pop(),))

    def _op_tuple2(self, _arg: None) -> None:
        second, first = self._pop(), self._pop()
        self.stack.append((first, second))

    def _op_tuple3(self, _arg: None) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self.stack.append((first, second, third))

    def _op_list(self, _arg: None) -> None:
        self.stack.append(self._pop_mark())

    def _op_append(self, _arg: None) -> None:
        value = self._pop()
        self._container(list).append(value)

    def _op_appends(self, _arg: None) -> None:
        values = self._pop_mark()
        self._container(list).extend(values)

    def _op_dict(self, _arg: None) -> None:
        self.stack.append(_dict_of(self._pop_mark()))

    def _op_setitem(self, _arg: None) -> None:
        value, key = self._pop(), self._pop()
        self._container(dict).update(_dict_of([key, value]))

    def _op_setitems(self, _arg: None) -> None:
        items = _dict_of(self._pop_mark())
        self._container(dict).update(items)

    def _op_additems(self, _arg: None) -> None:
        values = _checked_keys(self._pop_mark())
        self._container(set).update(values)

    def _op_frozenset(self, _arg: None) -> None:
        self.stack.append(frozenset(_checked_keys(self._pop_mark())))

    def _find(self, name: str) -> None:
        if name in self.functions:
            target = self.functions[name]
            self.stack.append(_Global(name) if target is None or callable(target) else target)
            return
        if len(self.refused) < _MAX_REFUSED:
            self.refused.add(name[:100])
        self.stack.append(_Refused())

    def _op_global(self, module_and_name: str) -> None:
        self._find(module_and_name.replace(" ", ".", 1))

    def _op_stack_global(self, _arg: None) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Damaged("a global without a name")
        self._find(f"{module[:100]}.{name[:100]}")

    def _op_inst(self, module_and_name: str) -> None:
        args = self._pop_mark()
        self._op_global(module_and_name)
        self.stack.append(self._call(self._pop(), args))

    def _op_obj(self, _arg: None) -> None:
        function, *args = self._pop_mark()
        self.stack.append(self._call(function, args))

    def _op_reduce(self, _arg: None) -> None:
        args, function = self._pop(), self._pop()
        self.stack.append(self._call(function, args))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _arg: None) -> None:
        kwargs, args, function = self._pop(), self._pop(), self._pop()
        if kwargs and not isinstance(function, _Refused):
            raise Damaged("call with keywords")
        self.stack.append(self._call(function, args))

    def _op_build(self, _arg: None) -> None:
        state, obj = self._pop(), self.stack[-1]
        if isinstance(obj, _Refused) or not state:
            return
        self.count(_CALL_OPCODES)
        self._charge(state)
        if isinstance(obj, ModuleRecord) and isinstance(state, dict):
            obj.state.update(state)
        elif isinstance(obj, TfNetwork) and isinstance(state, dict):
            obj.__setstate__(state)
        elif isinstance(obj, (_DtypeCode, Array)) and isinstance(state, tuple):
            obj.set_state(*state)
        else:
            raise Damaged("an attribute is set where none is known")

    def _op_binpersid(self, _arg: None) -> None:
        if not self.persistent_ids:
            raise Damaged("it refers to data outside the file")


def _checked_keys(keys: list[Any]) -> list[Any]:
    """Only keys that hash quickly: no nested tuples (time doubles with each level), no numbers chosen to collide."""
    for key in keys:
        parts = key if isinstance(key, tuple) and len(key) <= 16 else (key,)
        for part in parts:
            is_small = type(part) is int and abs(part) < 1 << 31
            if not (is_small or part is None or isinstance(part, (str, bytes, bool))):
                raise Damaged(f"a key of type {type(part).__name__.strip('_')}")
    return keys


def _dict_of(keys_and_values: list[Any]) -> dict[Any, Any]:
    return dict(zip(_checked_keys(keys_and_values[0::2]), keys_and_values[1::2], strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# What allowed globals do.


def _persistent_object(_machine: _Machine, meta: Any) -> ModuleRecord:
    meta = persistence.parse_metadata(meta)
    if not isinstance(meta.state, dict):
        raise Damaged("a persistent object without state")
    return ModuleRecord(class_name=meta.class_name, module_src=meta.module_src, state=meta.state)


def _make_dict(_machine: _Machine, items: Any = ()) -> dict[Any, Any]:
    if isinstance(items, dict):
        return dict(items)
    return _dict_of([part for pair in items for part in _pair(pair)])


def _pair(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Damaged("a pair was expected")
    return value


def _make_set(_machine: _Machine, items: Any = ()) -> set:
    return set(_checked_keys(list(items)))


def _make_frozenset(_machine: _Machine, items: Any = ()) -> frozenset:
    return frozenset(_checked_keys(list(items)))


def _make_bytes(_machine: _Machine) -> bytes:
    return b""  # protocol 2 writes other bytes by way of _codecs.encode


def _encode(_machine: _Machine, text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Damaged("text in an unexpected encoding")
    return text.encode("latin-1")


def _make_size(_machine: _Machine, sizes: Any) -> tuple[int, ...]:
    return _ints(sizes)


def _make_device(_machine: _Machine, kind: str, index: int = 0) -> torch.device:
    return torch.device("cpu")  # everything is read to the CPU, wherever it was


def _make_container(_machine: _Machine) -> ModuleRecord:
    return ModuleRecord(class_name="container", state={})


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16:
        raise Damaged("a tensor of impossible shape")
    if any(type(value) is not int or not 0 <= value < 1 << 40 for value in values):
        raise Damaged("a tensor of impossible shape")
    return values


_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_TORCH_SAVE_MAGIC = 0x1950A86A20F9469CFC6C   # First number in a file by torch.save in its format before zip archives.
_TORCH_SAVE_PROTOCOL = 1001


def _storage(machine: _Machine, data: bytes) -> torch.Tensor:
    """A storage as torch pickles it: five pickles (magic, version, system, the storage's id, its key), size, data."""
    if not isinstance(data, bytes):
        raise Damaged("a storage without bytes")
    reader = _Machine(dict.fromkeys(_STORAGE_DTYPES), work_limit=0, persistent_ids=True)
    reader.num_opcodes = machine.num_opcodes
    stream = io.BytesIO(data)
    magic, version, _system, identity, keys = (reader.run(stream) for _ in range(5))
    machine.num_opcodes = reader.num_opcodes
    if reader.refused or magic != _TORCH_SAVE_MAGIC or version != _TORCH_SAVE_PROTOCOL:
        raise Damaged("a storage in an unknown format")
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Damaged("a storage in an unknown format")
    if not isinstance(identity[1], _Global) or identity[5:] not in ((), (None,)):
        raise Damaged("a storage in an unknown format")
    if not isinstance(keys, list) or len(keys) != 1:
        raise Damaged("a storage in an unknown format")
    dtype, start = _STORAGE_DTYPES[identity[1].name], stream.tell() + 8
    (num_values,) = struct.unpack("<q", data[start - 8:start])
    if num_values != identity[4] or num_values * dtype.itemsize != len(data) - start:
        raise Damaged("a storage of another size than declared")
    if num_values == 0:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nor is it written to
        return torch.frombuffer(data, dtype=dtype, count=num_values, offset=start)


def _tensor(
    _machine: _Machine,
    storage: torch.Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    _hooks: Any = None,
    _metadata: Any = None,
) -> torch.Tensor:
    _ints((offset,))
    if not isinstance(storage, torch.Tensor) or len(_ints(size)) != len(_ints(stride)):
        raise Damaged("a tensor without a storage")
    num_values = int(np.prod(size, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if num_values > storage.numel() or (num_values > 0 and last >= storage.numel()):
        raise Damaged("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset).detach().requires_grad_(requires_grad is True)


def _parameter(_machine: _Machine, tensor: torch.Tensor, requires_grad: bool, _hooks: Any = None) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise Damaged("a parameter without a tensor")
    return tensor.detach().requires_grad_(requires_grad is True)


class _DtypeCode:
    """NumPy's dtype under construction."""

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise Damaged("an array of an unexpected type")
        self.code, self.byte_order = code, "="

    def set_state(self, _version: int, byte_order: str, *_rest: Any) -> None:
        if byte_order not in ("<", ">", "|", "="):
            raise Damaged("an array of an unexpected type")
        self.byte_order = byte_order

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.byte_order)


class Array:
    """NumPy's array under construction."""

    def __init__(self) -> None:
        self.set_state(1, (0,), _DtypeCode("f4"), False, b"")

    def set_state(
        self,
        _version: int,
        shape: tuple[int, ...],
        dtype: _DtypeCode,
        is_fortran: bool,
        data: bytes | str,
    ) -> None:
        if isinstance(data, str):
            data = data.encode("latin-1")  # Python 2's strings of bytes, which are read as text.
        if not isinstance(dtype, _DtypeCode) or not isinstance(data, bytes):
            raise Damaged("an array of an unexpected type")
        self.shape, self.dtype, self.order, self.data = _ints(shape), dtype.to_numpy(), "F" if is_fortran else "C", data
        if int(np.prod(shape, dtype=object)) * self.dtype.itemsize != len(data):
            raise Damaged("an array of another size than declared")

    def to_numpy(self) -> np.ndarray:
        return np.ndarray(self.shape, self.dtype, self.data, order=self.order)


class TfNetwork:
    """What stands for a network of TensorFlow: its name, options and variables, see `tf_pickle`."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _make_tf_network(_machine: _Machine) -> TfNetwork:
    return TfNetwork()


def _make_dtype(_machine: _Machine, code: str, _align: Any = False, _copy: Any = True) -> _DtypeCode:
    return _DtypeCode(code)


def _make_array(_machine: _Machine, _kind: Any, _shape: Any, _code: Any) -> Array:
    return Array()


def _array_of_buffer(_machine: _Machine, data: bytes, dtype: _DtypeCode, shape: Any, order: str) -> Array:
    """Arrays as protocol 5 has them."""
    array = Array()
    array.set_state(1, shape, dtype, order == "F", data)
    return array


def _make_scalar(_machine: _Machine, dtype: _DtypeCode, data: bytes) -> np.generic:
    array = Array()
    array.set_state(1, (), dtype, False, data)
    return array.to_numpy()[()]


_NETWORK_GLOBALS: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": _make_dict,
    "dnnlib.EasyDict": _make_dict,
    "collections.OrderedDict": _make_dict,
    "_codecs.encode": _encode,
    **{f"{module}.set": _make_set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": _make_frozenset for module in ("builtins", "__builtin__")},
    **{f"{module}.bytes": _make_bytes for module in ("builtins", "__builtin__")},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": _make_size,
    "torch.device": _make_device,
    **{str(dtype): dtype for dtype in _STORAGE_DTYPES.values()},
    **{f"torch.nn.modules.container.{name}": _make_container for name in ("ModuleList", "ModuleDict", "Sequential")},
    "numpy.dtype": _make_dtype,
    "numpy.ndarray": None,
    **{f"{module}.multiarray._reconstruct": _make_array for module in ("numpy.core", "numpy._core")},
    **{f"{module}.multiarray.scalar": _make_scalar for module in ("numpy.core", "numpy._core")},
    **{f"{module}.numeric._frombuffer": _array_of_buffer for module in ("numpy.core", "numpy._core")},
    "dnnlib.tflib.network.Network": _make_tf_network,
}
