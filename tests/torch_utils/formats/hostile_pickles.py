"""Files made to do harm, and what comes of opening them.

    PYTHONPATH=. python tests/torch_utils/formats/hostile_pickles.py

prints a table: attack, seconds, MiB, and the error. Each file is opened in a process of its own, with one GiB of memory
and an audit hook that notes whatever is imported, executed, opened or started.
"""

import _codecs
import argparse
import collections
import contextlib
import encodings.cp437  # noqa: F401 - of zipfile, on demand: no effect of a hostile file
import gzip
import importlib
import io
import json
import operator
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib

import numpy as np
import torch

from dnnlib.util import UserError
from tests.torch_utils.formats import tf_networks
from tests.torch_utils.formats.pickle_makers import Call, Foreign, foreign_network, load, make_networks
from torch_utils import persistence
from torch_utils.formats import state_dict_file  # noqa: F401 - loaded on demand: no effect of a hostile file

SECONDS, BYTES = 10, 1 << 30    # Limits of each process.


class Storage(Call):
    """Pickles as a storage with these bytes."""

    def __init__(self, data):
        super().__init__(torch.storage._load_from_bytes, data)


def storage_bytes(numel, *, declared=None, data=None, kind="torch\nFloatStorage\n"):
    """A storage as torch writes it, with sizes of our choice."""
    declared = numel if declared is None else declared
    identity = b"\x80\x02(X\x07\0\0\0storagec" + kind.encode() + b"X\x01\0\0\x000X\x03\0\0\0cpu" + b"\x8a\x08" + struct.pack("<q", declared)
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [identity + b"NtQ.", pickle.dumps(["0"], 2), struct.pack("<q", numel)]
    return b"".join(parts) + (bytes(4 * numel) if data is None else data)


def tensor(storage, size, stride, offset=0):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict())


def network_of(tensor=None, **kwargs):
    state = {} if tensor is None else {"mapping.w_avg": torch.zeros(1)}
    foreign = foreign_network("Generator", state, **{**dict(z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3), **kwargs})
    if tensor is not None:
        foreign.meta.state["_buffers"]["extra"] = tensor
    return pickle.dumps({"G_ema": foreign}, 2)


def nested(levels, step, start):
    """Code in which each level holds the one before twice, by way of the memo."""
    code = b"\x80\x04" + start
    for level in range(levels):
        code += b"r" + struct.pack("<I", level) + b"0" + step.replace(b"@", b"j" + struct.pack("<I", level))
    return code


DOUBLED = b"N\x85" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(45))  # 2**45 tuples, seen as a tree


def beyond_a_frame(code):
    """A frame that ends within a number: what follows is bytes to who reads on there, and code to who starts anew."""
    return b"\x80\x04\x95\x03" + bytes(7) + b"J\0\0" + b"\0\0" + b"C%c" % len(code) + code + b"."


def on_a_tensor(code):
    return b"\x80\x03}X\5\0\0\0G_ema" + pickle.dumps(tensor(Storage(storage_bytes(4)), (4,), (1,)), 3)[2:-1] + code + b"s."


def with_header(code):
    """A storage with code in place of the facts about the system."""
    data = storage_bytes(1)
    start, end = data.index(b"\x80\x02}"), data.index(b"\x80\x02(X\7")
    return network_of(tensor(Storage(data[:start] + b"\x80\x02" + code + b"." + data[end:]), (1,), (1,)))


def doubled_in(key):
    data = pickle.dumps({"G_ema": Foreign("Generator", {"_init_args": (), "_init_kwargs": {}, key: "MARKER"})}, 2)
    code = b"]"
    for level in range(60):
        code += b"r" + struct.pack("<I", 1000 + level) + b"0]" + 2 * (b"j" + struct.pack("<I", 1000 + level) + b"a")
    marker = b"X\x06\0\0\0MARKERq"
    start = data.index(marker)
    return data[:start] + code + data[start + len(marker) + 1:]


