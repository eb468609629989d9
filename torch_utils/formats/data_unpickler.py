"""Reads pickles as data, with the ordinary unpickler and functions of this module.

Pickles refer to globals by name. Nothing is imported: an allowed name stands for a function of this module. An object
of a persistent class becomes a `ModuleRecord`. A tensor becomes a `TensorRecord`, which is a view of bytes in the file.
Other names are collected as refused, and using them has no effect.

The ordinary unpickler does not limit time and memory. Therefore `_check` first goes through all operations, without
executing them, and rejects pickles that would take too much time or memory for their size.
"""

import dataclasses
import io
import itertools
import math
import pickle
import pickletools
import re
import struct
from typing import Any, Callable, Literal, NamedTuple

import numpy as np
import torch

from dnnlib.util import UserError

from .. import persistence
from ..module_state import ModuleRecord, TensorRecord

_MAX_OPCODES = 300_000   # The networks of a 256x256 GLeaD run take about 70,000, with calls counted as below.
_CALL_OPCODES = 10       # A call counts as this many operations.
_MAX_REFUSED = 100       # At most this many refused names are collected.


class Content(NamedTuple):
    """The content of a pickle."""

    value: Any             # Plain data, `ModuleRecord`, `TensorRecord`, `TfNetwork` and `Array`.
    refused: list[str]     # Globals that are not allowed, as `module.name`, sorted. If there are any, ignore `value`.


def loads(data: bytes) -> Content:
    """Read a pickle as data.

    Args:
        data: A pickle. The tensors in the result are views of it, and must not be written to.

    Returns:
        The content, and the globals in it that are not allowed. Strings of Python 2 become bytes.

    Raises:
        UserError: The pickle is truncated or damaged, or has operations that network pickles don't need.
    """
    return _read(_Unpickler(data), _Views(data))


def check_torch_save(data: bytes, num_pickles: int) -> list[str]:
    """Check the pickles of a torch.save file before `torch.load(weights_only=True)` reads them.

    That function runs no code from a file, but a tiny file can make it run forever.

    Args:
        data:        Bytes that begin with the pickles.
        num_pickles: Number of pickles.

    Returns:
        The globals that are neither tensors nor plain data, as `module.name`, sorted.

    Raises:
        UserError: A pickle is truncated or damaged, or has operations that torch.save doesn't write.
    """
    stream, refused = _Views(data), set()
    for _ in range(num_pickles):
        refused.update(_read(_TorchSaveUnpickler(data, stream.tell()), stream).refused)
    return sorted(refused)


def _read(unpickler: "_Unpickler", stream: "_Views") -> Content:
    """Check and read the pickle at the stream's position. Afterwards, the position is behind it."""
    try:
        _check(stream, persistent_ids=isinstance(unpickler, _TorchSaveUnpickler))
        return Content(unpickler.load(), sorted(unpickler.refused))
    except (
        pickle.UnpicklingError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError,
        RuntimeError, struct.error,
    ) as e:  # fmt: skip
        if unpickler.refused:
            return Content(None, sorted(unpickler.refused))
        if isinstance(e, UserError):
            raise
        reason = "".join(c if c.isprintable() else " " for c in str(e)[:120]) or type(e).__name__
        raise UserError(f"the file is truncated, damaged, or no network pickle ({reason})") from e


# ----------------------------------------------------------------------------------------------------------------------
# Checking operations before the ordinary unpickler executes them.

_UNEXPECTED = frozenset("PERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER DUP".split())
_CALLS = frozenset("REDUCE NEWOBJ NEWOBJ_EX OBJ INST BUILD".split())
_PUTS = frozenset("PUT BINPUT LONG_BINPUT MEMOIZE".split())
_GETS = frozenset("GET BINGET LONG_BINGET".split())
_CHANGES = frozenset("APPEND APPENDS SETITEM SETITEMS ADDITEMS BUILD".split())  # They change a value on the stack.
_NO_KEYS = _CALLS | frozenset("TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET".split())   # Hashing nested tuples can be endless.
_KEYS = {  # Positions of keys among the values that an operation takes from the stack, including the mark.
    "SETITEM": slice(1, 2),
    "SETITEMS": slice(2, None, 2),
    "DICT": slice(1, None, 2),
    "ADDITEMS": slice(2, None),
    "FROZENSET": slice(1, None),
}


