"""Feature nets in TorchScript files: where they come from, how they are called, what they are called in results."""

import dataclasses
import functools
import hashlib
import io
import os
from pathlib import PurePosixPath
from typing import Iterator, Literal
from urllib.parse import urlparse

import torch

from dnnlib.util import UserError, cached_path, is_url, open_url
from torch_utils.feature_nets import parse_torchscript

_STANDARD_NETS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
INCEPTION_URL = f"{_STANDARD_NETS}/inception-2015-12-05.pt"    # FID, KID, IS
VGG16_URL = f"{_STANDARD_NETS}/vgg16.pt"                        # precision/recall, path length

Output = Literal["features", "probabilities", "lpips"]

_CALL_OPTIONS: dict[Output, dict[str, bool]] = {
    "features":      {"return_features": True},
    "probabilities": {"no_output_bias": True},
    "lpips":         {"resize_images": False, "return_lpips": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNet:
    """A feature net on its device, with the one output that a metric needs.

    Calling it with [N, C, H, W] images, C = 1 or 3 (grayscale is repeated), gives float32 [N, F]. Outputs "features"
    and "probabilities" take uint8; "lpips" takes float in 0..255, and the squared L2 distance of two outputs is the
    perceptual distance.
    """

    name: str               # File name without its ending, for results.
    digest: str             # SHA-256 of the file.
    output: Output
    module: torch.nn.Module

    def check(self) -> None:
        """Try the net on two images.

        Raises:
            UserError: It fails, or what it gives is not what it should.
        """
        dtype = torch.float32 if self.output == "lpips" else torch.uint8
        img = torch.full([2, 3, 64, 64], 127, dtype=dtype, device=next(self._tensors(), torch.empty(0)).device)
        try:
            with torch.inference_mode():
                finite = bool(torch.isfinite(self(img)).all())
        except (RuntimeError, torch.jit.Error) as e:  # the latter is what TorchScript makes of an exception
            reason = str(e).strip().splitlines()[-1][:160]
            raise UserError(f"feature net {self.name} fails for images of 64x64 pixels: {reason}") from e
        if not finite:
            raise UserError(f"feature net {self.name} gives numbers that are not finite: give another one")

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if img.shape[1] == 1:
            img = img.repeat(1, 3, 1, 1)
        result = self.module(img, **_CALL_OPTIONS[self.output])
        if not isinstance(result, torch.Tensor) or result.ndim != 2 or result.shape[0] != img.shape[0]:
            got = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise UserError(f"feature net {self.name} gives {got} for {len(img)} images, expected [{len(img)}, F]")
        return result.to(torch.float64 if result.dtype == torch.float64 else torch.float32)


def load_feature_net(spec: str | os.PathLike, output: Output, *, device: torch.device | str = "cpu") -> FeatureNet:
    """Load a TorchScript feature net.

    Args:
        spec:   Path or URL; URLs are downloaded once.
        output: What the net will be asked for; it must have the call options for it.
        device: Where it runs.

    Raises:
        UserError: It can't be had (the message says where it was looked for, and what else can be done), is no
            TorchScript file, or lacks the interface.
    """
    spec = os.fspath(spec)
    name = PurePosixPath(urlparse(spec).path if is_url(spec) else spec.replace(os.sep, "/")).stem
    module, digest = _load_module(spec, _file_state(spec), str(device))
    expected = _CALL_OPTIONS[output]
    missing = [option for option in expected if option not in _call_arguments(module)]
    if missing:
        raise UserError(f"feature net {spec} can't be called with {', '.join(f'{k}={expected[k]}' for k in missing)}: "
                        f"it has no {output} for this metric; give another net, or leave out --detector")
    return FeatureNet(name=name, digest=digest, output=output, module=module)


def _file_state(spec: str) -> tuple[int, int] | None:
    """Tells apart two files that stood at one path one after the other."""
    if is_url(spec) or not os.path.isfile(spec):
        return None
    stat = os.stat(spec)
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=2)  # the two nets of a usual list of metrics stay loaded between evaluations
def _load_module(spec: str, state: tuple[int, int] | None, device: str) -> tuple[torch.nn.Module, str]:
    try:
        with open_url(spec) as f:
            data = f.read()
    except UserError as e:
        place = f"put the file at {cached_path(spec)}, or " if is_url(spec) else ""
        raise UserError(f"the feature net {spec} can't be had: {e}; {place}give another one with --detector=PATH "
                        "(feature_net.py trains one; results are then named after it)") from e
    module = parse_torchscript(io.BytesIO(data), name=spec, device=device)
    return module, hashlib.sha256(data).hexdigest()


def _call_arguments(module: torch.nn.Module) -> list[str]:
    return [argument.name for argument in module.forward.schema.arguments]
