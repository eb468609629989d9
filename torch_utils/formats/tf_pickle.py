"""Rebuilds networks of StyleGAN2 and StyleGAN2-ADA for TensorFlow from their variables.

Their pickles are tuples (G, D, Gs) of `dnnlib.tflib.network.Network`. Such an object holds options (`static_kwargs`),
variables by name, components (which are networks again), and the source of the function that builds its graph. The
source is ignored. Conventions differ as follows:

* Convolution weights are [kh, kw, in, out] there and [out, in, kh, kw] here. Dense weights are [in, out] there and
  [out, in] here.
* There, up-sampling layers insert zeros and correlate with the stored weights. Here, their weights are stored flipped,
  as `conv_transpose2d` uses them. Down-sampling layers correlate in both.
* The bias of a style is stored without the 1 that is added to it. Here, it includes the 1.
* The noise inputs of all layers are numbered, beginning at the lowest resolution.
"""

import re
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError

from ..module_state import ModuleRecord
from .data_unpickler import Array, TfNetwork

_MAX_VARIABLES, _MAX_NETWORKS, _MAX_NAME = 2_000, 16, 128  # Several times what networks need.
_OLDER = re.compile(r"_lod\d*/|StyleMod/")  # Found in names of variables of earlier architectures.


def networks_of(content: Any) -> Any:
    """Turn a tuple of TensorFlow networks into a dict like that of PyTorch pickles. Other content is unchanged.

    Raises:
        UserError: It holds TensorFlow networks, but not the three of StyleGAN2.
    """
    if isinstance(content, TfNetwork):
        raise UserError("one network of TensorFlow; the three of StyleGAN2, (G, D, Gs), were expected")
    is_tuple = isinstance(content, (tuple, list)) and any(isinstance(network, TfNetwork) for network in content)
    if not is_tuple:
        return content
    if len(content) != 3 or not all(isinstance(network, TfNetwork) for network in content):
        raise UserError("networks of TensorFlow; the three of StyleGAN2, (G, D, Gs), were expected")
    return dict(zip(("G", "D", "G_ema"), content))


def rebuild(network: TfNetwork, class_name: str, *, max_bytes: int) -> ModuleRecord:
    """Rename the variables of a TensorFlow network, and find the constructor arguments that fit them.

    Args:
        network:    The network in the file.
        class_name: "Generator" or "Discriminator".
        max_bytes:  Limit for all tensors together: a small file can hold the same data under many names.

    Returns:
        The state of a module of that class. It lacks the filters (`resample_filter`), which follow from the arguments.

    Raises:
        UserError: The network is damaged, or not of StyleGAN2.
    """
    variables = _collect(network)
    if sum(4 * value.size for value in variables.values()) > max_bytes:
        raise UserError("a network in the pickle is declared to be larger than the file")
    if any(_OLDER.search(name) for name in variables):
        raise UserError(
            "a network of StyleGAN1 or of progressive growing (TensorFlow); only those of StyleGAN2 are supported"
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, value in variables.items():
        if name == "lod":  # a remnant of progressive growing, without effect
            continue
        our_name, our_value = _translate(name, value, class_name)
        if our_name in tensors:
            raise UserError(f"two variables of the TensorFlow network stand for {our_name}: it is damaged")
        tensors[our_name] = torch.from_numpy(np.array(our_value, dtype=np.float32))
    is_joint = any(name.startswith("mapping/LabelConcat/") for name in variables)
    if is_joint and "mapping.embed.weight" in tensors:
        tensors["mapping.embed.bias"] = torch.zeros(len(tensors["mapping.embed.weight"]))
    try:
        kwargs = (_generator_kwargs if class_name == "Generator" else _discriminator_kwargs)(_Facts(network, tensors))
    except (KeyError, IndexError) as e:
        raise UserError(f"the TensorFlow network lacks {e}: it is damaged, or not of StyleGAN2") from e
    if is_joint:
        kwargs.mapping_kwargs.normalize_jointly = True
    state = {"_init_args": (), "_init_kwargs": kwargs, "_parameters": tensors, "training": False}
    return ModuleRecord(class_name=class_name, state=state)


# ----------------------------------------------------------------------------------------------------------------------
# Variables.


def _collect(network: TfNetwork) -> dict[str, np.ndarray]:
    """The variables of a network and its components. The names of the components precede those of variables."""
    result: dict[str, np.ndarray] = {}
    for prefix, state in _walk(network):
        variables = state.get("variables")
        if not isinstance(variables, (list, tuple)):
            raise UserError("a network of TensorFlow in the pickle is damaged: it has no variables")
        if len(result) + len(variables) > _MAX_VARIABLES:
            raise UserError("a network of TensorFlow in the pickle has too many variables for one of StyleGAN2")
        for item in variables:
            name, value = item if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)
            value = value.to_numpy() if isinstance(value, Array) else value
            if not isinstance(name, str) or len(name) > _MAX_NAME or not isinstance(value, (np.ndarray, np.generic)):
                raise UserError("a network of TensorFlow in the pickle is damaged: a variable is no named array")
            if value.dtype.kind != "f" and name != "lod":
                raise UserError(f"variable {name!a} of the TensorFlow network is of type {value.dtype}, not float")
            if prefix + name in result:
                raise UserError("a network of TensorFlow in the pickle is damaged: variables are repeated")
            result[prefix + name] = np.asarray(value)
    return result


