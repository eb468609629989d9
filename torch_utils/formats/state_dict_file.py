"""Generators as state dicts by torch.save, with the names of rosinality's stylegan2-pytorch and its many descendants.

A file is {"g_ema": state dict, "g": state dict (optional), "latent_avg": mean w [w_dim] (optional)}. It can hold only
unconditional RGB generators of the skip architecture. They compute the same function as this project's. Only names,
dimensions of size 1 and the scale of the up-sampling filters differ.
"""

import argparse
import io
import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import torch

from dnnlib.util import EasyDict, UserError, atomic_write

from .. import persistence
from ..module_state import build_module
from . import data_unpickler

_KEYS = {"g_ema": "G_ema", "g": "G"}    # Their names -> ours.
_LR_MULTIPLIER = 0.01                   # For the mapping network; fixed in this format.
_UP_GAIN = 4                            # Their filters for up-sampling by 2 contain this factor.
_DEFAULT_TAPS = [1, 3, 3, 1]
_NUM_LATENTS = 10_000                   # Number of latents for the mean w if a file lacks it.
_NUM_PICKLES = 5                        # Number of pickles at the start of a torch.save file before PyTorch 1.6.


class _Entry(NamedTuple):
    """One tensor: their name and shape, and ours."""

    theirs: str
    their_shape: tuple[int, ...]
    ours: str
    our_shape: tuple[int, ...]


class _Size(NamedTuple):
    """The numbers that determine all shapes in a generator."""

    num_layers: int             # Layers of the mapping network.
    w_dim: int
    channels: dict[int, int]    # Resolution -> channels, in the order 4, 8, ...
    img_channels: int


# ----------------------------------------------------------------------------------------------------------------------
# Writing.


def write(path: str | os.PathLike, networks: Mapping[str, Any]) -> list[Path]:
    """Write `G_ema` and `G`, or the one that is given.

    Raises:
        UserError: A network can't be expressed in this format. The message says why.
    """
    content: dict[str, Any] = {}
    for theirs, ours in _KEYS.items():
        if networks.get(ours) is not None:
            content[theirs] = to_state_dict(networks[ours], key=ours)
    present = [networks[key] for key in _KEYS.values() if networks.get(key) is not None]
    means = [G.mapping.w_avg.detach().cpu().clone() for G in present]
    content["latent_avg"] = means[0]
    if not torch.equal(means[0], means[-1]):  # in our own snapshots, they are equal
        content["g_latent_avg"] = means[-1]
    with atomic_write(path) as f:
        torch.save(content, f)
    return [Path(path)]


def to_state_dict(G: torch.nn.Module, *, key: str = "G") -> dict[str, torch.Tensor]:
    """The state dict of a generator with the names of this format. `key` is its name in messages.

    Raises:
        UserError: The generator can't be expressed in this format.
    """
    _check_expressible(G, key)
    ours = G.state_dict()
    size = _Size(G.mapping.num_layers, G.w_dim, {r: ours[f"synthesis.b{r}.conv1.weight"].shape[0]
                                                 for r in G.synthesis.block_resolutions}, G.img_channels)
    result = {e.theirs: ours[e.ours].detach().cpu().reshape(e.their_shape).clone() for e in _layout(size)}
    kernel = ours["synthesis.b4.resample_filter"].detach().cpu()
    kernel = (torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel) * _UP_GAIN
    return result | {name: kernel.clone() for name in _filter_names(size)}


