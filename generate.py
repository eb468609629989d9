"""Generate images from a network pickle."""

from __future__ import annotations

import io
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
import PIL.Image
from tqdm import tqdm

import cli
from dnnlib.util import UserError, atomic_write, check_writable, made_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and wrong usage don't wait for it
    import torch

GRID_MARGIN = 2  # Pixels between the images of a grid, and around them.
MAX_GRID_PIXELS = 1 << 29


class Job(NamedTuple):
    """One batch: what goes into the generator, and what the resulting files are called."""

    names: list[str]
    seeds: list[int]               # Empty for projected w's.
    ws: np.ndarray | None          # float32 [N, num_ws, w_dim]; None = made from the seeds.


class GridSize(click.ParamType):
    """`auto`, or rows and columns as in `3x5`."""

    name = "RxC|auto"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int] | str:
        if not isinstance(value, str) or value == "auto":
            return value
        match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", value)
        if not match or "0" in match.groups():
            self.fail(f"{value!r} is neither 'auto' nor rows and columns like 3x5", param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=cli.Command)
@click.option("--network", "network_pkl", help="Network pickle: path or URL", metavar="PATH|URL", required=True)
@click.option("--seeds", type=cli.IntRanges(), help="Seeds of the images, e.g. 0,3,10-20")
@click.option("--projected-w", type=click.Path(dir_okay=False), help="Take w's from this .npz (key w) or .npy file")
@click.option("--trunc", "truncation_psi", type=cli.FiniteFloat(), help="Truncation psi", default=1.0,
              show_default=True)
@click.option("--trunc-cutoff", type=click.IntRange(min=0), help="Truncate only so many first layers  [default: all]")
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class label, for conditional networks")
@click.option("--noise-mode", type=click.Choice(["const", "random", "none"]), default="const", show_default=True)
@click.option("--outdir", type=click.Path(file_okay=False), help="Where to write the images", required=True)
@click.option("--format", "image_format", type=click.Choice(["png", "jpg"]), default="png", show_default=True)
@click.option("--grid", type=GridSize(), metavar="RxC|auto", help="Write all images into one grid.png too")
@click.option("--batch", type=click.IntRange(min=1), help="Images made at a time", default=8, show_default=True)
@click.option("--device", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
@click.option("--trust-pickle", is_flag=True, help="Run the code in the pickle; only for files you trust")
def main(
    network_pkl: str,
    seeds: list[int] | None,
    projected_w: str | None,
    truncation_psi: float,
    trunc_cutoff: int | None,
    class_idx: int | None,
    noise_mode: str,
    outdir: str,
    image_format: str,
    grid: tuple[int, int] | str | None,
    batch: int,
    device: str | None,
    trust_pickle: bool,
) -> None:
    """Generate images from a network pickle.

    A seed gives the same image as in other StyleGAN2-style projects.

    \b
    Examples:
      python generate.py --outdir=out --network=network-snapshot-025000.pkl --seeds=85,265,297 --trunc=0.7
      python generate.py --outdir=out --network=cifar10.pkl --seeds=0-35 --class=1 --grid=6x6
      python generate.py --outdir=out --network=ffhq.pkl --projected-w=projected_w.npz
    """
    if (seeds is None) == (projected_w is None):
        raise click.UsageError("give either --seeds or --projected-w")
    if not outdir:
        raise UserError("--outdir is empty: give the name of a folder")
    if seeds is not None and max(seeds) >= 1 << 32:
        raise UserError(f"--seeds holds {max(seeds)}; seeds go up to {(1 << 32) - 1}")
    from torch_utils import misc

    target = misc.pick_device(device)
    G = load_generator(network_pkl, trust=trust_pickle).to(target)
    if seeds is not None:
        label = class_label(G, class_idx)
        jobs = seed_jobs(seeds, batch=1 if noise_mode == "random" else batch)
    else:
        if class_idx is not None or truncation_psi != 1 or trunc_cutoff is not None:
            warn("--class, --trunc and --trunc-cutoff have no effect on --projected-w")
        label = None
        jobs = projected_jobs(load_projected_w(projected_w, G), batch=1 if noise_mode == "random" else batch)
    num_images = sum(len(job.names) for job in jobs)
    rows_cols = grid_size(grid, num_images, side=G.img_resolution) if grid is not None else None

    check_writable(Path(outdir, "image"))
    with made_folder(outdir):
        kept = []
        with tqdm(total=num_images, unit="img", file=sys.stderr) as progress:
            for job in jobs:
                images = run_job(
                    G,
                    job,
                    label,
                    truncation_psi=truncation_psi,
                    truncation_cutoff=trunc_cutoff,
                    noise_mode=noise_mode,
                )
                for name, image in zip(job.names, images, strict=True):
                    save_image(image, Path(outdir, f"{name}.{image_format}"))
                    progress.update()
                if rows_cols is not None:
                    kept += images
        if rows_cols is not None:
            save_image(make_grid(kept, *rows_cols), Path(outdir, "grid.png"))
    click.echo(f"{num_images} image{'s' if num_images != 1 else ''} in {outdir}")


def warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


def load_generator(network_pkl: str, *, trust: bool) -> torch.nn.Module:
    """G_ema of a network pickle, in eval mode."""
    import legacy
    from torch_utils import misc

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        G = legacy.load_network_pkl(network_pkl, trust=trust, only=("G_ema",))["G_ema"]
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            warn(str(warning.message))
    if G is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    if G.img_channels not in (1, 3):
        raise UserError(f"{network_pkl}: makes images of {G.img_channels} channels; only 1 and 3 can be written")
    misc.check_finite(G, f"{network_pkl}: G_ema")
    return G.eval().requires_grad_(False)


def class_label(G: torch.nn.Module, class_idx: int | None) -> np.ndarray | None:
    """One-hot label, float32 [c_dim]; None for an unconditional network."""
    if G.c_dim == 0:
        if class_idx is not None:
            warn("--class has no effect: the network is unconditional")
        return None
    if class_idx is None:
        raise UserError(f"the network is conditional: give --class, from 0 to {G.c_dim - 1}")
    if class_idx >= G.c_dim:
        raise UserError(f"--class={class_idx} is out of range: the network knows the classes 0 to {G.c_dim - 1}")
    return np.eye(G.c_dim, dtype=np.float32)[class_idx]


def seed_jobs(seeds: list[int], *, batch: int) -> list[Job]:
    chunks = (seeds[start:start + batch] for start in range(0, len(seeds), batch))
    return [Job(names=[f"seed{seed:04d}" for seed in chunk], seeds=chunk, ws=None) for chunk in chunks]


def projected_jobs(ws: np.ndarray, *, batch: int) -> list[Job]:
    starts = range(0, len(ws), batch)
    names = [f"proj{idx:02d}" for idx in range(len(ws))]
    return [Job(names=names[start:start + batch], seeds=[], ws=ws[start:start + batch]) for start in starts]


def load_projected_w(path: str, G: torch.nn.Module) -> np.ndarray:
    """The w's in a file, float32 [N, num_ws, w_dim]; `UserError` if there are none that fit the network."""
    try:
        with open(path, "rb") as f:
            content = np.load(f, allow_pickle=False)
            if isinstance(content, np.ndarray):
                ws = content
            elif "w" in content:
                ws = content["w"]
            else:
                raise UserError(f"{path}: holds {', '.join(content.files)[:200] or 'nothing'}, no array 'w'")
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"can't read {path}: {e.strerror or 'neither .npz nor .npy'}") from e
    except Exception as e:  # zipfile, zlib and NumPy's own parser each have errors of their own
        raise UserError(f"can't read {path}: neither .npz nor .npy, or damaged ({type(e).__name__})") from e
    expected = f"[N, {G.num_ws}, {G.w_dim}]"
    if ws.dtype.kind not in "fiu" or ws.ndim != 3 or ws.shape[1:] != (G.num_ws, G.w_dim) or len(ws) == 0:
        raise UserError(f"{path}: w is {ws.dtype} {list(ws.shape)}; the network takes float32 {expected}")
    if not (np.abs(ws) <= np.finfo(np.float32).max).all():  # false for NaN too
        raise UserError(f"{path}: w holds values that are not finite float32 numbers")
    return ws.astype(np.float32)