def module_dag(levels):
    state = {"_parameters": {}, "_modules": {}}
    for _ in range(levels):
        child = Foreign("SynthesisLayer", state)
        state = {"_modules": {"a": child, "b": child}, "_init_args": (), "_init_kwargs": {}}
    return pickle.dumps({"G_ema": Foreign("Generator", state)})


def deep_modules(levels):
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x0a\0\0\0class_nameX\x09\0\0\0GeneratorsX\x05\0\0\0state}"
    return b"\x80\x02}X\x05\0\0\0G_ema" + (call + b"X\x08\0\0\0_modules}X\x01\0\0\0a") * levels + b"N" + b"sss\x85R" * levels + b"s."


def torch_saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def cyclic():
    args = {"a": 1}
    args["self"] = args
    return {"_init_args": (), "_init_kwargs": args}


def odd_blocks():
    """Attributes that stand in for arguments left out."""
    odd = [torch.zeros(4), [[]] * 1000, 10**400, float("nan"), "x" * 1000, {1: cyclic()}]
    blocks = {f"b{k}": Foreign("SynthesisBlock", {"use_fp16": value, "conv_clamp": value}) for k, value in enumerate(odd)}
    blocks["b4"] = Foreign("SynthesisBlock", {"_modules": {"conv1": Foreign("SynthesisLayer", {"conv_clamp": odd})}})
    modules = {"synthesis": Foreign("SynthesisNetwork", {"_modules": blocks}), "mapping": Foreign("M", {"w_avg_beta": odd})}
    kwargs = dict(z_dim=8, c_dim=0, w_dim=16, img_resolution=8, img_channels=3, mapping_kwargs={}, channel_base=64)
    return {"_init_args": (), "_init_kwargs": kwargs, "_modules": modules}


def zip_bomb():
    """A zip as torch.save writes, in which zeros are compressed a thousandfold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("archive/data.pkl", "archive/data/0"):
            archive.writestr(name, bytes(16 << 20))
    return buffer.getvalue()


# Networks of TensorFlow.


def tf_file(change=None, **arrays):
    """(G, D, Gs) with some of the variables of G's synthesis network replaced, and what `change` does to its state."""
    network, _ = tf_networks.make_generator(np.random.RandomState(0))
    synthesis = network.state["components"]["synthesis"]
    names = {name.replace("/", "_"): name for name, _ in synthesis.state["variables"]}
    changed = {names.get(key, key): value for key, value in arrays.items()}
    synthesis.state["variables"] = list({**dict(synthesis.state["variables"]), **changed}.items())
    if change:
        change(network)
    return tf_networks.dumps((network,) * 3)


def tf_option(**options):
    return tf_file(lambda network: network.state["static_kwargs"].update(options))


def tf_shared(num_names):
    array = np.zeros([1, 1, 1 << 20, 1], np.float32)
    return tf_file(lambda network: network.state["components"]["synthesis"].state["variables"].extend(
        (f"{1 << k % 10}x{1 << k % 10}/Conv{k}/weight", array) for k in range(num_names)
    ))


def tf_doubled(levels):
    network, _ = tf_networks.make_generator(np.random.RandomState(0))
    for _ in range(levels):
        network = tf_networks.Network([], {str(k): network for k in range(50)})
    return tf_networks.dumps((network,) * 3)


def tf_cyclic():
    network, _ = tf_networks.make_generator(np.random.RandomState(0))
    network.state["components"]["synthesis"] = network
    return tf_networks.dumps((network,) * 3)


def tf_resized(old, new):
    """Shapes that the data don't have."""
    data = tf_file()
    assert old in data
    return data.replace(old, new)


def from_buffer(shape):
    """An array as protocol 5 has it, of a shape of our choice."""
    data = tf_networks.dumps({"G_ema": np.arange(64, dtype=np.float64).reshape(4, 16)}, 5)
    assert b"K\x04K\x10\x86" in data
    return data.replace(b"K\x04K\x10\x86", pickle.dumps(shape, 2)[2:-1].replace(b"q\x00", b""))