def _walk(network: TfNetwork) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The states of a network and its components, each with the prefix of its variables' names."""
    pending = [("", network)]
    for _ in range(_MAX_NETWORKS):
        if not pending:
            return
        prefix, network = pending.pop()
        yield prefix, network.state
        components = network.state.get("components")
        components = components if isinstance(components, Mapping) else {"?": None}
        for name, component in components.items():
            if not isinstance(name, str) or len(name) > _MAX_NAME or not isinstance(component, TfNetwork):
                raise UserError("a network of TensorFlow in the pickle is damaged: its components are no networks")
            pending.append((f"{prefix}{name}/", component))
    if pending:
        raise UserError("a network of TensorFlow in the pickle has too many components for one of StyleGAN2")


def _flipped(weight: np.ndarray) -> np.ndarray:
    return weight[::-1, ::-1]


def _unchanged(weight: np.ndarray) -> np.ndarray:
    return weight


def _unscaled_label(weight: np.ndarray) -> np.ndarray:
    """Compensate weights [c_dim, w_dim] for the dense layer here, which divides them by the root of c_dim."""
    return weight * np.sqrt(len(weight))


# Layers: a pattern for the scope there, the name here, and the change of the weights apart from transposition.
_Layers = tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...]
_LAYERS: dict[str, _Layers] = {
    "Generator": (
        (r"mapping/Dense(\d+)", r"mapping.fc\1", _unchanged),
        (r"mapping/LabelEmbed", r"mapping.embed", _unchanged),
        (r"mapping/LabelConcat", r"mapping.embed", _unscaled_label),
        (r"synthesis/4x4/Conv", r"synthesis.b4.conv1", _unchanged),
        (r"synthesis/(\d+)x\1/Conv0_up", r"synthesis.b\1.conv0", _flipped),
        (r"synthesis/(\d+)x\1/Conv1", r"synthesis.b\1.conv1", _unchanged),
        (r"synthesis/(\d+)x\1/Skip", r"synthesis.b\1.skip", _flipped),
        (r"synthesis/(\d+)x\1/ToRGB", r"synthesis.b\1.torgb", _unchanged),
    ),
    "Discriminator": (
        (r"LabelEmbed", r"mapping.embed", _unchanged),
        (r"Mapping(\d+)", r"mapping.fc\1", _unchanged),
        (r"(\d+)x\1/FromRGB", r"b\1.fromrgb", _unchanged),
        (r"(\d+)x\1/Conv0", r"b\1.conv0", _unchanged),
        (r"(\d+)x\1/Conv1_down", r"b\1.conv1", _unchanged),
        (r"(\d+)x\1/Skip", r"b\1.skip", _unchanged),
        (r"4x4/Conv", r"b4.conv", _unchanged),
        (r"4x4/Dense0", r"b4.fc", _unchanged),
        (r"Output", r"b4.out", _unchanged),
    ),
}


