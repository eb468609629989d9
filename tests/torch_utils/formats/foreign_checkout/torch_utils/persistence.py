import copy
import inspect
import os
import sys
import types
import uuid

import dnnlib

_sources = {}  # Of modules made from pickles, by name.
_hooks = []


def persistent_class(cls):
    if is_persistent(cls):
        return cls
    source = _sources.get(cls.__module__) or inspect.getsource(sys.modules[cls.__module__])

    class Decorator(cls):
        _orig_module_src = source
        _orig_class_name = cls.__name__

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._init_args = copy.deepcopy(args)
            self._init_kwargs = copy.deepcopy(kwargs)

        @property
        def init_args(self):
            return copy.deepcopy(self._init_args)

        @property
        def init_kwargs(self):
            return dnnlib.EasyDict(copy.deepcopy(self._init_kwargs))

        def __reduce__(self):
            fields = list(super().__reduce__())
            if fields[0] is not _reconstruct_persistent_obj:
                meta = dict(type="class", version=6, module_src=source, class_name=cls.__name__, state=fields[2])
                fields = [_reconstruct_persistent_obj, (meta,), None] + fields[3:]
            return tuple(fields)

    Decorator.__name__ = cls.__name__
    return Decorator


def is_persistent(obj):
    cls = obj if isinstance(obj, type) else type(obj)
    return hasattr(cls, "_orig_module_src")


def import_hook(hook):
    assert callable(hook)
    _hooks.append(hook)


def _reconstruct_persistent_obj(meta):
    meta = dnnlib.EasyDict(meta)
    if os.environ["CHECKOUT"] == "stylegan2-ada":
        meta.state = dnnlib.EasyDict(meta.state)
    for hook in _hooks:
        meta = hook(meta)
    assert meta.version == 6 and meta.type == "class"
    name = next((name for name, source in _sources.items() if source == meta.module_src), None)
    if name is None:
        name = "_imported_module_" + uuid.uuid4().hex
        sys.modules[name] = types.ModuleType(name)
        _sources[name] = meta.module_src
        exec(meta.module_src, vars(sys.modules[name]))
    cls = persistent_class(vars(sys.modules[name])[meta.class_name])
    obj = cls.__new__(cls)
    set_state = getattr(obj, "__setstate__", None)
    if callable(set_state):
        set_state(meta.state)
    else:
        vars(obj).update(meta.state)
    return obj