HOSTILE = {
    "os.system": lambda t: pickle.dumps({"G_ema": Call(os.system, f"touch {t}")}),
    "os.system, protocol 2": lambda t: pickle.dumps({"G_ema": Call(os.system, f"touch {t}")}, 2),
    "eval": lambda t: pickle.dumps({"G_ema": Call(eval, f"open({str(t)!r}, 'w')")}),
    "exec": lambda t: pickle.dumps({"G_ema": Call(exec, f"open({str(t)!r}, 'w')")}),
    "open": lambda t: pickle.dumps({"G_ema": Call(open, str(t), "w")}),
    "subprocess": lambda t: pickle.dumps({"G_ema": Call(subprocess.Popen, ["touch", str(t)])}),
    "importlib": lambda t: pickle.dumps({"G_ema": Call(importlib.import_module, "antigravity")}),
    "getattr chain": lambda t: pickle.dumps({"G_ema": Call(getattr, "x", "format")}),
    "reduce chain": lambda t: pickle.dumps({"G_ema": Call(map, Call(eval, "1"), [str(t)])}),
    "INST": lambda t: b"\x80\x02(X" + struct.pack("<I", len(f"touch {t}")) + f"touch {t}".encode() + b"ios\nsystem\n.",
    "OBJ": lambda t: b"\x80\x02(cos\nsystem\nX" + struct.pack("<I", len(f"touch {t}")) + f"touch {t}".encode() + b"o.",
    "dotted global": lambda t: b"\x80\x04\x8c\x17torch_utils.persistence\x8c\x07io.open\x93.",
    "lookalike": lambda t: b"\x80\x04ctorch_utils.persistence\nos\n.",
    "torch.load": lambda t: pickle.dumps({"G_ema": Call(torch.load, str(t))}),
    "persistent id": lambda t: b"\x80\x02X\x01\0\0\0aQ.",
    "extension registry": lambda t: b"\x80\x02\x82\x01.",
    "embedded source": lambda t: pickle.dumps(
        {"G_ema": Foreign("Generator", {"_init_args": (), "_init_kwargs": {}}, source=f"open({str(t)!r}, 'w')")}
    ),
    "embedded source of an unknown class": (
        lambda t: pickle.dumps({"G_ema": Foreign("Evil", {}, source=f"open({str(t)!r}, 'w')")})
    ),
    "pickle in a storage": (
        lambda t: network_of(tensor(Storage(pickle.dumps(Call(os.system, f"touch {t}"))), (1,), (1,)))
    ),
    "torch.save file in a storage": (
        lambda t: network_of(tensor(Storage(torch_saved(Call(os.system, f"touch {t}"))), (1,), (1,)))
    ),
    "storage of an odd class": lambda t: network_of(tensor(Storage(storage_bytes(4, kind="os\nsystem\n")), (1,), (1,))),
    "BUILD on a global": (
        lambda t: b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x01\0\0\0aX\x01\0\0\0bsb."
    ),
    "BUILD of slots on a global": (
        lambda t: b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\nN}X\7\0\0\0__new__Ns\x86b."
    ),
    "BUILD on a tensor": lambda t: on_a_tensor(b"}X\5\0\0\0startJ\0\0\0\x70sb"),
    "SETITEM on a tensor": lambda t: on_a_tensor(b"K\0K\1s"),
    "APPEND on a tensor": lambda t: on_a_tensor(b"K\0a"),
    "extension registry beyond a frame": lambda t: beyond_a_frame(b"\x82\x01."),
    "BUILD on a dict": lambda t: b"\x80\x02}}X\x01\0\0\0aX\x01\0\0\0bsb.",
    "constructor arguments with code": lambda t: network_of(mapping_kwargs=Call(eval, f"open({str(t)!r}, 'w')")),
    # Sizes.
    "storage declared huge": lambda t: network_of(tensor(Storage(storage_bytes(1, declared=1 << 40)), (1,), (1,))),
    "storage length huge": lambda t: network_of(tensor(Storage(storage_bytes(1 << 40, data=b"1234")), (1,), (1,))),
    "storage length negative": lambda t: network_of(tensor(Storage(storage_bytes(-1, data=b"")), (1,), (1,))),
    "tensor larger than its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (1 << 30,), (0,))),
    "tensor beyond its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (2,), (1 << 20,))),
    "tensor before its storage": lambda t: network_of(tensor(Storage(storage_bytes(4)), (2,), (1,), offset=-8)),
    "tensor of negative size": lambda t: network_of(tensor(Storage(storage_bytes(4)), (-2,), (1,))),
    "empty tensor of impossible size": (
        lambda t: network_of(tensor(Storage(storage_bytes(4)), (1 << 39,) * 15 + (0,), (1,) * 16))
    ),
    "tensor of many dimensions": lambda t: network_of(tensor(Storage(storage_bytes(4)), (1,) * 1000, (1,) * 1000)),
    "tensor with a product that overflows": (
        lambda t: network_of(tensor(Storage(storage_bytes(4)), (1 << 32, 1 << 32), (0, 0)))
    ),
    "bytes declared huge": lambda t: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "string declared huge": lambda t: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "number declared huge": lambda t: b"\x80\x02\x8b" + struct.pack("<I", 1 << 30) + b"abc.",
    "frame declared huge": lambda t: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "memo index huge": lambda t: b"\x80\x02Nr\xff\xff\xff\xff.",
    "network of a billion layers": lambda t: network_of(mapping_kwargs={"num_layers": 10**9}),
    "network of 2**17 layers": lambda t: network_of(mapping_kwargs={"num_layers": 1 << 17, "layer_features": 1}),
    "network of endless width": lambda t: network_of(w_dim=1 << 17),
    "network of endless latents": lambda t: network_of(z_dim=1 << 70),
    "network of endless resolution": lambda t: network_of(img_resolution=1 << 17),
    "network of unlimited channels": (
        lambda t: network_of(synthesis_kwargs={"channel_base": 1 << 17, "channel_max": 1 << 17})
    ),
    "network with a wide filter": lambda t: network_of(synthesis_kwargs={"resample_filter": [[1] * 40] * 40}),
    "network arguments of odd types": lambda t: network_of(mapping_kwargs=[1], synthesis_kwargs="x", z_dim=None),
    "array larger than its data": lambda t: pickle.dumps({"G_ema": np.zeros(10)}).replace(b"K\x0a\x85", b"K\x7f\x85"),
    "array of objects": lambda t: pickle.dumps({"G_ema": np.array([None, {}], dtype=object)}, 2),
    # Shapes.
    "deep lists": lambda t: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": lambda t: b"\x80\x02N" + b"\x85" * 200_000 + b".",
    "deep tuple as a key": lambda t: b"\x80\x02}N" + b"\x85" * 10_000 + b"Ns.",
    "tuple doubled 60 times as a key": lambda t: nested(60, b"@@\x86", b"}N\x85") + b"Ns.",
    "tuple doubled 60 times in a set": lambda t: nested(60, b"@@\x86", b"\x8f(N\x85") + b"\x90.",
    "doubled tuple as a key, after no change": lambda t: b"\x80\x02}" + DOUBLED + b"(eNs.",
    "doubled tuple in a frozenset": lambda t: b"\x80\x04(" + DOUBLED + b"\x91.",
    "doubled tuple in a list made into a set": lambda t: b"\x80\x02cbuiltins\nset\n]" + DOUBLED + b"a\x85R.",
    "doubled tuple in an OrderedDict": (
        lambda t: b"\x80\x02ccollections\nOrderedDict\n](]" + DOUBLED + b"aNae\x85R."
    ),
    "doubled tuple beyond a frame": lambda t: beyond_a_frame(b"}" + DOUBLED + b"Ns."),
    "doubled tuple beyond a frame in a frame": (
        lambda t: b"\x80\x04\x95\x0c" + bytes(7) + beyond_a_frame(b"}" + DOUBLED + b"Ns.")[2:]
    ),
    "doubled tuple in the header of a storage": lambda t: with_header(b"}" + DOUBLED + b"Ns"),
    "list doubled 60 times": lambda t: nested(60, b"]@a@a", b"}X\x05\0\0\0G_ema]") + b"s.",
    "list doubled 60 times as arguments": lambda t: doubled_in("_init_kwargs"),
    "list doubled 60 times as modules": lambda t: doubled_in("_modules"),
    "modules doubled 40 times": lambda t: module_dag(40),
    "deep modules": lambda t: deep_modules(3000),
    "a list that holds itself": lambda t: b"\x80\x02}X\x05\0\0\0G_ema]q\x01h\x01as.",
    "arguments that hold themselves": lambda t: pickle.dumps({"G_ema": Foreign("Generator", cyclic())}),
    "a string copied endlessly": lambda t: b"\x80\x02X" + struct.pack("<I", 1 << 22) + b"a" * (1 << 22) + b"q\x00"
    + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00X\x06\0\0\0latin1\x86R" * 20_000 + b".",
    "a list made into sets endlessly": lambda t: b"\x80\x02](" + b"K\x01" * 100_000 + b"e\x85q\x00"
    + b"cbuiltins\nset\nq\x01" + b"h\x01h\x00R" * 12_000 + b".",
    "a storage read endlessly": lambda t: b"\x80\x03B" + struct.pack("<I", len(storage_bytes(1))) + storage_bytes(1) + b"\x85q\x00"
    + b"ctorch.storage\n_load_from_bytes\nq\x01" + b"h\x01h\x00R" * 20_000 + b".",
    "a header of a storage without end": lambda t: with_header(b"N" * (1 << 22)),
    "a name copied endlessly": lambda t: b"\x80\x04X\0\0\x40\0" + b"a" * (1 << 22) + b"q\0" + b"h\0h\0\x93" * 90_000 + b".",
    "long keys compared endlessly": lambda t: b"\x80\x02" + b"".join(
        b"X\0\0\x40\0" + b"a" * (1 << 22) + b"q%c" % k for k in range(2)
    ) + b"}h\0Ns" + b"h\1Ns" * 70_000 + b".",
    "long keys made and compared endlessly": lambda t: b"\x80\x02X\0\0\x40\0" + b"a" * (1 << 22) + b"X\6\0\0\0latin1\x86q\0"
    + b"c_codecs\nencode\nh\0Rq\1c_codecs\nencode\nh\0Rq\2" + b"}h\1Ns" + b"h\2Ns" * 70_000 + b".",
    "zeros without end": lambda t: b"\x80\x02cbuiltins\nbytes\nJ\0\0\0\x70\x85R.",
    "colliding keys": lambda t: b"\x80\x02}(" + b"".join(
        b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little", signed=True) + b"N" for k in range(90_000)
    ) + b"u.",
    "a million marks": lambda t: b"\x80\x02" + b"(" * 1_000_000 + b".",
    "a million sets": lambda t: b"\x80\x04" + b"\x8f" * 1_000_000 + b".",
    "many refused names": lambda t: b"\x80\x02" + b"".join(b"ca%d\nb\n" % k for k in range(50_000)) + b".",
    "long refused name": lambda t: b"\x80\x02c" + b"a" * (1 << 24) + b"\nb\n.",
    "names with control characters": lambda t: b"\x80\x02ca\x1b[31m\rb\nc\n.",
    "attribute names of odd types": lambda t: pickle.dumps({"G_ema": Foreign("Generator", {1: 2, None: 3})}),
    "modules that are no modules": lambda t: pickle.dumps({"G_ema": Foreign("Generator", {"_modules": {"a": 5}})}),
    "parameters that are no tensors": (
        lambda t: pickle.dumps({"G_ema": Foreign("Generator", {"_parameters": {"a": "b"}})})
    ),
    "attributes of odd types in blocks": lambda t: pickle.dumps({"G_ema": Foreign("Generator", odd_blocks())}),
    "metadata that is no dict": lambda t: pickle.dumps({"G_ema": Call(persistence._reconstruct_persistent_obj, [1])}),
    "importlib, by the name of __import__": lambda t: pickle.dumps({"G_ema": Call(__import__, "antigravity")}),
    "operator.methodcaller": lambda t: pickle.dumps({"G_ema": Call(operator.methodcaller, "system", f"touch {t}")}),
    "reduce chain to os.system": (
        lambda t: pickle.dumps({"G_ema": Call(getattr, Call(importlib.import_module, "os"), "system")})
    ),
    "numpy.load": lambda t: pickle.dumps({"G_ema": Call(np.load, str(t))}),
    "zip bomb": lambda t: zip_bomb(),
    "zip bomb in a storage": lambda t: network_of(tensor(Storage(zip_bomb()), (1,), (1,))),
    "gzip bomb": lambda t: gzip.compress(bytes(16 << 20), 1),
    "zlib bomb by a codec": lambda t: b"\x80\x02c_codecs\nencode\n(" + pickle.dumps(zlib.compress(bytes(16 << 20)), 3)[2:-1]
    + b"X\x0a\0\0\0zlib_codectR.",
    "zlib bomb by another codec": (
        lambda t: pickle.dumps({"G_ema": Call(_codecs.decode, zlib.compress(bytes(16 << 20)), "zlib")})
    ),
    # Networks of TensorFlow.
    "TF: build_module_src": lambda t: tf_file(
        lambda network: network.state.update(build_module_src=f"open({str(t)!r}, 'w')", name=3, components={})
    ),
    "TF: array of objects": lambda t: tf_file(foo=np.array([Call(os.system, f"touch {t}")], dtype=object)),
    "TF: array of strings": lambda t: tf_file(foo=np.array(["x" * 100])),
    "TF: array of records": lambda t: tf_file(foo=np.zeros(3, dtype=[("a", "f4"), ("b", "f4")])),
    "TF: array larger than its data": lambda t: tf_resized(b"K\x01K\x08K\x04K\x04t", b"K\xffK\xffK\xffK\xfft"),
    "TF: array of a huge shape": lambda t: tf_resized(
        b"K\x01K\x08K\x04K\x04t", b"\x8a\x05\0\0\0\0\x01\x8a\x05\0\0\0\0\x01K\x04K\x04t"
    ),
    "TF: array of nothing times 2**39": lambda t: tf_file(**{"4x4_Conv_mod_weight": np.zeros([1 << 39, 0], np.float32)}),
    "TF: array of a negative shape": lambda t: tf_resized(b"K\x01K\x08K\x04K\x04t", b"J\xff\xff\xff\xffK\x08K\x04K\x04t"),
    "TF: buffer larger than its data": lambda t: from_buffer((1 << 30, 1 << 30)),
    "TF: the same data under 1,900 names": lambda t: tf_shared(1900),
    "TF: 9,000 variables": lambda t: tf_file(**{f"foo{k}": np.float32(0) for k in range(9_000)}),
    "TF: a network that holds itself": lambda t: tf_cyclic(),
    "TF: components multiplied": lambda t: tf_doubled(30),
    "TF: a call as variables": lambda t: tf_file(
        lambda network: network.state.update(variables=Call(eval, f"open({str(t)!r}, 'w')"))
    ),
    "TF: a call as an option": lambda t: tf_option(fmap_max=Call(exec, f"open({str(t)!r}, 'w')")),
    "TF: channels beyond limits": lambda t: tf_option(fmap_base=1 << 30, fmap_max=1 << 30),
    "TF: options of odd types": lambda t: tf_option(fmap_base=[1], mapping_lrmul="x"),
    "TF: a filter of odd type": lambda t: tf_option(resample_kernel="x" * 1000),
    "TF: resolution 2**29": lambda t: tf_file(**{"536870912x536870912/Conv1/weight": np.zeros([1, 1, 1, 1], np.float32)}),
    "TF: resolution of a hundred digits": lambda t: tf_file(
        **{f"{'9' * 50}x{'9' * 50}/Conv1/weight": np.zeros([1, 1, 1, 1], np.float32)}
    ),
    "TF: not three networks": lambda t: tf_networks.dumps((tf_networks.Network([]),) * 2),
    "TF: another class of that program": lambda t: b"\x80\x02cdnnlib.tflib.tfutil\nrun\nX\x01\0\0\0a\x85R.",
}

