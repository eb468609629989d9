"""Perceptual distances between images: LPIPS, feature nets, mean squared error.

All take images in [-1, 1]. A distance embeds both images, and then compares the embeddings. So a target can be embedded
once, without a graph.
"""

import abc
import functools
import hashlib
import importlib.util
import math
import os
import pickle
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import torch
from torch.nn import Conv2d, MaxPool2d, ReLU, Sequential

from dnnlib.util import UserError, cache_dir, cached_path, check_all, is_url, open_url, say_once
from torch_utils import distributed
from torch_utils import formats as network_formats
from torch_utils.formats import feature_nets, safetensors_file

_WEIGHTS_URL = "https://download.pytorch.org/models/"
_LPIPS_MEAN = (-0.030, -0.088, -0.188)  # Channel statistics of ImageNet, for images in [-1, 1].
_LPIPS_STD = (0.458, 0.448, 0.450)
_LPIPS_EPS = 1e-10
_RANDOM_SEED = 0
_FLOAT16_MARGIN_LOG2 = 4    # Gradients are scaled by 1/16 of the number of pixels, so that their sums don't overflow.


class PerceptualLoss(torch.nn.Module, abc.ABC):
    """A frozen distance between images, differentiable with respect to the first of them."""

    @abc.abstractmethod
    def embed(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the embeddings that `compare` takes.

        Args:
            img: float [N, C, H, W] in [-1, 1], with C = 3, or C = 1 (grey, repeated to RGB if the net takes RGB).

        Returns:
            Tensors whose first dimension is N.

        Raises:
            UserError: The image is smaller than the net can take.
        """

    @torch.no_grad()
    def embed_target(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `embed`, without recording a graph."""
        # After a TorchScript net has seen an image that requires a gradient, it records a graph even under no_grad.
        return tuple(part.detach() for part in self.embed(img))

    @abc.abstractmethod
    def compare(self, embedding: tuple[torch.Tensor, ...], target_embedding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The distance of two results of `embed`, float [N]."""

    def distance(self, img: torch.Tensor, target_embedding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The distance of each pair of images, L_per in Eq. 7 of GLeaD (arXiv 2212.03752).

        Args:
            img:              float [N, C, H, W] in [-1, 1]; gradients flow to it.
            target_embedding: Result of `embed` for the images [N, C, H, W] to compare with.

        Returns:
            float [N], 0 for equal images.
        """
        return self.compare(self.embed(img), target_embedding)


class PixelMSE(PerceptualLoss):
    """Mean squared pixel error in [-1, 1] units (`mse`)."""

    def embed(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (img,)

    def compare(self, embedding: tuple[torch.Tensor, ...], target_embedding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return (embedding[0] - target_embedding[0]).square().mean(dim=(1, 2, 3))


class FeatureDistance(PerceptualLoss):
    """Squared L2 distance of the features of a net with the perceptual interface (see `_probe`)."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def embed(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.net((_as_rgb(img) + 1) * 127.5, resize_images=False, return_lpips=True),)  # [N, K]

    def compare(self, embedding: tuple[torch.Tensor, ...], target_embedding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return (embedding[0] - target_embedding[0]).square().sum(dim=1)


class LPIPS(PerceptualLoss):
    """Learned Perceptual Image Patch Similarity (Zhang et al., CVPR 2018), Eq. 1.

    d(x, y) is the sum over taps of the mean over positions of w . (u(x) - u(y))^2. A tap is a layer whose output is
    compared, u(x) is its output scaled to unit length over channels, and w are learned weights of channels.

    Args:
        layers:  The feature net. It takes RGB images normalised with ImageNet's statistics.
        taps:    Indices of the taps in `layers`.
        weights: For each tap, one weight per channel.
        dtype:   Type in which the net computes: float32, float16 or bfloat16. Distances are always float32.
    """

    def __init__(
        self,
        layers: Sequential,
        taps: Sequence[int],
        weights: Sequence[torch.Tensor],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        assert len(taps) == len(weights)
        self.half_type = None if dtype == torch.float32 else dtype
        self.layers = layers[:max(taps) + 1]
        if self.half_type is not None:
            self.layers.to(dtype=dtype, memory_format=torch.channels_last)
        self.taps = tuple(taps)
        self.min_size = _min_input_size(self.layers)
        self.register_buffer("mean", torch.tensor(_LPIPS_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_LPIPS_STD).reshape(1, 3, 1, 1))
        for i, weight in enumerate(weights):
            self.register_buffer(f"weight{i}", weight.detach().reshape(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def embed(self, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _check_size(min(img.shape[2:]), self.min_size)
        x = (_as_rgb(img) - self.mean) / self.std
        # The gradients of a mean over a batch of images are about 1e-7, which float16 can't represent. In the backward
        # pass, a power of two scales them up before they enter the net, and down again after they leave it.
        gain = 2.0 ** int(math.log2(img.numel()) - _FLOAT16_MARGIN_LOG2) if self.half_type == torch.float16 else 1.0
        if self.half_type is not None:
            _scale_gradient(x, 1 / gain)
            x = x.to(dtype=self.half_type, memory_format=torch.channels_last)
        embedding = []
        layer: torch.nn.Module
        for i, layer in enumerate(self.layers):
            x = _apply(layer, x)
            if i in self.taps:
                tap = x.to(torch.float32) if self.half_type is not None else x
                _scale_gradient(tap, gain)
                embedding.append(_unit_length(tap))
        return tuple(embedding)

    def compare(self, embedding: tuple[torch.Tensor, ...], target_embedding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.compare_taps(embedding, target_embedding).sum(dim=0)

    def compare_taps(
        self, embedding: tuple[torch.Tensor, ...], target_embedding: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The contribution of each tap to the distance, float [taps, N]."""
        distances = []
        for i, (a, b) in enumerate(zip(embedding, target_embedding, strict=True)):
            per_position = torch.nn.functional.conv2d((a - b).square(), self.get_buffer(f"weight{i}"))  # [N, 1, H, W]
            distances.append(per_position.mean(dim=(1, 2, 3)))
        return torch.stack(distances)


class _Backbone(NamedTuple):
    filename: str                       # Name of torchvision's weights file. It ends in the start of its SHA-256.
    sha256: str                         # `digest` of the convolutions' weights and biases.
    features: Callable[[], Sequential]  # Makes the layers up to the last tap, numbered as in the file.
    taps: tuple[int, ...]               # Layers whose output LPIPS compares.


def _vgg16_features() -> Sequential:
    layers: list[torch.nn.Module] = []
    channels = 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        if layers:
            layers.append(MaxPool2d(2))
        for width in widths:
            layers += [Conv2d(channels, width, 3, padding=1), ReLU(inplace=True)]
            channels = width
    return Sequential(*layers)


def _alexnet_features() -> Sequential:
    return Sequential(
        Conv2d(3, 64, 11, stride=4, padding=2), ReLU(inplace=True), MaxPool2d(3, stride=2),
        Conv2d(64, 192, 5, padding=2), ReLU(inplace=True), MaxPool2d(3, stride=2),
        Conv2d(192, 384, 3, padding=1), ReLU(inplace=True),
        Conv2d(384, 256, 3, padding=1), ReLU(inplace=True),
        Conv2d(256, 256, 3, padding=1), ReLU(inplace=True),
    )


_BACKBONES = {
    "vgg": _Backbone("vgg16-397923af.pth", "40acdda7c6b05249f81637b2571671ce938507c5f986db17af374cf62a2f42a6",
                     _vgg16_features, (3, 8, 15, 22, 29)),
    "alex": _Backbone("alexnet-owt-7be5be79.pth", "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc",
                      _alexnet_features, (1, 4, 7, 9, 11)),
}
_LPIPS_NAMES = {f"lpips-{name}": name for name in _BACKBONES}
_RANDOM_NAMES = {f"random-{name}": name for name in _BACKBONES}
_PIXELS = ("mse", "l2")
_NAMES = (*_LPIPS_NAMES, *_RANDOM_NAMES, *_PIXELS)


def build_perceptual(
    spec: str, *, device: str | torch.device, img_channels: int = 3, dtype: torch.dtype = torch.float32,
    trust: bool = False,
) -> PerceptualLoss:
    """Make the perceptual distance that `spec` names.

    Args:
        spec:         `lpips-vgg` (the paper's) or `lpips-alex` (the released program's), optionally with `:FILE` for
                      the weights; `random-vgg` or `random-alex` (LPIPS on untrained nets); `mse` or `l2` (of pixels);
                      or the path or URL of a feature net.
        device:       Where it will run.
        img_channels: Channels of the images to compare.
        dtype:        Type in which the net of an LPIPS computes.
        trust:        Open an unknown TorchScript file, now and in the future. Such a file can run any code.

    Returns:
        The distance in eval mode. Its weights require no gradients.

    Raises:
        UserError: The spec is unknown, or its weights can't be loaded.
    """
    if spec in _PIXELS:
        loss: PerceptualLoss = PixelMSE()
    elif img_channels not in (1, 3):
        raise UserError(f"perceptual net {spec} takes images of 1 or 3 channels, these have {img_channels}: use mse")
    elif spec in _RANDOM_NAMES:
        _warn_of_untrained(spec)
        loss = _random_lpips(_RANDOM_NAMES[spec], dtype=dtype)
    elif (found := _find_lpips(spec)) is not None:
        loss = _pretrained_lpips(*found, dtype=dtype)
    else:
        loss = _feature_distance(spec, device, trust=trust)
    return loss.to(device).eval().requires_grad_(False)


def build_stand_in(
    spec: str, *, device: str | torch.device, img_channels: int = 3, dtype: torch.dtype = torch.float32, resolution: int
) -> PerceptualLoss:
    """A distance that costs about as much as that of `build_perceptual`. It needs no file; its values mean nothing.

    VGG stands in for a feature net, or mean squared error if the images are too small for VGG.
    """
    lpips = _random_lpips("alex" if spec.partition(":")[0].endswith("-alex") else "vgg", dtype=dtype)
    return PixelMSE() if spec in _PIXELS or resolution < lpips.min_size else lpips.to(device)


def check_perceptual(spec: str, *, resolution: int = 64, trust: bool = False) -> None:
    """Check before long work starts that `build_perceptual(spec)` will succeed for images of `resolution`.

    This downloads missing weights into the cache.

    Raises:
        UserError: As `build_perceptual`; or the images are too small for the net.
    """
    found = _find_lpips(spec)
    name = found[0] if found is not None else _RANDOM_NAMES.get(spec)
    if name is not None:
        with torch.device("meta"):
            _check_size(resolution, _min_input_size(_BACKBONES[name].features()))
    if spec in _RANDOM_NAMES:
        _warn_of_untrained(spec)
    elif found is not None:
        check_all(functools.partial(_linear_weights_file, name), functools.partial(_load_backbone, *found))
    elif spec not in _NAMES:
        _probe(_feature_distance(spec, "cpu", trust=trust), spec, side=min(resolution, 64))


def _find_lpips(spec: str) -> tuple[str, str | None] | None:
    """Split `lpips-vgg:FILE` into (`vgg`, FILE), `lpips-vgg` into (`vgg`, None); None for other specs."""
    kind, _, file = spec.partition(":")
    return (_LPIPS_NAMES[kind], file or None) if kind in _LPIPS_NAMES else None


def _warn_of_untrained(spec: str) -> None:
    if distributed.rank() == 0:
        say_once(spec, f"Warning: {spec} is an UNTRAINED perceptual net: for trying things out, not for results")


def _feature_distance(spec: str, device: str | torch.device, *, trust: bool) -> FeatureDistance:
    if not is_url(spec) and not os.path.exists(spec):
        raise UserError(f"unknown perceptual net {spec!r}: neither one of {', '.join(_NAMES)} nor an existing file "
                        "(feature_net.py makes one from labelled images)")
    if trust:
        feature_nets.trust_net(spec)
    net = feature_nets.open_net(spec, device).module
    if isinstance(net, feature_nets.OnnxNet):
        raise UserError(f"{spec} is no perceptual net: ONNX files give no gradients, which training and projection "
                        "need; give a TorchScript net, or one by feature_net.py")
    loss = FeatureDistance(net)
    _probe(loss, spec, side=64)
    return loss


def _probe(loss: FeatureDistance, spec: str, *, side: int) -> None:
    """Raise UserError unless the net maps two images to finite, differentiable features [2, K]."""
    device = next((tensor.device for tensor in (*loss.parameters(), *loss.buffers())), None)
    probe = torch.zeros(2, 3, side, side, device=device, requires_grad=True)
    try:
        features, = loss.embed(probe)
    except (RuntimeError, torch.jit.Error) as e:  # unknown arguments; an exception inside TorchScript
        lines = str(e).strip().splitlines()
        reason = lines[-1 if isinstance(e, torch.jit.Error) else 0][:160]
        raise UserError(f"{spec} is no perceptual net: calling it with float [2, 3, {side}, {side}], "
                        f"resize_images=False, return_lpips=True failed: {reason}") from e
    expected = f"{spec} is no perceptual net: for 2 images it should give finite, differentiable features [2, K], but"
    if not isinstance(features, torch.Tensor):
        raise UserError(f"{expected} gave a {type(features).__name__}")
    if features.ndim != 2 or len(features) != 2 or not features.requires_grad:
        raise UserError(f"{expected} gave {list(features.shape)}"
                        f"{'' if features.requires_grad else ' without a gradient'}")
    if not torch.isfinite(features).all():
        raise UserError(f"{expected} gave numbers that are not finite")


def _check_size(side: int, min_size: int) -> None:
    if side < min_size:
        raise UserError(f"images of {side}x{side} pixels are too small for this perceptual net: it needs {min_size}x"
                        f"{min_size} or more (lpips-vgg takes 16x16)")


def _pretrained_lpips(name: str, file: str | None, *, dtype: torch.dtype) -> LPIPS:
    backbone = _BACKBONES[name]
    with torch.device("meta"):
        layers = backbone.features()
    layers.load_state_dict(_load_backbone(name, file), assign=True)
    linear = torch.load(_linear_weights_file(name), map_location="cpu", weights_only=True)
    weights = [linear[f"lin{i}.model.1.weight"] for i in range(len(backbone.taps))]
    return LPIPS(layers, backbone.taps, weights, dtype=dtype)


def _random_lpips(name: str, *, dtype: torch.dtype = torch.float32) -> LPIPS:
    """An untrained LPIPS: He-initialised convolutions, and weights of 1. It is the same on every machine."""
    backbone = _BACKBONES[name]
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    with torch.device("meta"):
        layers = backbone.features()
    layers = layers.to_empty(device="cpu")
    for conv in (layer for layer in layers if isinstance(layer, Conv2d)):
        with torch.no_grad():
            conv.weight.normal_(0, (2 / conv.weight[0].numel()) ** 0.5, generator=generator)
            conv.bias.zero_()
    weights = [torch.ones(layers[tap - 1].out_channels) for tap in backbone.taps]
    return LPIPS(layers, backbone.taps, weights, dtype=dtype)


def _linear_weights_file(name: str) -> Path:
    """The file with LPIPS's learned weights of channels, version 0.1, inside the package `lpips`."""
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise UserError(f"lpips-{name} needs the weights in the package lpips: pip install lpips")
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{name}.pth"
    if not path.is_file():
        raise UserError(f"the installed package lpips lacks {path}: pip install --force-reinstall 'lpips>=0.1.4'")
    return path


def _load_backbone(name: str, file: str | None) -> dict[str, torch.Tensor]:
    """torchvision's weights, from `file` or from a cache. The SHA-256 of the convolutions is checked.

    Raises:
        UserError: They can't be loaded, or the file holds other weights.
    """
    if file is not None and not os.path.isfile(file):
        raise UserError(f"lpips-{name}:{file}: there is no file {file}")
    path = _backbone_file(name) if file is None else Path(file)
    state = read_backbone(name, path)
    if digest(state) != _BACKBONES[name].sha256:
        advice = "delete it and try again" if file is None else f"SHA-256 over the convolutions is {digest(state)}"
        raise UserError(f"{path} holds other weights than {_BACKBONES[name].filename}: {advice}")
    return state


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the values of all tensors, in order, as hexadecimal text."""
    return hashlib.sha256(b"".join(value.cpu().contiguous().numpy().tobytes() for value in state.values())).hexdigest()


def _backbone_file(name: str) -> Path:
    """The file of torchvision's weights, in PyTorch's hub cache or in ours; downloaded into ours if missing."""
    filename = _BACKBONES[name].filename
    folders = [Path(torch.hub.get_dir(), "checkpoints"), cache_dir()]
    for path in (folder / filename for folder in folders):
        if path.is_file():
            return path
    url = _WEIGHTS_URL + filename
    try:
        open_url(url, sha256=Path(filename).stem.rpartition("-")[2]).close()
    except UserError as e:
        others = [f"lpips-{other}" for other in _BACKBONES if other != name]
        raise UserError(
            f"lpips-{name} needs {filename}, which is neither in {folders[0]} nor in {folders[1]}: {e}; or name a file "
            f"of these weights, with or without fully connected layers, as lpips-{name}:FILE; or use --perceptual="
            f"{', '.join(others)}, the path of a feature net (feature_net.py makes one), or random-vgg or "
            "random-alex, which are untrained"
        ) from e
    return cached_path(url)


def read_backbone(name: str, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read the weights of a backbone from a file by torch.save or a safetensors file, under torchvision's names.

    Raises:
        UserError: The file is damaged, or lacks some weights.
    """
    with torch.device("meta"):
        expected = _BACKBONES[name].features().state_dict()
    try:
        with open(path, "rb") as f:
            is_safetensors = network_formats.is_safetensors(f.read(16))
        if is_safetensors:
            state = safetensors_file.read_tensors(Path(path).read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key: state[f"features.{key}"] for key in expected}
        if any(value.shape != expected[key].shape or value.dtype != torch.float32 for key, value in tensors.items()):
            raise ValueError("other shapes or types")
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged, or holds other weights than {_BACKBONES[name].filename}: delete it and "
                        "try again") from e
    return tensors


def _as_rgb(img: torch.Tensor) -> torch.Tensor:
    return img.expand(-1, 3, -1, -1) if img.shape[1] == 1 else img


def _apply(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a layer. A padded 3x3 convolution of a single pixel (AlexNet at 32x32) needs only its central weights."""
    if isinstance(layer, Conv2d) and x.shape[2:] == (1, 1) and (layer.kernel_size, layer.padding) == ((3, 3), (1, 1)):
        return torch.nn.functional.linear(x.flatten(1), layer.weight[:, :, 1, 1], layer.bias)[:, :, None, None]
    return layer(x)


def _scale_gradient(x: torch.Tensor, gain: float) -> None:
    """Multiply the gradient of an intermediate result by `gain` in the backward pass."""
    if gain != 1 and x.requires_grad:
        x.register_hook(lambda grad: grad * gain)


def _unit_length(x: torch.Tensor) -> torch.Tensor:
    """Scale [N, C, H, W] to length 1 over C. At zero, `vector_norm` has the gradient 0, and a square root infinity."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _LPIPS_EPS)


def _min_input_size(layers: Sequential) -> int:
    """The smallest side of images for which every layer returns at least one pixel."""
    size = 1
    for layer in reversed(layers):
        if isinstance(layer, (Conv2d, MaxPool2d)):
            kernel, stride, padding = (int(v) if isinstance(v, (int, str)) else v[0]
                                       for v in (layer.kernel_size, layer.stride, layer.padding))
            size = max((size - 1) * stride + kernel - 2 * padding, 1)
    return size