def run_job(
    G: torch.nn.Module,
    job: Job,
    label: np.ndarray | None,
    *,
    truncation_psi: float,
    truncation_cutoff: int | None,
    noise_mode: str,
) -> list[np.ndarray]:
    """Make the images of a batch: uint8 arrays [H, W, C]; G's parameters require no gradient."""
    import torch

    device = next(G.parameters()).device
    if noise_mode == "random":
        torch.manual_seed(job.seeds[0] if job.seeds else 0)  # one image at a time, so that each has noise of its own
    if job.ws is not None:
        img = G.synthesis(torch.from_numpy(job.ws).to(device), noise_mode=noise_mode)
    else:
        z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in job.seeds])
        c = np.zeros([len(z), 0], np.float32) if label is None else np.tile(label, [len(z), 1])
        img = G(
            torch.from_numpy(z).to(device, torch.float32),
            torch.from_numpy(c).to(device),
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            noise_mode=noise_mode,
        )
    img = (img.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return list(img.permute(0, 2, 3, 1).cpu().numpy())  # [N, H, W, C]


def grid_size(grid: tuple[int, int] | str, num_images: int, *, side: int) -> tuple[int, int]:
    """Rows and columns of images with `side` pixels; `auto` is about square."""
    if grid == "auto":
        cols = int(np.ceil(np.sqrt(num_images)))
        rows = -(-num_images // cols)
    else:
        rows, cols = grid
    if rows * cols < num_images:
        raise UserError(f"--grid={rows}x{cols} has {rows * cols} places; there are {num_images} images")
    if rows * cols * side**2 > MAX_GRID_PIXELS:
        raise UserError(f"--grid={grid if grid == 'auto' else f'{rows}x{cols}'}: {rows}x{cols} images of {side}x{side} "
                        f"are more than the {MAX_GRID_PIXELS:,} pixels that one file may have: make several grids")
    return rows, cols


def make_grid(images: list[np.ndarray], rows: int, cols: int) -> np.ndarray:
    """Images [H, W, C] side by side on white, row by row; places left over stay white."""
    height, width, channels = images[0].shape
    step_y, step_x = height + GRID_MARGIN, width + GRID_MARGIN
    canvas = np.full([rows * step_y + GRID_MARGIN, cols * step_x + GRID_MARGIN, channels], 255, np.uint8)
    for idx, image in enumerate(images):
        y, x = GRID_MARGIN + idx // cols * step_y, GRID_MARGIN + idx % cols * step_x
        canvas[y:y + height, x:x + width] = image
    return canvas


def save_image(image: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W, C], C = 1 or 3, in the format that the name of the file tells."""
    buffer = io.BytesIO()
    options = {"format": "PNG"} if path.suffix == ".png" else {"format": "JPEG", "quality": 95, "subsampling": 0}
    PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, **options)
    with atomic_write(path) as f:
        f.write(buffer.getvalue())


if __name__ == "__main__":
    main()