def _check_expressible(G: torch.nn.Module, key: str) -> None:
    def expect(ok: bool, what: str) -> None:
        if not ok:
            raise UserError(f"{key} {what}: .pt files of this kind can't express that; use .safetensors")

    expect(hasattr(getattr(G, "synthesis", None), "block_resolutions"), f"is a {type(G).__name__}, not of StyleGAN2")
    blocks = [getattr(G.synthesis, f"b{res}") for res in G.synthesis.block_resolutions]
    layers = [layer for block in blocks for layer in (getattr(block, "conv0", None), block.conv1) if layer is not None]
    dense = [getattr(G.mapping, f"fc{idx}") for idx in range(G.mapping.num_layers)]
    expect(G.c_dim == 0, f"is conditional (labels of {G.c_dim} numbers)")
    expect(G.img_channels == 3, f"makes images of {G.img_channels} channels, not RGB")
    architecture = next((b.architecture for b in blocks if b.architecture != "skip"), "skip")
    expect(architecture == "skip", f"has the architecture {architecture!r}, not 'skip'")
    expect(all(fc.in_features == fc.out_features == G.w_dim for fc in dense),
           f"has a mapping network whose widths (z {G.z_dim}, w {G.w_dim}) are not all the same")
    expect(all(math.isclose(fc.bias_gain, _LR_MULTIPLIER) and fc.activation == "lrelu" for fc in dense),
           f"has a mapping network with another activation than 'lrelu' or lr_multiplier than {_LR_MULTIPLIER}")
    expect(G.mapping.w_avg_beta is not None, "does not track the mean w")
    expect(all(layer.use_noise for layer in layers), "has no noise inputs")
    expect(all(layer.activation == "lrelu" and layer.weight.shape[2:] == (3, 3) for layer in layers),
           "has another activation than 'lrelu', or other kernels than 3x3")


# ----------------------------------------------------------------------------------------------------------------------
# Reading.


def read(data: bytes, *, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the generators in the bytes of a file by torch.save; see `description.build`.

    Raises:
        UserError: The file has another format or architecture, or holds more than tensors and plain data.
    """
    content = _load(data)
    if isinstance(content, dict) and "input.input" in content:
        content = {"g_ema": content}  # it is the state dict itself
    found = [name for name in _KEYS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    if not found:
        raise UserError("written by torch.save, but without the generator 'g_ema' or 'g' of rosinality's format")
    if content.get("d") is not None and (only is None or "D" in only):
        warnings.warn("the discriminator in the file ('d') is not read: only generators of this format are")
    result = {}
    for theirs in found:
        if only is None or _KEYS[theirs] in only:
            _check_amount(content[theirs], len(data), theirs)
            mean = content.get(f"{theirs}_latent_avg", content.get("latent_avg"))
            result[_KEYS[theirs]] = from_state_dict(content[theirs], mean, key=theirs)
    return result


def from_state_dict(state: Mapping[str, Any], latent_avg: torch.Tensor | None, *, key: str) -> torch.nn.Module:
    """Build a generator from a state dict with the names of this format.

    Args:
        state:      Tensors by name.
        latent_avg: Mean w, [w_dim] or [1, w_dim]; None = compute it, with a warning.
        key:        Name of the generator in messages.

    Raises:
        UserError: A tensor is missing, unknown or of another shape.
    """
    state = {name: _checked(name, tensor, key) for name, tensor in state.items()}
    size = _infer_size(state, key)
    tensors, layout = {}, _layout(size)
    for entry in layout:
        tensor = _get(state, entry.theirs, key)
        if tuple(tensor.shape) != entry.their_shape:
            shapes = f"{list(tensor.shape)}, expected {list(entry.their_shape)}"
            raise UserError(f"{key} has {entry.theirs} of shape {shapes}")
        tensors[entry.ours] = tensor.reshape(entry.our_shape)
    known = {entry.theirs for entry in layout} | set(_filter_names(size)) | {"style.0.kernel"}
    unknown = sorted(set(state) - known)
    if unknown:
        raise UserError(f"{key} has {unknown[0][:120]!a}, which generators of this format lack")
    taps = _taps([_get(state, name, key) for name in _filter_names(size)], key)
    no_mean = latent_avg is None
    mean = torch.zeros([size.w_dim]) if no_mean else _checked("latent_avg", latent_avg, key)
    if mean.numel() != size.w_dim:
        raise UserError(f"latent_avg has the shape {list(mean.shape)}, expected [{size.w_dim}]")
    tensors["mapping.w_avg"] = mean.reshape(size.w_dim)
    G = build_module(persistence.find_class("Generator"), {
        "_init_args": (), "_init_kwargs": _constructor_kwargs(size, taps, key), "_parameters": tensors})
    if no_mean:
        _compute_mean(G)
    return G


def _load(data: bytes) -> Any:
    """The content of a file by torch.save. Raises UserError if it holds more than tensors and plain data."""
    is_zip = data.startswith(b"PK")
    refused = data_unpickler.check_torch_save(*((_zipped_pickle(data), 1) if is_zip else (data, _NUM_PICKLES)))
    if refused:
        raise UserError(f"refused, because it asks for {ascii(refused[0])[1:-1]}: only tensors and plain data are read")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # damage can make torch.load raise any exception
        raise UserError(f"truncated, damaged, or not written by torch.save ({type(e).__name__})") from e


def _zipped_pickle(data: bytes) -> bytes:
    """The bytes of the pickle in a zip archive by torch.save."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = {entry.filename.partition("/")[2].lower(): entry for entry in archive.infolist()}
        if "constants.pkl" in entries:
            raise UserError("the file is a TorchScript program: it holds code, not networks that could be read")
        if "data.pkl" not in entries:
            raise UserError("the file is a zip archive, but not one written by torch.save (a dataset?)")
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values())
        if compressed or sum(entry.file_size for entry in entries.values()) > len(data):
            raise UserError("damaged: a compressed zip archive, which torch.save doesn't write")
        if len(entries) < len(archive.infolist()):
            raise UserError("damaged: a zip archive in which a name stands twice")
        return archive.read(entries["data.pkl"])
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError("the file is a zip archive that is truncated or damaged") from e


