"""The viewer's pictures: images of seeds, mixed styles, interpolations, and reconstructions by D and G."""

from typing import NamedTuple, Sequence

import numpy as np
import torch

from dnnlib.util import UserError
from sampling import images as sampling
from sampling.input_images import InputImages
from sampling.reconstruction import pair_grid, rebuild

MAX_SEED = (1 << 32) - 1    # NumPy's limit.
MAX_IMAGES = 16             # In one picture.


class Rebuilder(NamedTuple):
    """The networks that reconstruct images."""

    G: torch.nn.Module      # Not its average, but the one that D was trained with, if the file has it.
    D: torch.nn.Module
    res_g: int              # The result of `find_res_g`.


class Model(NamedTuple):
    """A network in the viewer. All modules are in eval mode on one device."""

    name: str
    G: torch.nn.Module                  # Makes the images of seeds.
    rebuilder: Rebuilder | None
    no_rebuilder: str = ""              # Why there is no rebuilder.
    label: np.ndarray | None = None     # float32 [c_dim]; if given, it is used instead of a class.


class Look(NamedTuple):
    """Settings of all images in a picture."""

    psi: float = 1              # Truncation.
    class_idx: int | None = 0   # For conditional networks.


def count_classes(models: Sequence[Model]) -> int:
    """The number of classes to choose from; 0 if no network needs a class.

    Raises:
        UserError: The networks have different numbers of classes.
    """
    known = {model.G.c_dim: model.name for model in models if model.G.c_dim and model.label is None}
    if len(known) > 1:
        raise UserError("networks with different numbers of classes don't stand side by side: "
                        + ", ".join(f"{name} knows {number}" for number, name in known.items()))
    return max(known, default=0)


def seeds_picture(model: Model, first: int | None, count: int, look: Look) -> np.ndarray:
    """The images of `count` seeds from `first` on, as `generate.py --seeds` makes them; a grid uint8 [H, W, C]."""
    first = _checked(first)
    images = sampling.synthesize(model.G, _ws(model, range(first, min(first + count, MAX_SEED + 1)), look))
    return _grid(images, cols=min(len(images), 4))


def mix_picture(model: Model, a: int | None, b: int | None, layers: Sequence[int], look: Look) -> np.ndarray:
    """The images of the seeds a and b, and of a with b's styles in `layers`, as `style_mixing.py` makes it."""
    ws = _ws(model, [_checked(a), _checked(b)], look)
    mixed = sampling.mix_styles(ws[:1], ws[1:], [layer for layer in layers if layer < model.G.num_ws])
    return _grid(sampling.synthesize(model.G, torch.cat([ws, mixed])), cols=3)


def path_picture(model: Model, a: int | None, b: int | None, position: float, space: str, look: Look) -> np.ndarray:
    """An image between the seeds a and b: a frame of `generate.py --video --seeds=a,b`.

    Args:
        position: From 0 = a to 1 = b.
        space:    `w` or `z`, as `generate.py --interpolate`.
    """
    seeds = [_checked(a), _checked(b)]
    if space == "w":
        path = sampling.w_path(_ws(model, seeds, look))
    else:
        path = sampling.z_path(sampling.seed_latents(seeds, model.G.z_dim), lambda z: _map(model, z, look))
    return _grid(sampling.synthesize(model.G, path(np.array([position]))), cols=1)


def rebuilt_picture(model: Model, paths: Sequence[str]) -> tuple[np.ndarray, str]:
    """Users' images with their reconstructions below, and a line with the errors of each.

    Raises:
        UserError: A file is no image, or the network can't reconstruct images.
    """
    if model.rebuilder is None:
        raise UserError(model.no_rebuilder)
    G, D, res_g = model.rebuilder
    found = list(InputImages(paths, resolution=G.img_resolution, channels=G.img_channels, max_images=MAX_IMAGES))
    originals = np.stack([image.pixels for image in found])
    rebuilt = rebuild(G, D, sampling.to_tensor(originals), res_g=res_g)
    lines = [f"{image.name}: mse {mse:.5f}, psnr {sampling.psnr(image.pixels, pixels):.2f} dB"
             + (f" ({image.changes} to fit)" if image.changes else "")
             for image, pixels, mse in zip(found, rebuilt.pixels, rebuilt.mse)]
    return pair_grid(list(zip(originals, rebuilt.pixels)), columns=4).pixels, "\n".join(lines)


def _checked(seed: int | None) -> int:
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED}")
    return seed


def _ws(model: Model, seeds: Sequence[int], look: Look) -> torch.Tensor:
    return _map(model, sampling.seed_latents(seeds, model.G.z_dim), look)


def _map(model: Model, z: torch.Tensor, look: Look) -> torch.Tensor:
    label = model.label
    if label is None and model.G.c_dim:
        if look.class_idx is None or not 0 <= look.class_idx < model.G.c_dim:
            raise UserError(f"a class is a whole number from 0 to {model.G.c_dim - 1}")
        label = np.eye(model.G.c_dim, dtype=np.float32)[look.class_idx]
    return sampling.map_latents(model.G, z, label=label, truncation=sampling.Truncation(look.psi))


def _grid(images: np.ndarray, *, cols: int) -> np.ndarray:
    grid = sampling.ImageGrid(-(-len(images) // cols), cols, shape=images.shape[1:])
    for index, image in enumerate(images):
        grid.place(*divmod(index, cols), image)
    return grid.pixels