def _translate(name: str, value: np.ndarray, class_name: str) -> tuple[str, np.ndarray]:
    """The name and value here of one variable."""
    if class_name == "Generator":
        noise = re.fullmatch(r"synthesis/noise(\d{1,2})", name)
        if name == "dlatent_avg":
            return "mapping.w_avg", value
        if name == "synthesis/4x4/Const/const" and value.ndim == 4:
            return "synthesis.b4.const", value[0]
        if noise and value.ndim == 4:
            index = int(noise[1])  # one layer at 4x4, two at each resolution above
            return f"synthesis.b{1 << (index + 5) // 2}.conv{1 - index % 2}.noise_const", value[0, 0]
    scope, _, kind = name.rpartition("/")
    for pattern, ours, change in _LAYERS[class_name]:
        match = re.fullmatch(pattern, scope)
        if match:
            layer = match.expand(ours)
            if kind == "weight" and value.ndim == 4:
                return f"{layer}.weight", change(value).transpose(3, 2, 0, 1)
            if kind == "weight" and value.ndim == 2:
                return f"{layer}.weight", change(value).T
            if kind == "mod_weight" and value.ndim == 2:
                return f"{layer}.affine.weight", value.T
            if kind == "mod_bias":
                return f"{layer}.affine.bias", value + 1
            if kind in ("bias", "noise_strength"):
                return f"{layer}.{kind}", value
    raise UserError(
        f"variable {name!a} of shape {list(value.shape)} of the TensorFlow network has no place in a {class_name} of "
        "StyleGAN2"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Constructor arguments.


class _Facts:
    """The facts from which constructor arguments follow: options of the network and its components, and shapes."""

    def __init__(self, network: TfNetwork, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.options: dict[str, Any] = {}
        for _, state in reversed(list(_walk(network))):
            options = state.get("static_kwargs")
            self.options.update(options if isinstance(options, dict) else {})
        self.function = network.state.get("build_func_name")
        if self.option("normalize_latents", True) is not True:
            raise UserError("a network of TensorFlow that doesn't normalize latents; that is not supported")

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    def number(self, name: str, default: int) -> int:
        value = self.option(name, default)
        if not isinstance(value, (int, float)) or not 0 <= value < 1 << 31:
            raise UserError(f"option {name} of the TensorFlow network is no number in range")
        return int(value)

    def width(self, name: str, dim: int) -> int:
        return self.tensors[name].shape[dim]

    def matches(self, pattern: str) -> list[re.Match[str]]:
        return [match for match in (re.fullmatch(pattern, name) for name in self.tensors) if match]

    def resolution(self, pattern: str) -> int:
        """The highest resolution in names of tensors. It is the first group of the pattern."""
        return max((int(match[1][:9]) for match in self.matches(pattern)), default=4)

    def common(self) -> dict[str, Any]:
        return dict(
            channel_base=2 * self.number("fmap_base", 16 << 10),
            channel_max=self.number("fmap_max", 512),
            num_fp16_res=self.number("num_fp16_res", 0),
            conv_clamp=self.option("conv_clamp", None),
        )


def _generator_kwargs(facts: _Facts) -> EasyDict:
    num_layers = len(facts.matches(r"mapping\.fc\d+\.weight"))
    labelled = "mapping.embed.weight" in facts.tensors
    embed_features = facts.width("mapping.embed.weight", 0) if labelled else 0
    resolution = facts.resolution(r"synthesis\.b(\d+)\.conv1\.weight")
    activation = facts.option("nonlinearity", "lrelu")
    architecture = "resnet" if facts.matches(r"synthesis\.b\d+\.skip\.weight") else "skip"
    if resolution > 4 and architecture == "skip" and "synthesis.b4.torgb.weight" not in facts.tensors:
        architecture = "orig"
    return EasyDict(
        z_dim=facts.width("mapping.fc0.weight", 1) - embed_features,
        c_dim=facts.width("mapping.embed.weight", 1) if labelled else 0,
        w_dim=facts.width("synthesis.b4.conv1.affine.weight", 1),
        img_resolution=resolution,
        img_channels=facts.width(f"synthesis.b{resolution}.torgb.weight", 0),
        mapping_kwargs=EasyDict(
            num_layers=num_layers,
            embed_features=embed_features or None,
            layer_features=facts.width("mapping.fc0.weight", 0) if num_layers > 1 else None,
            activation=facts.option("mapping_nonlinearity", "lrelu"),
            lr_multiplier=facts.option("mapping_lrmul", 0.01),
            w_avg_beta=facts.option("w_avg_beta", facts.option("dlatent_avg_beta", 0.995)),
        ),
        synthesis_kwargs=EasyDict(
            architecture=architecture,
            activation=activation,
            resample_filter=facts.option("resample_kernel", [1, 3, 3, 1]),
            use_noise="synthesis.b4.conv1.noise_strength" in facts.tensors,
            **facts.common(),
        ),
    )


def _discriminator_kwargs(facts: _Facts) -> EasyDict:
    labelled = "mapping.embed.weight" in facts.tensors
    if not labelled and facts.width("b4.out.weight", 0) != 1:
        raise UserError(
            "a conditional discriminator of the first StyleGAN2 program (TensorFlow), which has one output for each "
            "class; that is not supported"
        )
    resolution = facts.resolution(r"b(\d+)\.conv0\.weight")
    activation = facts.option("nonlinearity", "lrelu")
    architecture = "resnet" if facts.matches(r"b\d+\.skip\.weight") else "orig"
    if resolution > 4 and "b4.fromrgb.weight" in facts.tensors:
        architecture = "skip"
    mapping_width = facts.width("mapping.embed.weight", 0) if labelled else None
    channels_last = facts.width("b4.conv.weight", 0)
    return EasyDict(
        c_dim=facts.width("mapping.embed.weight", 1) if labelled else 0,
        img_resolution=resolution,
        img_channels=facts.width(f"b{resolution}.fromrgb.weight", 1),
        architecture=architecture,
        cmap_dim=mapping_width,
        block_kwargs=EasyDict(
            activation=activation,
            resample_filter=facts.option("resample_kernel", [1, 3, 3, 1]),
        ),
        mapping_kwargs=EasyDict(
            num_layers=len(facts.matches(r"mapping\.fc\d+\.weight")),
            embed_features=mapping_width,
            layer_features=mapping_width,
            activation=activation,
            lr_multiplier=facts.option("mapping_lrmul", 0.1),
        ),
        epilogue_kwargs=EasyDict(
            # The default of the first program (StyleGAN2) is 4, that of StyleGAN2-ADA the whole batch.
            mbstd_group_size=facts.option("mbstd_group_size", 4 if facts.function == "D_stylegan2" else None),
            mbstd_num_channels=facts.width("b4.conv.weight", 1) - channels_last,
            activation=activation,
        ),
        **facts.common(),
    )
