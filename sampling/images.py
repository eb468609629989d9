"""Making images: latents of seeds, paths between latents, images, grids and files."""

import io
import os
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

import numpy as np
import PIL.Image
import torch
from scipy.interpolate import CubicSpline

from dnnlib.util import UserError, atomic_write
from torch_utils.misc import slerp
from training.snapshot import to_uint8

GRID_MARGIN = 2  # Pixels around and between the images of a grid.
MAX_GRID_PIXELS = 1 << 29

LatentPath = Callable[[np.ndarray], torch.Tensor]  # Positions [N] along the path -> ws [N, num_ws, w_dim].


class Truncation(NamedTuple):
    """The truncation trick: w moves towards the mean w."""

    psi: float = 1              # 1 = no truncation, 0 = the mean w.
    cutoff: int | None = None   # Truncate only the first layers, this many; None = all.


def seed_latents(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """The z's of seeds, float32 [N, z_dim] on the CPU. They are the same in all StyleGAN2-style projects."""
    z = np.concatenate([np.random.RandomState(seed).randn(1, z_dim) for seed in seeds])
    return torch.from_numpy(z).to(torch.float32)


@torch.no_grad()
def map_latents(
    G: torch.nn.Module,
    z: torch.Tensor,
    *,
    label: np.ndarray | None = None,
    truncation: Truncation = Truncation(),
    batch: int = 64,
) -> torch.Tensor:
    """Map z's to ws.

    Args:
        G:          Generator in eval mode.
        z:          Float [N, z_dim], on any device.
        label:      Label of all images, float32 [c_dim]; None for unconditional networks.
        truncation: How far ws move towards the mean.
        batch:      Number of z's that are mapped at a time.

    Returns:
        float32 [N, num_ws, w_dim] on G's device.
    """
    device = next(G.parameters()).device
    c = torch.zeros(0) if label is None else torch.from_numpy(label)
    options = dict(truncation_psi=truncation.psi, truncation_cutoff=truncation.cutoff)
    parts = [G.mapping(part.to(device, torch.float32), c.to(device).expand(len(part), -1), **options)
             for part in z.split(batch)]
    return torch.cat(parts)


def default_layers(num_ws: int) -> list[int]:
    """The layers that style mixing replaces by default: 0 to 6 as in StyleGAN2-ADA, but not the last one."""
    return list(range(min(7, num_ws - 1)))


def mix_styles(ws: torch.Tensor, styles: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """A copy of ws [N, num_ws, w_dim] in which `layers` are those of `styles`, of the same shape."""
    mixed = ws.clone()
    mixed[:, layers] = styles[:, layers]
    return mixed


@torch.no_grad()
def synthesize(
    G: torch.nn.Module,
    ws: torch.Tensor,
    *,
    noise_mode: str = "const",
    noise_seeds: Sequence[int] | None = None,
    batch: int = 8,
) -> np.ndarray:
    """Make the images of ws.

    Args:
        G:           Generator in eval mode.
        ws:          float32 [N, num_ws, w_dim], on any device.
        noise_mode:  `const`, `none` or `random`.
        noise_seeds: For `random`: one seed for each image. Its noise then doesn't depend on the other images.
        batch:       Number of images made at a time.

    Returns:
        uint8 [N, H, W, C].
    """
    ws = ws.to(next(G.parameters()).device)
    if noise_mode != "random":
        return np.concatenate([to_pixels(G.synthesis(part, noise_mode=noise_mode)) for part in ws.split(batch)])
    assert noise_seeds is not None and len(noise_seeds) == len(ws)
    images = []
    for seed, part in zip(noise_seeds, ws.split(1)):
        torch.manual_seed(seed)
        images.append(to_pixels(G.synthesis(part, noise_mode=noise_mode)))
    return np.concatenate(images)


def to_pixels(img: torch.Tensor) -> np.ndarray:
    """Convert images [N, C, H, W] in about [-1, 1] to uint8 [N, H, W, C]."""
    return to_uint8(img.to(torch.float32)).transpose(0, 2, 3, 1)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert images uint8 [N, H, W, C] to float32 [N, C, H, W] in [-1, 1], as D sees them in training."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")) / 127.5 - 1


# ----------------------------------------------------------------------------------------------------------------------
# Closed paths through K key latents: position k is key k, and position K is key 0 again.


