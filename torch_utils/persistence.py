"""Classes whose instances are pickled together with the source code that defines them.

An instance of a class decorated with `persistent_class` is pickled as a call of
`torch_utils.persistence._reconstruct_persistent_obj(meta)`, where `meta` holds the source of the defining module, the
name of the class, and the state. Other StyleGAN2-style checkouts run that source. Here, it is data: an object is
rebuilt with *this* project's class of that name, and embedded source runs only inside `with trust_embedded_source():`.

The decorator registers each class. However, a script that only calls `pickle.load` imports this module, but no module
that defines networks. A pickle can't name such a module, because it would then not open in other checkouts. Therefore
`OUR_MODULES` are imported by name when a class is looked up.
"""

import contextlib
import contextvars
import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
import types
import warnings
from typing import Any, Callable, Iterator, Mapping, TypeVar

import numpy as np

from dnnlib.util import EasyDict, UserError, to_easydict

from . import foreign_networks, module_state

T = TypeVar("T", bound=type)

_VERSION = 6                                                # Version of the metadata that we write.
OUR_MODULES = ("training.networks", "training.augment")
_ALIASES = {"AugmentPipeGFeat": "AugmentPipe"}              # Class names of other projects -> ours.
_ROOTS = ("Generator", "Discriminator", "AugmentPipe")      # Rebuilt by the constructor if the source differs.
_EMBEDDED_PREFIX = "_embedded_source_"                      # For the names of modules made from embedded source.

_registry: dict[str, dict[str, type]] = {}                  # Class name -> {module name: class}.
_module_sources: dict[str, str] = {}                        # Module name -> its source at the time of import.
_import_hooks: list[Callable[[EasyDict], EasyDict]] = []
_trusted: contextvars.ContextVar[bool] = contextvars.ContextVar("trust_embedded_source", default=False)


# ----------------------------------------------------------------------------------------------------------------------
# The decorator.


