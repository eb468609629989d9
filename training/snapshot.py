"""Image grids that a run saves with its snapshots, and transfer learning from the networks of another run."""

import os
import re
import zlib
from pathlib import Path
from typing import Callable, Collection, NamedTuple

import numpy as np
import PIL.Image
import torch

from dnnlib.util import UserError, atomic_write, open_url
from torch_utils import distributed
from torch_utils.formats import read_networks

from .config.schema import TrainingConfig, sizes_of
from .data.dataset import ImageFolderDataset
from .networks import Discriminator, Generator
from .tasks import reconstruct

_MAX_CELLS = 32                 # Columns and rows of a grid.
# Four times as fast as Pillow's defaults, with files that are 0 to 3 % larger.
_PNG_OPTIONS = {"compress_level": 1, "compress_type": zlib.Z_RLE}
_RECON_COLUMNS = 16


class Grid(NamedTuple):
    """A fixed selection of real images, labels and latents. Each snapshot of a run draws images from it."""

    columns: int
    rows: int
    images: np.ndarray      # Real images, uint8 [columns * rows, C, H, W], row by row.
    z: torch.Tensor         # [columns * rows, z_dim] on the CPU.
    c: torch.Tensor         # [columns * rows, c_dim] on the CPU.


def choose_grid(dataset: ImageFolderDataset, *, z_dim: int, seed: int, size: int) -> Grid:
    """Choose random images that fill the grid. If the dataset has labels, each column shows one label.

    Args:
        size: Largest width and height in pixels.
    """
    columns = rows = min(max(size // dataset.resolution, 1), _MAX_CELLS)
    rng = np.random.RandomState(seed)
    if dataset.has_labels:
        indices = _columns_by_label(dataset, columns, rows, rng)
    else:
        indices = np.resize(rng.permutation(len(dataset)), columns * rows)
    images, labels = zip(*[dataset[int(i)] for i in indices])
    z = torch.from_numpy(rng.randn(columns * rows, z_dim)).float()
    return Grid(columns, rows, np.stack(images), z, torch.from_numpy(np.stack(labels)))


def _columns_by_label(dataset: ImageFolderDataset, columns: int, rows: int, rng: np.random.RandomState) -> np.ndarray:
    groups: dict[tuple, list[int]] = {}
    for i in range(len(dataset)):
        groups.setdefault(tuple(dataset.get_details(i).raw_label.flatten().tolist()), []).append(i)
    names = sorted(groups)
    if len(names) > columns:  # choose labels at random, and keep their order
        names = [names[k] for k in sorted(rng.permutation(len(names))[:columns])]
    shown = [np.resize(rng.permutation(groups[names[k % len(names)]]), rows) for k in range(columns)]
    return np.stack(shown, axis=1).flatten()


def to_uint8(img: torch.Tensor) -> np.ndarray:
    """Convert images of any shape in about [-1, 1] to uint8 on the CPU."""
    return _quantise(img).cpu().numpy()


def _quantise(img: torch.Tensor) -> torch.Tensor:
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def save_image_grid(path: str | os.PathLike, images: np.ndarray, *, columns: int) -> None:
    """Write uint8 images [N, C, H, W] as one PNG, row by row."""
    n, channels, height, width = images.shape
    grid = images.reshape(n // columns, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(n // columns * height, columns * width, channels)
    with atomic_write(path) as f:
        PIL.Image.fromarray(grid[:, :, 0] if channels == 1 else grid).save(f, format="PNG", **_PNG_OPTIONS)


@torch.no_grad()
def draw_fakes(G_ema: Generator, grid: Grid, *, batch_gpu: int) -> np.ndarray:
    """Images of G_ema for the grid's latents, with constant noise: uint8 [columns * rows, C, H, W]."""
    device = next(G_ema.parameters()).device
    z, c = grid.z.to(device), grid.c.to(device)
    images = [_quantise(G_ema(z, c, noise_mode="const")) for z, c in zip(z.split(batch_gpu), c.split(batch_gpu))]
    return torch.cat(images).cpu().numpy()  # a single copy, so that the host waits for the GPU only once


def save_first_pictures(
    run_dir: Path, G_ema: Generator, grid: Grid, *, batch_gpu: int, save: Callable[..., None]
) -> None:
    """Save `reals.png` and `fakes_init.png`. For `save`, see `save_pictures`."""
    save(run_dir / "reals.png", save_image_grid, grid.images, columns=grid.columns)
    fakes = draw_fakes(G_ema, grid, batch_gpu=batch_gpu)
    save(run_dir / "fakes_init.png", save_image_grid, fakes, columns=grid.columns)


def save_pictures(
    pkl: Path, G: Generator, D: Discriminator, G_ema: Generator, grid: Grid, *, config: TrainingConfig,
    save: Callable[..., None],
) -> None:
    """Save `fakesKKKKKK.png`, and `reconstructionsKKKKKK.png` if D has heads.

    Args:
        pkl:  The network pickle of the same snapshot, `network-snapshot-KKKKKK.pkl`.
        save: Called with a path, a function that writes the file, and further arguments of that function. It can write
              in the background, because encoding a grid as PNG takes seconds.
    """
    fakes = draw_fakes(G_ema, grid, batch_gpu=config.batch_gpu)
    kimg = pkl.stem.rpartition("-")[2]
    save(pkl.with_name(f"fakes{kimg}.png"), save_image_grid, fakes, columns=grid.columns)
    if getattr(D, "has_heads", False):
        images = draw_reconstructions(G, G_ema, D, grid, res_g=config.D.res_g)
        save(pkl.with_name(f"reconstructions{kimg}.png"), save_image_grid, images, columns=len(images) // 4)


@torch.no_grad()
def draw_reconstructions(G: Generator, G_ema: Generator, D: Discriminator, grid: Grid, *, res_g: int) -> np.ndarray:
    """Four rows: real images, their reconstructions, fake images, their reconstructions (GLeaD, Fig. 5).

    Returns:
        uint8 [4 * columns, C, H, W].
    """
    device = next(G.parameters()).device
    n = min(_RECON_COLUMNS, len(grid.images))
    c = grid.c[:n].to(device)
    real = torch.from_numpy(grid.images[:n]).to(device).float() / 127.5 - 1
    fake = G_ema(grid.z[:n].to(device), c, noise_mode="const")
    rows = []
    for img in (real, fake):
        group = D.minibatch_group
        parts = [D.run(x, y) for x, y in zip(img.split(group or n), c.split(group or n))]
        rebuilt = torch.cat([reconstruct(G, out, res_g=res_g, noise_mode="const") for out in parts])
        rows += [_quantise(img), _quantise(rebuilt)]
    return torch.cat(rows).cpu().numpy()


def start_from(source: str, G: Generator, D: Discriminator, G_ema: Generator) -> None:
    """Transfer learning: copy all tensors that fit from a network file, a path or URL. It may lack some networks."""
    with open_url(source) as f:
        networks = read_networks(f, only=("G", "D", "G_ema"))
    for key, spare, target in (("G", "G_ema", G), ("G_ema", "G", G_ema)):
        network = networks[key] or networks[spare]
        copy_matching(network, target, label=f"{key} of {source}{_sizes(network)}")
    if networks["D"] is None:
        distributed.print0(f"{source} holds no D: it starts anew")
    else:
        copy_matching(networks["D"], D, label=f"D of {source}")


def _sizes(G: torch.nn.Module) -> str:
    """The sizes of a generator in words; empty if they are unknown."""
    sizes = sizes_of(G)
    if sizes is None:
        return ""
    return f" ({sizes.map_depth} mapping layers, cbase {sizes.channel_base}, cmax {sizes.channel_max})"


@torch.no_grad()
def copy_matching(source: torch.nn.Module, target: torch.nn.Module, *, label: str) -> None:
    """Copy parameters and buffers of the same name and shape, and print which ones were not copied.

    Args:
        label: Names the source in messages.

    Raises:
        UserError: No weight fits.
    """
    theirs = source.state_dict()
    ours = target.state_dict()
    matching = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    if not any(ours[name].ndim > 1 and name.endswith("weight") for name in matching):
        raise UserError(f"nothing in {label} fits the networks of this run: check --cfg and the resolution")
    for name in matching:
        ours[name].copy_(theirs[name])
    distributed.print0(f"Copied {len(matching)} of {len(ours)} tensors from {label}")
    for what, names, others in (
        ("  left out, because this run has none", theirs.keys() - ours.keys(), theirs),
        ("  new in this run, because the source has none", ours.keys() - theirs.keys(), ours),
        ("  new in this run, because of another shape", (ours.keys() & theirs.keys()) - set(matching), ours),
    ):
        if names:
            distributed.print0(f"{what}: {_in_groups(names, others)}")


def _in_groups(names: Collection[str], of: Collection[str]) -> str:
    """Summarise names of tensors by layer, such as `mapping.fc2 to mapping.fc7 (6 layers)`.

    Args:
        names: The tensors to name.
        of:    All tensors of their network. A layer is named as a whole only if all of its tensors are in `names`.
    """
    layers = {name: ".".join(name.split(".")[:2]) if name.count(".") > 1 else name.partition(".")[0] for name in of}
    groups: list[list[str]] = []    # Each holds layers of consecutive numbers: mapping.fc2, mapping.fc3, ...
    for layer in dict.fromkeys(layers[name] for name in of if name in names):
        tensors = [name for name in of if layers[name] == layer]
        missing = [name for name in tensors if name in names]
        stem, number = re.fullmatch(r"(.*?)(\d*)", layer).groups()
        whole = len(missing) == len(tensors)
        if whole and groups and number and groups[-1][-1] == f"{stem}{int(number) - 1}":
            groups[-1].append(layer)
        else:
            groups += [[layer]] if whole else [[name] for name in missing]
    return ", ".join(f"{g[0]} to {g[-1]} ({len(g)} layers)" if len(g) > 2 else ", ".join(g) for g in groups)