def w_path(keys: torch.Tensor) -> LatentPath:
    """A closed cubic spline, with continuous second derivative, through ws [K, num_ws, w_dim], K >= 2."""
    values = keys.detach().cpu().numpy().astype(np.float64)
    spline = CubicSpline(np.arange(len(values) + 1), np.concatenate([values, values[:1]]), bc_type="periodic")
    return lambda positions: torch.from_numpy(spline(positions).astype(np.float32)).to(keys.device)


def z_path(keys: torch.Tensor, to_ws: Callable[[torch.Tensor], torch.Tensor]) -> LatentPath:
    """Great circles from each of the z's [K, z_dim], K >= 2, to the next. `to_ws` maps z's on the circles to ws."""
    z = keys.cpu().double()

    def path(positions: np.ndarray) -> torch.Tensor:
        start = np.floor(positions).astype(int)
        weight = torch.from_numpy(positions - start)[:, None]
        a, b = z[start % len(z)], z[(start + 1) % len(z)]
        lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b)]
        return to_ws((slerp(a, b, weight) * torch.lerp(*lengths, weight)).to(torch.float32))

    return path


def frames_along(
    G: torch.nn.Module,
    paths: Sequence[LatentPath],
    *,
    num_keys: int,
    frames_per_key: int,
    grid: tuple[int, int] = (1, 1),
    noise_mode: str = "const",
    batch: int = 8,
) -> Iterator[np.ndarray]:
    """The frames of a video that runs once along closed paths. They are made a few at a time.

    Args:
        G:              Generator in eval mode.
        paths:          One path for each place of the grid, row by row.
        num_keys:       Number of keys of each path.
        frames_per_key: Frames from one key to the next.
        grid:           Rows and columns.
        noise_mode:     `const` or `none`: random noise would flicker.
        batch:          Number of images made at a time.

    Yields:
        uint8 [rows * H, columns * W, C], num_keys * frames_per_key times.
    """
    rows, cols = grid
    assert len(paths) == rows * cols
    positions = np.arange(num_keys * frames_per_key) / frames_per_key
    step = max(batch // len(paths), 1)
    for begin in range(0, len(positions), step):
        part = positions[begin:begin + step]
        ws = torch.stack([path(part) for path in paths], dim=1).flatten(0, 1)  # [frame * place, num_ws, w_dim]
        images = synthesize(G, ws, noise_mode=noise_mode, batch=batch)
        height, width, channels = images.shape[1:]
        images = images.reshape(len(part), rows, cols, height, width, channels).transpose(0, 1, 3, 2, 4, 5)
        yield from images.reshape(len(part), rows * height, cols * width, channels)


# ----------------------------------------------------------------------------------------------------------------------
# Grids and files.


def check_grid(rows: int, cols: int, *, side: int, what: str) -> None:
    """Raise a UserError if a grid would have more than `MAX_GRID_PIXELS`. The message calls the grid `what`."""
    if rows * cols * side**2 > MAX_GRID_PIXELS:
        raise UserError(f"{what}: {rows}x{cols} images of {side}x{side} are more than the {MAX_GRID_PIXELS:,} pixels "
                        "that one file may have: make several grids")


class ImageGrid:
    """A grid of images of `shape` [H, W, C] on white. Empty places stay white.

    Attributes:
        cols:   Number of columns.
        pixels: The grid, uint8 [height, width, C].
    """

    def __init__(self, rows: int, cols: int, *, shape: tuple[int, int, int]) -> None:
        height, width, channels = self.shape = shape
        self.cols = cols
        size = [rows * (height + GRID_MARGIN) + GRID_MARGIN, cols * (width + GRID_MARGIN) + GRID_MARGIN, channels]
        self.pixels = np.full(size, 255, np.uint8)

    def place(self, row: int, col: int, image: np.ndarray) -> None:
        """Draw an image uint8 [H, W, C]."""
        height, width, _ = self.shape
        y, x = GRID_MARGIN + row * (height + GRID_MARGIN), GRID_MARGIN + col * (width + GRID_MARGIN)
        self.pixels[y:y + height, x:x + width] = image


def save_image(image: np.ndarray, path: str | os.PathLike) -> None:
    """Write an image uint8 [H, W, C], C = 1 or 3, as JPEG if the name ends in .jpg, otherwise as PNG."""
    buffer = io.BytesIO()
    jpeg = Path(path).suffix == ".jpg"
    options = {"format": "JPEG", "quality": 95, "subsampling": 0} if jpeg else {"format": "PNG"}
    PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, **options)
    with atomic_write(path) as f:
        f.write(buffer.getvalue())


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of the same shape; infinite for equal images."""
    mse = np.square(image.astype(np.float64) - other).mean()
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))