def _check_amount(state: Mapping[str, Any], num_bytes: int, key: str) -> None:
    """Raise UserError if tensors are larger than the file: they are views of a small or of a shared storage."""
    if sum(tensor.numel() for tensor in state.values() if isinstance(tensor, torch.Tensor)) > num_bytes:
        raise UserError(f"damaged: {key} has more numbers than the file has bytes")


def _get(state: Mapping[str, torch.Tensor], name: str, key: str) -> torch.Tensor:
    if name not in state:
        raise UserError(f"{key} lacks {name}, which generators of this format have")
    return state[name]


def _checked(name: str, tensor: Any, key: str) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise UserError(f"{key} has {str(name)[:120]!a}, which is no tensor of floating-point numbers")
    return tensor.detach().to(torch.float32)


def _infer_size(state: Mapping[str, torch.Tensor], key: str) -> _Size:
    num_layers = next(n for n in range(len(state) + 1) if f"style.{n + 1}.weight" not in state)
    num_rgb = next(n for n in range(len(state) + 1) if f"to_rgbs.{n}.bias" not in state)

    def sizes(name: str, num_dims: int) -> list[int]:
        shape = list(_get(state, name, key).shape)
        if len(shape) != num_dims:
            raise UserError(f"{key} has {name} of shape {shape}, expected {num_dims} dimensions")
        return shape

    channels = {4: sizes("input.input", 4)[1]}
    for j in range(num_rgb):
        channels[2 ** (3 + j)] = sizes(f"convs.{2 * j}.conv.weight", 5)[1]
    w_dim = sizes("conv1.conv.modulation.weight", 2)[1]
    return _Size(num_layers, w_dim, channels, sizes("to_rgb1.bias", 4)[1])


def _taps(kernels: list[torch.Tensor], key: str) -> torch.Tensor:
    """The 1-D filter, of sum 1, from which all up-sampling kernels are made."""
    if not kernels:
        return torch.tensor(_DEFAULT_TAPS, dtype=torch.float32) / sum(_DEFAULT_TAPS)
    kernel = kernels[0] / _UP_GAIN
    taps = kernel.sum(dim=0) if kernel.ndim == 2 else torch.zeros(0)
    same = all(other.shape == kernel.shape and torch.equal(other, kernels[0]) for other in kernels)
    if not same or not torch.allclose(torch.outer(taps, taps), kernel, atol=1e-6) or abs(taps.sum() - 1) > 1e-5:
        raise UserError(f"{key} has up-sampling kernels that are not all the same, separable and of sum {_UP_GAIN}")
    return taps


