"""Where D looks: Grad-CAM (Selvaraju et al., ICCV 2017) of D's realness score (GLeaD, arXiv 2212.03752, Fig. 6)."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import PIL.Image
import torch

from dnnlib.util import UserError
from sampling.images import save_image, seed_latents, to_pixels, to_tensor
from sampling.reconstruction import whole_groups
from torch_utils import misc
from torch_utils.formats import read_networks
from training.runs.run_scores import open_training_set, read_options
from training.runs.training_state import list_pickles

from .fairness import draw_sample

PREFERRED_RES = 64  # As in the paper.
_SHARE = 0.8        # The share of the attention whose area is measured.
_COLUMNS = 8        # Images in each row of a run's picture.


class Attention(NamedTuple):
    """D's realness scores of images, and where they come from."""

    scores: np.ndarray  # float64 [N].
    maps: np.ndarray    # float64 [N, r, r], non-negative.


def pick_resolution(D: torch.nn.Module, wanted: int | None) -> int:
    """The resolution of D's features to look at. The default is 64, or the highest one below.

    Raises:
        UserError: D has no features of the wanted resolution.
    """
    there = sorted(res // 2 for res in D.block_resolutions)
    if wanted is None:
        return max(res for res in there if res <= PREFERRED_RES)
    if wanted not in there:
        raise UserError(f"--res is {wanted}, and D has feature maps of {', '.join(map(str, there))} pixels a side")
    return wanted


def attend(D: torch.nn.Module, img: torch.Tensor, c: torch.Tensor, *, res: int) -> Attention:
    """Grad-CAM of the realness score: the ReLU of the sum of D's features, weighted by their mean gradients.

    Because of the minibatch standard deviation, the score of an image also depends on the other images of its group.
    Only the gradient with respect to its own features counts.

    Args:
        D:   Discriminator in eval mode.
        img: float32 [N, C, R, R] in about [-1, 1], on any device.
        c:   Labels, float32 [N, c_dim].
        res: Resolution r of the backbone's features.
    """
    device = next(D.parameters()).device
    order = whole_groups(D, len(img))
    features: list[torch.Tensor] = []
    block = getattr(D, f"b{2 * res}")   # a block halves the resolution
    handle = block.register_forward_hook(lambda module, inputs, outputs: features.append(outputs[0]))
    try:
        with torch.enable_grad():
            logits = D(img[order].to(device).requires_grad_(True), c[order].to(device), force_fp32=True)
    finally:
        handle.remove()
    x, = features
    maps = []
    for index in range(len(img)):
        gradient, = torch.autograd.grad(logits[index, 0], x, retain_graph=True)
        weights = gradient[index].double().mean(dim=[1, 2])     # [C]
        maps.append(torch.einsum("c,chw->hw", weights, x[index].detach().double()).relu().cpu().numpy())
    return Attention(logits[:len(img), 0].detach().double().cpu().numpy(), np.stack(maps))


def attended_area(attention: np.ndarray, share: float = _SHARE) -> float:
    """The smallest part of the area of a map [r, r] that holds the part `share` of its sum; NaN if the sum is 0."""
    values = np.sort(attention.ravel())[::-1].cumsum()
    if not values[-1] > 0:
        return float("nan")
    return float(np.searchsorted(values, share * values[-1] * (1 - 1e-12)) + 1) / values.size


def overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Scale a map [r, r] up, and lay it on an image uint8 [R, R, C], which is made gray.

    Returns:
        uint8 [R, R, 3]: gray where there is no attention, violet to yellow where there is more.
    """
    scaled = attention / attention.max() if attention.max() > 0 else attention
    side = image.shape[0]
    resized = PIL.Image.fromarray(scaled.astype(np.float32)).resize((side, side), PIL.Image.Resampling.BILINEAR)
    heat = np.asarray(resized)
    colours: Any = matplotlib.colormaps["plasma"](heat)[:, :, :3]
    opacity = 0.8 * np.sqrt(heat)[:, :, None]
    gray = image.mean(axis=2, keepdims=True) / 255
    return (255 * ((1 - opacity) * gray + opacity * colours)).round().astype(np.uint8)


def write_picture(run_dir: Path) -> None:
    """Write `attentionKKKKKK.png` for the newest network pickle of a run, unless the file exists.

    It has four rows: training images, the attention of D to them, images that G_ema makes with the same labels, and the
    attention of D to those.

    Raises:
        UserError: There is no pickle with D and G_ema, D takes more channels than images have, or the training images
                   can't be read.
    """
    pickles = list_pickles(run_dir)
    if not pickles:
        raise UserError(f"{run_dir} holds no network pickles")
    newest = pickles[-1].path
    path = newest.with_name(newest.stem.replace("network-snapshot-", "attention") + ".png")
    if path.exists():
        return
    with open(newest, "rb") as f:
        networks = read_networks(f, only=("D", "G_ema"))
    for key in ("D", "G_ema"):
        if networks[key] is None:
            raise UserError(f"{newest} holds no {key}")
        misc.check_network(networks[key].eval().requires_grad_(False), str(newest), key)
    G, D = networks["G_ema"], networks["D"]
    if D.img_channels != G.img_channels:
        raise UserError(f"{newest}: D takes {D.img_channels} channels, and images have {G.img_channels}")
    trained_on = read_options(run_dir).training_set_kwargs
    data = open_training_set(str(run_dir), trained_on, use_labels=G.c_dim > 0)
    real = draw_sample(data, count=_COLUMNS, seed=0)
    with torch.no_grad():
        fakes = G(seed_latents(range(len(real.labels)), G.z_dim), real.labels, noise_mode="const").float()
    rows = []
    for pixels in (real.pixels.transpose(0, 2, 3, 1), to_pixels(fakes)):
        found = attend(D, to_tensor(pixels), real.labels, res=pick_resolution(D, None))
        rows += [np.broadcast_to(pixels, [*pixels.shape[:3], 3]), np.stack(list(map(overlay, pixels, found.maps)))]
    save_image(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]), path)