def _check(stream: "_Views", *, persistent_ids: bool) -> None:
    """Raise ValueError if the pickle has unexpected operations, or would take too much time or memory for its size.

    The stack and the memo are followed as in the unpickler. Instead of values, they hold whether a value may be a key
    of a dict or a member of a set.
    """
    stack: list[bool | None] = []  # None = a mark.
    memo: dict[int, bool | None] = {}
    num_opcodes = frame_end = 0
    for opcode, arg, position in pickletools.genops(stream):
        name, before = opcode.name, opcode.stack_before
        num_opcodes += _CALL_OPCODES if name in _CALLS else 1
        if num_opcodes > _MAX_OPCODES:
            raise ValueError("too many operations")
        if name in _UNEXPECTED or opcode.proto > 5 or name == "BINPERSID" and not persistent_ids:
            raise ValueError(f"unexpected operation {name}")
        if position == frame_end:
            frame_end = 0
        if frame_end and (position > frame_end or name == "FRAME"):  # the unpickler would continue elsewhere
            raise ValueError("a frame that ends within an operation")
        if name == "FRAME":
            frame_end = position + 9 + arg
        if name in _PUTS:
            index = len(memo) if arg is None else arg
            if index >= _MAX_OPCODES:  # the unpickler's memo is an array up to this index
                raise ValueError("a number of the memo out of range")
            memo[index] = stack[-1]
        elif name in _GETS:
            stack.append(memo[arg])
        else:
            start = len(stack) - len(before)
            if pickletools.markobject in before:
                start = len(stack) - 1
                while stack[start] is not None:
                    start -= 1
                start -= before.index(pickletools.markobject)
            taken = stack[start:]
            del stack[start:]
            if name in _KEYS and not all(taken[_KEYS[name]]):
                raise ValueError("a key that is neither a short string nor a small number")
            if name in _CHANGES:
                stack.append(taken[0])
            elif opcode.stack_after:
                stack.append(None if name == "MARK" else name not in _NO_KEYS and _is_key(arg))


class _Views(io.BytesIO):
    """A stream that returns large pieces as views instead of copies: `_check` needs only their lengths."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = memoryview(data)

    def read(self, size: int) -> bytes | memoryview:
        start = self.tell()
        if size < 1 << 16 or self._data[start - 5] == ord("T"):  # strings of Python 2 are decoded
            return super().read(size)
        return self._data[start:self.seek(start + size)]


def _is_key(value: Any) -> bool:
    """Whether a value is fast to hash and compare, and can't be made to collide with many others."""
    if isinstance(value, (str, bytes)):
        return len(value) <= 1000
    return value is None or isinstance(value, int) and abs(value) < 1 << 60


class _Unpickler(pickle.Unpickler):
    """Replaces every global by a function of this module, or by `_Inert`."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        file = io.BytesIO(data)
        file.seek(start)
        super().__init__(file, encoding="bytes")
        self.refused: set[str] = set()
        self._stand_ins: dict[str, type] = {}
        work_left = 2 * len(data) + (1 << 18)

        def charge(args: tuple) -> None:  # not a method: a cycle through `self` would keep the file in memory
            nonlocal work_left
            work_left -= sum(len(arg) for arg in args if isinstance(arg, (str, bytes, list, tuple, dict)))
            if work_left < 0:
                raise ValueError("it uses the same data too often")

        self._charge = charge

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module[:100]}.{name[:100]}"
        if name not in _GLOBALS:
            return self._refuse(name)
        target = _GLOBALS[name]
        if not callable(target):
            return target
        if name not in self._stand_ins:
            self._stand_ins[name] = _stand_in(target, self._charge)
        return self._stand_ins[name]

    def _refuse(self, name: str) -> type:
        if len(self.refused) < _MAX_REFUSED:
            self.refused.add(name[:100])
        return _Inert


class _TorchSaveUnpickler(_Unpickler):
    """Replaces every global and every storage by an object that does nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _DictWithAttributes
        name = f"{module[:100]}.{name[:100]}"
        return _Inert if name in _TORCH_SAVE_GLOBALS else self._refuse(name)

    def persistent_load(self, pid: Any) -> "_Inert":
        return _Inert()