def _constructor_kwargs(size: _Size, taps: torch.Tensor, key: str) -> EasyDict:
    channel_max = max(size.channels.values())
    channel_base = max(res * n for res, n in size.channels.items())
    for res, n in size.channels.items():
        if n != min(channel_base // res, channel_max):
            expected = min(channel_base // res, channel_max)
            raise UserError(f"{key} has {n} channels at {res}x{res}, expected {expected}: {channel_base} / resolution, "
                            f"at most {channel_max}")
    synthesis = EasyDict(channel_base=channel_base, channel_max=channel_max, conv_clamp=None)
    default = torch.tensor(_DEFAULT_TAPS, dtype=torch.float32)
    if taps.shape != default.shape or not torch.allclose(taps, default / default.sum(), atol=1e-6):
        synthesis.resample_filter = taps.tolist()
    return EasyDict(
        z_dim=size.w_dim, c_dim=0, w_dim=size.w_dim, img_resolution=max(size.channels), img_channels=size.img_channels,
        mapping_kwargs=EasyDict(num_layers=size.num_layers, lr_multiplier=_LR_MULTIPLIER), synthesis_kwargs=synthesis,
    )


@torch.no_grad()
def _compute_mean(G: torch.nn.Module) -> None:
    """Set the mean w of a generator, with a warning."""
    warnings.warn(f"the file lacks latent_avg: the mean w is computed from {_NUM_LATENTS:,} random z's")
    z = torch.randn([_NUM_LATENTS, G.z_dim], generator=torch.Generator().manual_seed(0))
    G.mapping.w_avg.copy_(torch.cat([G.mapping(part, None)[:, 0] for part in z.split(1000)]).mean(dim=0))


# ----------------------------------------------------------------------------------------------------------------------
# Names.


def _layout(size: _Size) -> list[_Entry]:
    """Every tensor that both formats have, except filters and the mean w."""
    entries = []

    def add(theirs: str, ours: str, *shape: int, before: int = 0, after: int = 0) -> None:
        entries.append(_Entry(theirs, (1,) * before + shape + (1,) * after, ours, shape))

    def add_modulated(theirs: str, ours: str, c_in: int, c_out: int, k: int) -> None:
        add(f"{theirs}.conv.weight", f"{ours}.weight", c_out, c_in, k, k, before=1)
        add(f"{theirs}.conv.modulation.weight", f"{ours}.affine.weight", c_in, size.w_dim)
        add(f"{theirs}.conv.modulation.bias", f"{ours}.affine.bias", c_in)

    def add_layer(theirs: str, ours: str, c_in: int, c_out: int, noise: int, res: int) -> None:
        add_modulated(theirs, ours, c_in, c_out, 3)
        add(f"{theirs}.noise.weight", f"{ours}.noise_strength", before=1)
        add(f"{theirs}.activate.bias", f"{ours}.bias", c_out)
        add(f"noises.noise_{noise}", f"{ours}.noise_const", res, res, before=2)

    def add_rgb(theirs: str, ours: str, c_in: int) -> None:
        add_modulated(theirs, ours, c_in, size.img_channels, 1)
        add(f"{theirs}.bias", f"{ours}.bias", size.img_channels, before=1, after=2)

    for idx in range(size.num_layers):
        add(f"style.{idx + 1}.weight", f"mapping.fc{idx}.weight", size.w_dim, size.w_dim)  # style.0 normalises
        add(f"style.{idx + 1}.bias", f"mapping.fc{idx}.bias", size.w_dim)
    channels = size.channels
    add("input.input", "synthesis.b4.const", channels[4], 4, 4, before=1)
    add_layer("conv1", "synthesis.b4.conv1", channels[4], channels[4], 0, 4)
    add_rgb("to_rgb1", "synthesis.b4.torgb", channels[4])
    for j, res in enumerate(r for r in channels if r > 4):
        block = f"synthesis.b{res}"
        add_layer(f"convs.{2 * j}", f"{block}.conv0", channels[res // 2], channels[res], 2 * j + 1, res)
        add_layer(f"convs.{2 * j + 1}", f"{block}.conv1", channels[res], channels[res], 2 * j + 2, res)
        add_rgb(f"to_rgbs.{j}", f"{block}.torgb", channels[res])
    return entries


def _filter_names(size: _Size) -> list[str]:
    blocks = range(len(size.channels) - 1)
    return [f"convs.{2 * j}.conv.blur.kernel" for j in blocks] + [f"to_rgbs.{j}.upsample.kernel" for j in blocks]