NAMED = {  # What the message names, besides the way to accept it.
    "os.system": "posix.system",
    "eval": "builtins.eval",
    "exec": "builtins.exec",
    "open": "io.open",
    "subprocess": "subprocess.Popen",
    "importlib": "importlib.import_module",
    "importlib, by the name of __import__": "builtins.__import__",
    "operator.methodcaller": "operator.methodcaller",
    "getattr chain": "builtins.getattr",
    "reduce chain": "builtins.eval, builtins.map",
    "reduce chain to os.system": "builtins.getattr, importlib.import_module",
    "numpy.load": "numpy.load",
    "torch.load": "torch.serialization.load",
    "embedded source of an unknown class": "'Evil'",
    "constructor arguments with code": "__builtin__.eval",
    "lookalike": "torch_utils.persistence.os",
    "dotted global": "torch_utils.persistence.io.open",
    "TF: a call as variables": "builtins.eval",
    "TF: a call as an option": "builtins.exec",
    "TF: another class of that program": "dnnlib.tflib.tfutil.run",
}


# ----------------------------------------------------------------------------------------------------------------------
# Opening them.


def memory(key):
    """MiB of this process, by the names of /proc/self/status."""
    with open("/proc/self/status") as f:
        return int(next(line for line in f if line.startswith(key + ":")).split()[1]) / 1024


