"""DINOv2 (Oquab et al., 2023) as a feature net, with the authors' weights and the architecture of the package timm."""

import io
import pickle
from typing import Any

import torch

from dnnlib.util import UserError
from torch_utils.formats import is_safetensors
from torch_utils.formats.safetensors_file import read_tensors

_TIMM_NAMES = {384: "vit_small_patch14_dinov2", 768: "vit_base_patch14_dinov2", 1024: "vit_large_patch14_dinov2"}
_SIDE, _PATCH = 224, 14
_OFFSET = 0.1       # DINOv2 interpolates positions by the factor (16 + 0.1) / 37.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2(torch.nn.Module):
    """Features are the class token. Images are resized to 224x224 (bicubic, antialiased), as in EDM2's evaluation."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1))

    def forward(self, img: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        """Features float32 [N, F] of images uint8 [N, 3, H, W]."""
        x = torch.nn.functional.interpolate(img.to(torch.float32), size=(_SIDE, _SIDE), mode="bicubic", antialias=True)
        return self.net((x.clamp(0, 255) / 255 - self.get_buffer("mean")) / self.get_buffer("std"))


def read_state(data: bytes) -> dict[str, torch.Tensor] | None:
    """The weights if `data` is a safetensors or torch.save file with those of a DINOv2; otherwise None."""
    try:
        state = read_tensors(data) if is_safetensors(data) else torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UserError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, IndexError):
        return None
    is_ours = isinstance(state, dict) and {"cls_token", "pos_embed", "blocks.0.ls1.gamma"} <= state.keys()
    return state if is_ours and all(isinstance(value, torch.Tensor) for value in state.values()) else None


def build(state: dict[str, torch.Tensor], name: str) -> DINOv2:
    """The net with these weights.

    Raises:
        UserError: timm is not installed, or the weights belong to an unsupported variant.
    """
    try:
        import timm
    except ImportError as e:
        raise UserError(f"{name} holds the weights of a DINOv2, whose architecture is in the package timm: pip install "
                        "timm") from e
    width = state["cls_token"].shape[-1]
    if width not in _TIMM_NAMES or "register_tokens" in state:
        raise UserError(f"{name}: of DINOv2, the nets of widths {', '.join(map(str, _TIMM_NAMES))} without registers "
                        f"are known, this one has width {width}")
    net = timm.create_model(_TIMM_NAMES[width], img_size=_SIDE, num_classes=0)
    weights: dict[str, Any] = {key: value for key, value in state.items() if key != "mask_token"}
    try:
        net.load_state_dict(weights | {"pos_embed": _positions(state["pos_embed"])})
    except RuntimeError as e:
        raise UserError(f"{name}: its tensors are not those of {_TIMM_NAMES[width]}") from e
    return DINOv2(net)


def _positions(embedding: torch.Tensor) -> torch.Tensor:
    """Interpolate the embeddings of 37 x 37 patches, [1, 1 + 37 * 37, F], to 16 x 16 patches, like DINOv2 itself."""
    side, given = _SIDE // _PATCH, round((embedding.shape[1] - 1) ** 0.5)
    if given == side:
        return embedding
    grid = embedding[:, 1:].float().reshape(1, given, given, -1).permute(0, 3, 1, 2)    # [1, F, 37, 37]
    grid = torch.nn.functional.interpolate(grid, scale_factor=(side + _OFFSET) / given, mode="bicubic")
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