def _stand_in(function: Callable, charge: Callable[[tuple], None]) -> type:
    """A class whose call returns the result of `function`. It is a class because the operation NEWOBJ requires one.

    `charge` counts the sizes of arguments: a small file could otherwise copy a large string again and again.
    """

    def new(_cls: type, *args: Any) -> Any:
        charge(args)
        return function(*args)

    return type("stand_in", (), {"__new__": new, "__setstate__": None})  # None = its state can't be set


class _Inert:
    """Stands for a global that is not allowed or not needed, and for the results of using it."""

    __slots__ = ()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def _ignore(self, *_args: Any, **_kwargs: Any) -> "_Inert":
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict):
    """An EasyDict or OrderedDict. Pickles by Python before 3.11 set an empty state in an EasyDict."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if state:
            raise ValueError("an attribute is set where none is known")


class _DictWithAttributes(_Dict):
    """The result of `state_dict()`, which has an attribute `_metadata`.

    Like `_Dict`, it takes no arguments: hashing a key among them could take forever.
    """

    def __setstate__(self, state: Any) -> None:
        pass


# ----------------------------------------------------------------------------------------------------------------------
# Functions for the allowed globals.


def _persistent_object(meta: Any) -> ModuleRecord:
    meta = persistence.parse_metadata(meta)
    if not isinstance(meta.state, dict):
        raise ValueError("a persistent object without state")
    return ModuleRecord(class_name=meta.class_name, module_src=meta.module_src, state=meta.state)


def _make_set(items: list[Any]) -> set:
    if not isinstance(items, list) or not all(map(_is_key, items)):
        raise ValueError("a set of other things than short strings and small numbers")
    return set(items)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes. Protocol 2 writes them as encoded text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text in an unexpected encoding")
    return text.encode("latin-1")


def _make_bytes() -> bytes:
    return b""  # protocol 2 encodes all other bytes as text


def _make_device(_kind: str, _index: int = 0) -> torch.device:
    return torch.device("cpu")  # everything is read to the CPU


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16:
        raise ValueError("a tensor of impossible shape")
    if any(type(value) is not int or not 0 <= value < 1 << 40 for value in values):
        raise ValueError("a tensor of impossible shape")
    return values


def _size(values: Any) -> tuple[int, ...]:
    if math.prod(max(n, 1) for n in _ints(values)) >= 1 << 40:  # NumPy and PyTorch compute such products without zeros
        raise ValueError("a tensor of impossible shape")
    return values


_STORAGE_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch.storage UntypedStorage": torch.uint8,
}
_TORCH_SAVE_MAGIC = 0x1950A86A20F9469CFC6C   # First number in torch.save's format before zip archives.
_TORCH_SAVE_PROTOCOL = 1001
_MAX_HEADER = 100                            # Largest number of operations in each pickle of a storage.


def _storage(data: bytes) -> TensorRecord:
    """A storage as PyTorch pickles it: five pickles (magic, version, system, the storage's id, its key), size, data.

    The pickles are not executed: the arguments of their operations are their values.
    """
    if not isinstance(data, bytes):
        raise ValueError("a storage without bytes")
    stream = io.BytesIO(data)
    magic, version, _system, identity, keys = (_literals(stream) for _ in range(5))
    if magic != [_TORCH_SAVE_MAGIC] or version != [_TORCH_SAVE_PROTOCOL] or len(keys) != 1:
        raise ValueError("a storage in an unknown format")
    if len(identity) != 5 or identity[0] != "storage" or identity[1] not in _STORAGE_DTYPES:
        raise ValueError("a storage in an unknown format")
    dtype, start = _STORAGE_DTYPES[identity[1]], stream.tell() + 8
    (num_values,) = struct.unpack("<q", data[start - 8:start])
    if num_values != identity[4] or num_values * dtype.itemsize != len(data) - start:
        raise ValueError("a storage of another size than declared")
    return TensorRecord(data, dtype, start, (num_values,), (1,))


def _literals(stream: io.BytesIO) -> list[Any]:
    """The arguments of the operations in the next pickle, except memo indices."""
    operations = list(itertools.islice(pickletools.genops(stream), _MAX_HEADER))
    if operations[-1][0].name != "STOP":
        raise ValueError("a storage in an unknown format")
    skipped = _PUTS | _GETS | {"PROTO"}
    return [arg for opcode, arg, _ in operations if arg is not None and opcode.name not in skipped]


def _tensor(
    storage: TensorRecord,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    _hooks: Any = None,
    _metadata: Any = None,
) -> TensorRecord:
    _ints((offset,))
    if not isinstance(storage, TensorRecord) or len(_size(size)) != len(_ints(stride)):
        raise ValueError("a tensor without a storage")
    start = storage.start + offset * storage.dtype.itemsize
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    num_values = 0 if 0 in size else max(math.prod(size), last + 1)
    if num_values > 0 and num_values * storage.dtype.itemsize > len(storage.data) - start:
        raise ValueError("a tensor larger than its storage")
    return TensorRecord(storage.data, storage.dtype, start, size, stride, requires_grad is True)


def _parameter(tensor: TensorRecord, requires_grad: bool, _hooks: Any = None) -> TensorRecord:
    if not isinstance(tensor, TensorRecord):
        raise ValueError("a parameter without a tensor")
    return dataclasses.replace(tensor, requires_grad=requires_grad is True)


class _DtypeCode:
    """A NumPy dtype while it is built."""

    def __init__(self, code: Any, _align: Any = False, _copy: Any = True) -> None:
        self.code = _text(code)
        self.byte_order: Any = "="
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self.code):
            raise ValueError("an array of an unexpected type")

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = _text(state[1])
        if self.byte_order not in ("<", ">", "|", "="):
            raise ValueError("an array of an unexpected type")

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.byte_order)


def _text(value: Any) -> str:
    """A short string. If Python 2 wrote it, it is bytes."""
    return value.decode("latin-1") if isinstance(value, bytes) and len(value) < 8 else value


class Array:
    """A NumPy array while it is built."""

    def __init__(self, *_arguments: Any) -> None:
        self.__setstate__((1, (0,), _DtypeCode("f4"), False, b""))

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _DtypeCode) or not isinstance(data, (bytes, bytearray)):
            raise ValueError("an array of an unexpected type")
        self.shape, self.dtype, self.data = _size(shape), dtype.to_numpy(), data
        self.order: Literal["C", "F"] = "F" if is_fortran else "C"
        if math.prod(shape) * self.dtype.itemsize != len(data):
            raise ValueError("an array of another size than declared")

    def to_numpy(self) -> np.ndarray:
        return np.ndarray(self.shape, self.dtype, self.data, order=self.order)


class TfNetwork:
    """Stands for a TensorFlow network. Its state holds the name, options and variables; see `tf_pickle`."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise ValueError("a network of TensorFlow whose state is no dict")
        self.state = state


def _array_of_buffer(data: bytes, dtype: _DtypeCode, shape: Any, order: str) -> Array:
    """An array as protocol 5 writes it."""
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _make_scalar(dtype: _DtypeCode, data: bytes) -> Any:
    return _array_of_buffer(data, dtype, (), "C").to_numpy()[()]


_GLOBALS: dict[str, Any] = {  # Allowed globals: `module.name` -> a function or a constant.
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    **dict.fromkeys(("dnnlib.util.EasyDict", "dnnlib.EasyDict", "collections.OrderedDict"), _Dict),
    "_codecs.encode": _encode,
    **{f"{module}.{name}": _make_set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{f"{module}.bytes": _make_bytes for module in ("builtins", "__builtin__")},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": _size,
    "torch.device": _make_device,
    **{str(dtype): dtype for dtype in _STORAGE_DTYPES.values()},
    **{f"torch.nn.modules.container.{name}": ModuleRecord for name in ("ModuleList", "ModuleDict", "Sequential")},
    "numpy.dtype": _DtypeCode,
    "numpy.ndarray": None,  # pickles refer to it, but don't call it
    **{f"{module}.multiarray._reconstruct": Array for module in ("numpy.core", "numpy._core")},
    **{f"{module}.multiarray.scalar": _make_scalar for module in ("numpy.core", "numpy._core")},
    **{f"{module}.numeric._frombuffer": _array_of_buffer for module in ("numpy.core", "numpy._core")},
    "dnnlib.tflib.network.Network": TfNetwork,
}
_TORCH_SAVE_GLOBALS = frozenset({
    *(name for name in _GLOBALS if name.startswith("torch.")),
    *(kind.replace(" ", ".") for kind in _STORAGE_DTYPES),
    "argparse.Namespace",  # holds the options of training programs
})