def attempt(name, folder):
    """Open the file in this process; a row of the table."""
    data = HOSTILE[name](os.path.join(folder, "trace"))
    effects = []
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak counts from here
    before, virtual = memory("VmRSS"), int(memory("VmSize")) << 20
    resource.setrlimit(resource.RLIMIT_AS, (virtual + BYTES, virtual + BYTES))
    watching = [True]
    sys.addaudithook(lambda event, args: effects.append(f"{event} {args!r:.100}") if watching and is_effect(event) else None)
    start = time.process_time()
    try:
        load(data)
        kind, message = "loaded", ""
    except UserError as e:
        kind, message = "UserError", str(e)
    except BaseException as e:
        kind, message = type(e).__name__, str(e)[:1000]
    seconds = time.process_time() - start
    watching.clear()
    effects += os.listdir(folder) + [module for module in ("antigravity",) if module in sys.modules]
    return dict(attack=name, kind=kind, message=message, seconds=seconds, mib=memory("VmHWM") - before, effects=effects)


def is_effect(event):
    return event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.", "marshal.")) or event in (
        "open", "exec", "import", "compile",
    )


def attempt_apart(name):
    """The same in a process of its own; how it died, if it did."""
    receiving, sending = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.close(receiving)
            with os.fdopen(sending, "w") as f:
                json.dump(attempt(name, folder), f)
            os._exit(0)
        os.close(sending)
        with os.fdopen(receiving) as f:
            answer = f.read()
        _, status = os.waitpid(child, 0)
    if answer and status == 0:
        return json.loads(answer)
    return dict(attack=name, kind=f"died with status {status}", message="", seconds=0, mib=0, effects=[])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    args = parser.parse_args()
    load(pickle.dumps(make_networks()))  # so that what is imported and compiled on first use is there
    with contextlib.suppress(UserError):
        load(tf_networks.dumps((tf_networks.make_generator(np.random.RandomState(0))[0],) * 3))
    rows = [attempt_apart(name) for name in HOSTILE]
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        effects = "" if not row["effects"] else " EFFECTS: " + "; ".join(row["effects"])
        result = row["message"] if row["kind"] == "UserError" else f"{row['kind'].upper()} {row['message']}"
        print(f"{row['attack']:40} {row['seconds']:5.2f} s {row['mib']:5.0f} MiB  {result[:200]}{effects}")


if __name__ == "__main__":
    main()