def persistent_class(cls: T) -> T:
    """Class decorator: instances are pickled with the source of their module, and remember the constructor's arguments.

    Instances get the properties `init_args` (tuple) and `init_kwargs` (EasyDict), which are copies of the constructor's
    arguments. Dicts in them are EasyDicts, because other checkouts set their entries as attributes. The class keeps its
    name, module, signature and bases.

    A class may define a class method `_upgrade_state(state) -> state`. It converts the state (a dict) from another
    version of the class, and is called whenever the source in the pickle differs from the current one.

    Args:
        cls: A class at the top level of a module whose source can be read.

    Returns:
        The same class object.

    Raises:
        TypeError: The source of the module can't be found, for example if the class is typed into an interpreter.
    """
    _module_source(cls.__module__)  # read it now: the file may be edited during a long run
    original_init = cls.__init__

    @functools.wraps(original_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if _closest_persistent(type(self)) is cls:  # not when a persistent subclass calls super().__init__()
            self.__dict__["_init_args"] = copy.deepcopy(args)
            self.__dict__["_init_kwargs"] = to_easydict(copy.deepcopy(kwargs))
        original_init(self, *args, **kwargs)

    cls.__init__ = init
    cls.__reduce_ex__ = _reduce_ex
    cls.__deepcopy__ = _deepcopy
    cls.init_args = property(_get_init_args)
    cls.init_kwargs = property(_get_init_kwargs)
    cls._persistent_class = cls
    if not cls.__module__.startswith(_EMBEDDED_PREFIX):
        _registry.setdefault(cls.__name__, {})[cls.__module__] = cls
    return cls


def is_persistent(obj: Any) -> bool:
    """Whether `obj` is a persistent class or an instance of one. Undecorated subclasses are not persistent."""
    cls = obj if isinstance(obj, type) else type(obj)
    return "_persistent_class" in vars(cls)


def import_hook(hook: Callable[[EasyDict], EasyDict]) -> Callable[[EasyDict], EasyDict]:
    """Register a function that may change the metadata of each persistent object before it is rebuilt.

    Args:
        hook: Called with the metadata (attributes type, version, module_src, class_name, state). Returns the metadata
              to use instead. Hooks are called in the order of registration.

    Returns:
        `hook`, so that this can be used as a decorator.
    """
    _import_hooks.append(hook)
    return hook


@contextlib.contextmanager
def trust_embedded_source() -> Iterator[None]:
    """Within this context, rebuilding a persistent object runs the source code that the pickle carries."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def _closest_persistent(cls: type) -> type | None:
    """The class itself if it is decorated, otherwise its nearest decorated base."""
    return next((base for base in cls.__mro__ if "_persistent_class" in vars(base)), None)


def _get_init_args(self: Any) -> tuple:
    return copy.deepcopy(self._init_args)


def _get_init_kwargs(self: Any) -> EasyDict:
    return EasyDict(copy.deepcopy(self._init_kwargs))


def _get_state(self: Any) -> dict[str, Any]:
    state = object.__reduce_ex__(self, 2)[2]
    if not isinstance(state, dict):
        raise pickle.PicklingError(f"{type(self).__name__} keeps state outside its __dict__: no persistent class")
    return state


def _reduce_ex(self: Any, protocol: int) -> tuple:
    if not is_persistent(self):
        return object.__reduce_ex__(self, protocol)
    cls = type(self)
    if "." in cls.__qualname__:
        raise pickle.PicklingError(f"persistent class {cls.__qualname__} is not at the top level of its module")
    state = _get_state(self)
    # NumPy 1 doesn't know the names under which NumPy 2 pickles its scalars.
    state = {name: value.item() if isinstance(value, np.generic) else value for name, value in state.items()}
    meta = EasyDict(
        type="class",
        version=_VERSION,
        module_src=_module_source(cls.__module__),
        class_name=cls.__name__,
        state=state,
    )
    return _reconstruct_persistent_obj, (meta,)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """Copy the instance directly. The default, by way of pickling, would look up its class in the registry."""
    other = type(self).__new__(type(self))
    memo[id(self)] = other
    _set_state(other, copy.deepcopy(_get_state(self), memo))
    return other


def _set_state(obj: Any, state: dict[str, Any]) -> None:
    set_state = getattr(obj, "__setstate__", None)
    if set_state is not None:
        set_state(state)
    else:
        obj.__dict__.update(state)


def _module_source(module_name: str) -> str:
    if module_name not in _module_sources:
        try:
            _module_sources[module_name] = inspect.getsource(sys.modules[module_name])
        except (OSError, TypeError, KeyError) as e:
            raise TypeError(f"persistent classes need the source of their module; {module_name} has none: {e}") from e
    return _module_sources[module_name]


# ----------------------------------------------------------------------------------------------------------------------
# Rebuilding.


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """Rebuild a persistent object. Pickles call this function by this name. Embedded source runs only if trusted."""
    meta = parse_metadata(meta)
    cls = _embedded_class(meta) if _trusted.get() else None
    if cls is None:
        cls = find_class(meta.class_name, meta.module_src)
    state = upgrade_state(cls, meta.state, meta.module_src)
    is_old = _module_source(cls.__module__) != meta.module_src
    if is_old and cls.__name__ in _ROOTS and isinstance(state, dict) and "_init_args" in state:
        return module_state.build_module(cls, state)
    obj = cls.__new__(cls)
    if state is not None:
        _set_state(obj, state)
    return obj


def parse_metadata(meta: Mapping[str, Any]) -> EasyDict:
    """Check metadata of versions 2 to 6, pass it through the import hooks, and fill in what older versions lack.

    Raises:
        UserError: The metadata is damaged, or of another version.
    """
    if not isinstance(meta, Mapping) or not isinstance(meta.get("class_name"), str):
        raise UserError("the pickle holds a persistent object without a class name: it is damaged or no network pickle")
    meta = EasyDict({"type": "class", "version": _VERSION, "module_src": "", "state": None, **meta})
    for hook in _import_hooks:
        meta = hook(meta)
    if meta.type != "class" or not isinstance(meta.module_src, str):
        raise UserError("the pickle holds a persistent object that is no class instance; only those are known")
    if not isinstance(meta.version, int) or not 2 <= meta.version <= _VERSION:
        raise UserError(f"the pickle holds a persistent object of an unknown version; known: 2 to {_VERSION}")
    return meta


def find_class(class_name: str, module_src: str = "") -> type:
    """This project's persistent class of that name.

    A class whose module has exactly the source `module_src` is preferred, then one of the project's own modules, then
    one of any other imported module.

    Raises:
        UserError: There is none, or several modules outside the project define one.
    """
    for name in OUR_MODULES:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    candidates = _registry.get(class_name) or _registry.get(_ALIASES.get(class_name, class_name)) or {}
    for module_name, cls in candidates.items():
        if _module_source(module_name) == module_src:
            return cls
    ours = [candidates[name] for name in OUR_MODULES if name in candidates]
    if ours or len(candidates) == 1:
        return (ours or list(candidates.values()))[0]
    if candidates:
        modules = ", ".join(sorted(candidates))
        raise UserError(f"class {class_name} of the pickle is defined by several modules: {modules}")
    if class_name == "SynthesisInput":
        raise UserError(foreign_networks.NO_STYLEGAN3)
    hint = "the source code that the file carries can't run here" if _trusted.get() else (
        "--trust-pickle runs the source code that the file carries (only for files whose origin you trust)")
    unknown = f"the pickle holds an object of class {class_name[:80]!a}, which this project doesn't define"
    raise UserError(f"{unknown}; {hint}")


def upgrade_state(cls: type, state: Any, module_src: str) -> Any:
    """Convert a state from another project or another version of `cls` to the current version."""
    if state is None or _module_source(cls.__module__) == module_src:
        return state
    state = foreign_networks.translate(cls.__name__, dict(state))
    upgrade = getattr(cls, "_upgrade_state", None)
    return state if upgrade is None else upgrade(state)


def _embedded_class(meta: EasyDict) -> type | None:
    """The class that the trusted source in `meta` defines; None = use this project's class."""
    name = _EMBEDDED_PREFIX + hashlib.sha256(meta.module_src.encode("utf-8", "surrogatepass")).hexdigest()
    if name not in sys.modules:
        own = (source for module, source in _module_sources.items() if not module.startswith(_EMBEDDED_PREFIX))
        if not meta.module_src or meta.module_src in own:
            return None
        try:
            _run_embedded(name, meta.module_src)
        except ImportError as e:
            warnings.warn(
                f"the source embedded for class {meta.class_name} can't run here ({e}); using this project's class"
            )
            return None
    if meta.class_name not in vars(sys.modules[name]):
        raise UserError(f"the source embedded in the pickle doesn't define class {meta.class_name}")
    return vars(sys.modules[name])[meta.class_name]


def _run_embedded(name: str, source: str) -> None:
    """Run trusted source as a module. If it fails, the module is removed."""
    sys.modules[name] = types.ModuleType(name)
    _module_sources[name] = source
    try:
        exec(compile(source, f"<{name[:30]}>", "exec"), vars(sys.modules[name]))
    except BaseException:
        del sys.modules[name], _module_sources[name]
        raise
