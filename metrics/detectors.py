"""Feature nets of metrics: loading them, calling them, and their names in results."""

import dataclasses
import functools
import itertools
import os
from pathlib import PurePosixPath
from typing import Callable
from urllib.parse import urlparse

import torch

from dnnlib.util import UserError, is_url, open_url
from metrics.registry import DINOV2_URL, INCEPTION_URL, VGG16_URL
from torch_utils.formats import feature_nets
from torch_utils.formats.feature_nets import CALL_OPTIONS, OpenNet, Output

STANDARD_URLS = (INCEPTION_URL, VGG16_URL, DINOV2_URL)
PUBLISHED_SHA256 = {  # By URL. Inception's is in k-diffusion. For the other nets, the first download is trusted.
    INCEPTION_URL: "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}

# Functions (spec, device) -> net for nets that are given as NAME or NAME:FILE, by NAME.
OPENERS: dict[str, Callable[[str, str], OpenNet]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNet:
    """A feature net on its device, with the one output that a metric needs.

    Call it with images [N, C, H, W], C = 1 or 3 (grayscale is repeated). It returns [N, F], float32, or float64 if the
    net does. For the outputs "features" and "probabilities", images are uint8. For "lpips", they are float in 0..255,
    and the squared L2 distance of two rows is the perceptual distance.
    """

    name: str               # File name without its suffix, for results.
    digest: str             # SHA-256 of the file.
    output: Output
    module: torch.nn.Module

    def check(self) -> None:
        """Try the net on two images.

        Raises:
            UserError: The net fails, or its output has the wrong shape or numbers that are not finite.
        """
        dtype = torch.float32 if self.output == "lpips" else torch.uint8
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        img = torch.full([2, 3, 64, 64], 127, dtype=dtype, device=next(tensors, torch.empty(0)).device)
        try:
            with torch.inference_mode():
                finite = bool(torch.isfinite(self(img)).all())
        except (RuntimeError, torch.jit.Error) as e:  # TorchScript turns exceptions into torch.jit.Error
            reason = str(e).strip().splitlines()[-1][:160]
            raise UserError(f"feature net {self.name} fails for images of 64x64 pixels: {reason}") from e
        if not finite:
            raise UserError(f"feature net {self.name} gives numbers that are not finite: give another one")

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if img.shape[1] == 1:
            img = img.repeat(1, 3, 1, 1)
        result = self.module(img, **CALL_OPTIONS[self.output])
        if not isinstance(result, torch.Tensor) or result.ndim != 2 or result.shape[0] != img.shape[0]:
            got = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise UserError(f"feature net {self.name} gives {got} for {len(img)} images, expected [{len(img)}, F]")
        return result.to(torch.float64 if result.dtype == torch.float64 else torch.float32)


def load_feature_net(
    spec: str | os.PathLike, output: Output, *, device: torch.device | str = "cpu", trust: bool = False
) -> FeatureNet:
    """Load a feature net: TorchScript, ONNX, weights of DINOv2, or a net that feature_net.py trained.

    Args:
        spec:   Path or URL; URLs are downloaded once. Or NAME or NAME:FILE, with NAME in `OPENERS`.
        output: The output that the metric needs. The net must take the call options for it.
        device: Where the net runs.
        trust:  Trust the net from now on if it is a TorchScript file, which can run any code. The standard nets need
                no trust: their SHA-256 is published, or the first download from their URL is trusted.

    Raises:
        UserError: The net can't be had (the message says where it was looked for, and what to do), is no feature net,
            is a TorchScript file that is not trusted, or lacks the interface.
    """
    spec = os.fspath(spec)
    kind = spec.partition(":")[0]
    path = urlparse(spec).path if is_url(spec) else spec.replace(os.sep, "/")
    name = kind if kind in OPENERS else PurePosixPath(path).stem
    try:
        if trust and kind not in OPENERS:
            feature_nets.trust_net(spec)
        net = _open_net(spec, _file_state(spec), str(device))
    except UserError as e:
        raise UserError(f"the feature net {spec} can't be used: {e}; or give another one with --detector=PATH "
                        "(feature_net.py trains one; results are then named after it)") from e
    if output not in net.outputs:
        options = ", ".join(f"{k}={v}" for k, v in CALL_OPTIONS[output].items())
        raise UserError(f"feature net {spec} can't be called with {options}: it has no {output} for this metric; give "
                        "another net, or leave out --detector")
    return FeatureNet(name=name, digest=net.digest, output=output, module=net.module)


def _file_state(spec: str) -> tuple[int, int] | None:
    """Time and size of a local file. They tell apart two files that had the same path at different times."""
    if is_url(spec) or not os.path.isfile(spec):
        return None
    stat = os.stat(spec)
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=2)  # a usual list of metrics needs two nets, which stay loaded between evaluations
def _open_net(spec: str, state: tuple[int, int] | None, device: str) -> OpenNet:
    opener = OPENERS.get(spec.partition(":")[0])
    if opener is not None:
        return opener(spec, device)
    if spec in PUBLISHED_SHA256:
        open_url(spec, sha256=PUBLISHED_SHA256[spec]).close()
    elif spec in STANDARD_URLS:
        feature_nets.trust_net(spec, always_the_same=True)
    return feature_nets.open_net(spec, device, trusted=tuple(PUBLISHED_SHA256.values()))


def is_standard(digest: str, url: str) -> bool:
    """Whether the net with this SHA-256 is the standard net at `url`, wherever the file is."""
    return digest == PUBLISHED_SHA256.get(url) or url in feature_nets.origins(digest)
