"""Translates networks in other projects' pickles into arguments of this project's constructors.

StyleGAN2-ADA, StyleGAN3 (in its StyleGAN2 configurations), GGDR and GLeaD share the names of parameters and most names
of constructor arguments. They differ in how arguments are passed, and in defaults. If a file leaves out an argument,
the default of the project that wrote the file applies. It is read from attributes of the file's modules.
"""

from typing import Any, Mapping

import torch

from dnnlib.util import EasyDict, UserError

from .module_state import ModuleRecord, state_of

NO_STYLEGAN3 = "a generator of StyleGAN3-T or -R; of StyleGAN3, only the StyleGAN2 configurations are supported"
_POSITIONS = {  # Constructor arguments, in order.
    "Generator": ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"),
    "Discriminator": (
        "c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res",
        "conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs",
    ),
}  # fmt: skip


def translate(class_name: str, state: Any) -> Any:
    """The state (`__dict__`) of another project's network, with the constructor arguments of this project's class.

    Args:
        class_name: This project's name of the class.
        state:      The state from the file. It is returned unchanged if there is nothing to translate.

    Raises:
        UserError: This project doesn't have such networks.
    """
    if class_name not in _POSITIONS or not isinstance(state, Mapping):
        return state
    args, kwargs = state.get("_init_args"), state.get("_init_kwargs")
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        return state
    named = EasyDict({**kwargs, **dict(zip(_POSITIONS[class_name], args))})
    (_translate_generator if class_name == "Generator" else _translate_discriminator)(state, named)
    return {**state, "_init_args": tuple(args[len(_POSITIONS[class_name]):]), "_init_kwargs": named}


def _translate_generator(state: Mapping[str, Any], kwargs: EasyDict) -> None:
    synthesis, mapping = _child(state, "synthesis"), _child(state, "mapping")
    if _child(synthesis, "input"):
        raise UserError(NO_STYLEGAN3)
    options = kwargs.get("synthesis_kwargs", {})
    if not isinstance(options, Mapping) or not isinstance(kwargs.get("mapping_kwargs", {}), Mapping):
        return  # the constructor will raise the error
    # StyleGAN3 passes the arguments of the synthesis network directly to the generator.
    flat = {key: kwargs.pop(key) for key in list(kwargs) if key not in _POSITIONS["Generator"]}
    options = EasyDict({**options, **flat})
    options.pop("fused_modconv_default", None)  # affects only speed; this project's network decides it by itself
    _set_missing(options, conv_clamp=_number(_child(_child(synthesis, "b4"), "conv1"), "conv_clamp"))
    _set_missing(options, num_fp16_res=_num_fp16_res(synthesis))
    kwargs.synthesis_kwargs = options
    kwargs.mapping_kwargs = EasyDict(kwargs.get("mapping_kwargs", {}))
    _set_missing(kwargs.mapping_kwargs, w_avg_beta=_number(mapping, "w_avg_beta"))


def _translate_discriminator(state: Mapping[str, Any], kwargs: EasyDict) -> None:
    _set_missing(kwargs, conv_clamp=_number(_child(_child(state, "b4"), "conv"), "conv_clamp"))
    _set_missing(kwargs, num_fp16_res=_num_fp16_res(state))


def _child(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The state of a child; empty if there is none."""
    children = state.get("_modules")
    child = children.get(name) if isinstance(children, Mapping) else None
    return state_of(child) if isinstance(child, (torch.nn.Module, ModuleRecord)) else {}


def _set_missing(options: EasyDict, **values: Any) -> None:
    """Set options that are missing, except to `...`, which stands for an unknown value."""
    for name, value in values.items():
        if value is not ...:
            options.setdefault(name, value)


def _number(state: Mapping[str, Any], name: str) -> Any:
    """An attribute of a module if it is a number or None; otherwise `...`."""
    value = state.get(name, ...)
    is_number = isinstance(value, (int, float)) and abs(value) < 1 << 31
    return value if value is None or is_number else ...


def _num_fp16_res(state: Mapping[str, Any]) -> Any:
    """The number of blocks of a synthesis network or D that use float16; `...` if the modules don't say."""
    children = state.get("_modules")
    names = [name for name in children if name != "b4"] if isinstance(children, Mapping) else []
    flags = [_child(state, name).get("use_fp16", ...) for name in names[:32]]
    return sum(flag is True for flag in flags) if any(isinstance(flag, bool) for flag in flags) else ...
