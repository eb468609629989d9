"""Generate images and videos by a trained network, and reconstruct images by the D and G of a GLeaD network."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, check_writable, made_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch

    from sampling.images import ImageGrid, LatentPath
    from sampling.input_images import InputImages

MAX_SHOWN = 64      # Images in reconstructions.png.
SHOWN_COLUMNS = 16  # Images in each of its rows.


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


def rebuilds(opts: cli.Arguments) -> bool:
    return bool(opts.reconstruct) or opts.fakes is not None


@click.command(cls=cli.Command)
@cli.network_option
@click.option("--seeds", type=cli.IntRanges(), help="Seeds of the images, e.g. 0,3,10-20")
@click.option("--projected-w", type=cli.Path(dir_okay=False),
              help="Take w's, and noise maps if it holds some, from this .npz (key w) or .npy file")
@click.option("--reconstruct", type=cli.Path(), multiple=True, metavar="IMAGES",
              help="Let D read images and G rebuild them (GLeaD networks): file, folder, zip or pattern like "
                   "'a/*.png'; may be given several times")
@click.option("--fakes", type=click.IntRange(1, 100_000), metavar="N",
              help="Let D read images that G makes of the seeds 0 to N-1, and G rebuild them")
@click.option("--max-images", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
              help="Rebuild only the first N images of --reconstruct")
@cli.trunc_option
@click.option("--trunc-cutoff", type=click.IntRange(min=0), metavar="N",
              help="Truncate only the first N layers  [default: all]")
@cli.class_option
@cli.label_option
@cli.noise_mode_option
@click.option("--outdir", type=cli.Path(file_okay=False),
              help="Where to write the images  [required, except for a --video with a path]")
@click.option("--format", "image_format", type=click.Choice(["png", "jpg"]), default="png", show_default=True)
@click.option("--grid", type=GridSize(), metavar="RxC|auto",
              help="Write all images into one grid.png too; with --video: show several walks side by side")
@click.option("--video", type=cli.Path(dir_okay=False), metavar="FILE", group="Video", cls=cli.GroupedOption,
              help="Instead of images, write a looped video that interpolates between the seeds or w's: .mp4, .webp or "
                   ".gif; a name without a folder is written to --outdir")
@click.option("--interpolate", type=click.Choice(["w", "z"]), default="w", show_default=True, group="Video",
              cls=cli.GroupedOption, help="w: a smooth spline through the w's; z: great circles from z to z")
@click.option("--frames-per-key", type=click.IntRange(1, 100_000), default=60, show_default=True, group="Video",
              cls=cli.GroupedOption, help="Frames from one key to the next")
@click.option("--fps", type=cli.FiniteFloat(min=0.1, max=240), default=30.0, show_default=True, group="Video",
              cls=cli.GroupedOption, help="Frames per second")
@click.option("--lossless", is_flag=True, group="Video", cls=cli.GroupedOption, help="Keep every pixel; .webp only")
@click.option("--batch", type=click.IntRange(min=1), help="Images made at a time", default=8, show_default=True)
@cli.polarity_option
@cli.candidates_option
@cli.device_option
@cli.trust_option
def main(**options: Any) -> None:
    """Generate images and videos by a trained network.

    A seed gives the same image as in other StyleGAN2-style projects.

    \b
    Examples:
      python generate.py --outdir=out --network=network-snapshot-025000.pkl --seeds=85,265,297 --trunc=0.7
      python generate.py --outdir=out --network=cifar10.pkl --seeds=0-35 --class=1 --grid=6x6
      python generate.py --outdir=out --network=ffhq.pkl --projected-w=projected_w.npz
      python generate.py --video=walk.mp4 --network=ffhq.pkl --seeds=0-31 --grid=2x4 --trunc=0.7
      python generate.py --outdir=out --network=glead.pkl --reconstruct=photos
      python generate.py --outdir=out --network=glead.pkl --fakes=16
    """
    opts = cli.Arguments(**options)
    check_usage(opts)
    if rebuilds(opts):
        write_reconstructions(opts)
    elif opts.video is not None:
        write_video(opts)
    else:
        write_images(opts)


def check_usage(opts: cli.Arguments) -> None:
    """Refuse contradictory options, and warn of options without effect. This doesn't wait for PyTorch."""
    if sum(map(bool, (opts.seeds, opts.projected_w, opts.reconstruct, opts.fakes))) != 1:
        raise click.UsageError("give either --seeds or --projected-w or --reconstruct or --fakes")
    if opts.outdir is None and (opts.video is None or rebuilds(opts)):
        raise click.UsageError("Missing option '--outdir'.")
    if opts.outdir is not None:
        cli.check_outdir(opts.outdir, images=opts.reconstruct)
    if opts.seeds is not None:
        cli.check_seeds("--seeds", opts.seeds)
    latent_options = ["truncation_psi", "trunc_cutoff", "class_idx", "label"]
    video_options = ["interpolate", "frames_per_key", "fps", "lossless"]
    if opts.reconstruct:
        cli.warn_unused(latent_options, because="on --reconstruct")
    else:
        cli.warn_unused(["max_images"], because="without --reconstruct")
    if opts.seeds is None:
        cli.warn_unused(["polarity"], because="without --seeds")
    if not opts.polarity or opts.seeds is None:
        cli.warn_unused(["candidates"], because="without --polarity")
    if opts.projected_w is not None:
        cli.warn_unused([*latent_options, "interpolate"], because="on --projected-w")
    if rebuilds(opts):
        cli.warn_unused([*video_options, "image_format", "grid", "video"], because="on reconstructions")
    elif opts.video is None:
        cli.warn_unused(video_options, because="without --video")
    else:
        cli.warn_unused(["image_format"], because="on --video")


# ----------------------------------------------------------------------------------------------------------------------
# Images.


def write_images(opts: cli.Arguments) -> None:
    from sampling.images import ImageGrid, save_image, synthesize

    G, latents = load_latents(opts)
    rows_cols = grid_size(opts.grid, len(latents), side=G.img_resolution) if opts.grid is not None else None
    grid: ImageGrid | None = None
    check_writable(Path(opts.outdir, "image"))
    with made_folder(opts.outdir), tqdm(total=len(latents), unit="img", file=sys.stderr) as progress:
        for begin in range(0, len(latents), opts.batch):
            part = slice(begin, begin + opts.batch)
            images = synthesize(G, latents.ws(part), noise_mode=opts.noise_mode,
                                noise_seeds=latents.noise_seeds[part], batch=opts.batch)
            if rows_cols is not None and grid is None:
                grid = ImageGrid(*rows_cols, shape=images.shape[1:])
            for index, image in enumerate(images, start=begin):
                save_image(image, Path(opts.outdir, f"{latents.names[index]}.{opts.image_format}"))
                if grid is not None:
                    grid.place(*divmod(index, grid.cols), image)
                progress.update()
        if grid is not None:
            save_image(grid.pixels, Path(opts.outdir, "grid.png"))
    click.echo(f"{len(latents)} image{'s' if len(latents) != 1 else ''} in {opts.outdir}")


@dataclass(frozen=True)
class Latents:
    """The latents of all images. Their ws are computed when they are needed."""

    names: list[str]                            # File names of the images, without suffix.
    noise_seeds: list[int]                      # For --noise-mode=random, one for each image.
    ws: Callable[[slice], torch.Tensor]         # The ws of the images in a slice, [N, num_ws, w_dim].

    def __len__(self) -> int:
        return len(self.names)


def load_latents(opts: cli.Arguments) -> tuple[torch.nn.Module, Latents]:
    """The generator on its device, and the latents of --seeds or --projected-w."""
    import torch

    from sampling.images import seed_latents
    from sampling.projection import load_projected_w
    from torch_utils import misc

    device = misc.pick_device(opts.device)
    G = cli.load_generator(opts.network_pkl, trust=opts.trust_pickle).to(device)
    if opts.seeds is not None:
        to_ws, names, seeds = mapping(opts, G), [f"seed{seed:04d}" for seed in opts.seeds], latent_seeds(opts, G)
        return G, Latents(names, opts.seeds, lambda part: to_ws(seed_latents(seeds[part], G.z_dim)))
    projected = load_projected_w(opts.projected_w, G)
    noise = {name: torch.from_numpy(array) for name, array in projected.noise.items()}
    G.synthesis.load_state_dict(noise, strict=False)  # strict=False: only the noise maps change, and they were checked
    names = [f"proj{idx:02d}" for idx in range(len(projected.ws))]
    return G, Latents(names, [0] * len(names), lambda part: torch.from_numpy(projected.ws[part]))


def latent_seeds(opts: cli.Arguments, G: torch.nn.Module) -> list[int]:
    """The seeds of the latents: --seeds, or those that --polarity replaces them by."""
    if not opts.polarity:
        return opts.seeds
    from sampling.polarity import resample_seeds

    return resample_seeds(G, opts.seeds, rho=opts.polarity, num_candidates=opts.candidates,
                          label=cli.pick_label(G, opts.class_idx, opts.label))


def mapping(opts: cli.Arguments, G: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that maps z's [N, z_dim] to ws [N, num_ws, w_dim], with the class and truncation of the options."""
    from sampling.images import Truncation, map_latents

    label = cli.pick_label(G, opts.class_idx, opts.label)
    truncation = Truncation(opts.truncation_psi, opts.trunc_cutoff)
    batch = 1 if opts.noise_mode == "random" else opts.batch  # 1: an image then doesn't depend on the size of batches
    return lambda z: map_latents(G, z, label=label, truncation=truncation, batch=batch)


def grid_size(grid: tuple[int, int] | str, num_images: int, *, side: int) -> tuple[int, int]:
    """Rows and columns of a grid of images with `side` pixels a side. `auto` is about square.

    Raises:
        UserError: The grid is too small for the images, or too large for a file.
    """
    from sampling.images import check_grid

    if grid == "auto":
        cols = math.isqrt(num_images - 1) + 1
        rows = -(-num_images // cols)
    else:
        rows, cols = grid
    if rows * cols < num_images:
        raise UserError(f"--grid={rows}x{cols} has {rows * cols} places; there are {num_images} images")
    check_grid(rows, cols, side=side, what=f"--grid={grid if grid == 'auto' else f'{rows}x{cols}'}")
    return rows, cols


# ----------------------------------------------------------------------------------------------------------------------
# Videos.


def write_video(opts: cli.Arguments) -> None:
    from sampling import images as sampling
    from sampling import video

    path = Path(opts.video)
    if opts.outdir is not None and path.parent == Path(".") and not opts.video.startswith("."):
        path = Path(opts.outdir, path)
    with cli.shown_warnings():
        path = video.resolve_path(path)
    if opts.noise_mode == "random":
        raise UserError("--noise-mode=random would flicker in a video: choose const or none")
    if opts.grid == "auto":
        raise UserError("--grid=auto: of a video, give rows and columns, such as 2x4")
    rows, cols = opts.grid or (1, 1)
    if opts.seeds is not None:
        keys_per_place(len(opts.seeds), rows, cols)
    G, latents = load_latents(opts)
    num_keys = keys_per_place(len(latents), rows, cols)
    num_frames = num_keys * opts.frames_per_key
    side = G.img_resolution
    sampling.check_grid(rows, cols, side=side, what=f"--grid={rows}x{cols}")
    video.check_video(path, size=(rows * side, cols * side), num_frames=num_frames, fps=opts.fps,
                      lossless=opts.lossless)
    check_writable(path)
    frames = sampling.frames_along(
        G, latent_paths(opts, G, latents, num_keys), num_keys=num_keys, frames_per_key=opts.frames_per_key,
        grid=(rows, cols), noise_mode=opts.noise_mode, batch=opts.batch,
    )
    with made_folder(path.parent), tqdm(frames, total=num_frames, unit="frame", file=sys.stderr) as shown:
        video.write_video(path, shown, num_frames=num_frames, fps=opts.fps, lossless=opts.lossless)
    click.echo(f"{num_frames} frames in {path}")


def keys_per_place(num_latents: int, rows: int, cols: int) -> int:
    """How many key latents the walk at each place of the grid has.

    Raises:
        UserError: There are fewer than two for each place, or the places can't have equally many.
    """
    num_keys, rest = divmod(num_latents, rows * cols)
    if rest or num_keys < 2:
        each = f" for each of the {rows * cols} places of --grid={rows}x{cols}, equally many for all"
        raise UserError(f"--video needs two or more seeds or w's{each if rows * cols > 1 else ''}; there are "
                        f"{num_latents}")
    return num_keys


def latent_paths(opts: cli.Arguments, G: torch.nn.Module, latents: Latents, num_keys: int) -> list[LatentPath]:
    """One closed path for each place of the grid. The first `num_keys` latents belong to the first place, and so on."""
    from sampling.images import seed_latents, w_path, z_path

    if opts.seeds is None or opts.interpolate == "w":
        return [w_path(keys) for keys in latents.ws(slice(None)).split(num_keys)]
    to_ws = mapping(opts, G)
    return [z_path(keys, to_ws) for keys in seed_latents(latent_seeds(opts, G), G.z_dim).split(num_keys)]


# ----------------------------------------------------------------------------------------------------------------------
# Reconstructions.


class Originals(NamedTuple):
    """A batch of images to reconstruct."""

    names: list[str]
    img: torch.Tensor       # [N, C, R, R] in about [-1, 1].


def write_reconstructions(opts: cli.Arguments) -> None:
    import torch

    from sampling.images import psnr, save_image, to_pixels
    from sampling.reconstruction import find_res_g, pair_grid, rebuild
    from torch_utils import misc

    device = misc.pick_device(opts.device)
    G, D = cli.load_pair(opts.network_pkl, trust=opts.trust_pickle, purpose="rebuilding images")
    res_g = find_res_g(G, D, name=opts.network_pkl)
    G, D = G.to(device), D.to(device)
    if opts.reconstruct:
        num_images, originals = find_originals(opts, G)
    else:
        num_images, originals = opts.fakes, make_originals(opts, G, mapping(opts, G))
    check_writable(Path(opts.outdir, "image"))
    pairs, errors = [], []
    torch.manual_seed(0)  # for --noise-mode=random
    with made_folder(opts.outdir), tqdm(total=num_images, unit="img", file=sys.stderr) as progress:
        for names, img in originals:
            rebuilt = rebuild(G, D, img, res_g=res_g, noise_mode=opts.noise_mode)
            for name, before, after, mse in zip(names, to_pixels(img), rebuilt.pixels, rebuilt.mse, strict=True):
                save_image(after, Path(opts.outdir, f"{name}-rec.png"))
                errors.append((mse, psnr(before, after)))
                tqdm.write(f"{name}: mse {mse:.5f}, psnr {errors[-1][1]:.2f} dB", file=sys.stdout)
                if len(pairs) < MAX_SHOWN:
                    pairs.append((before, after))
                progress.update()
        save_image(pair_grid(pairs, columns=SHOWN_COLUMNS).pixels, Path(opts.outdir, "reconstructions.png"))
    mse, decibels = (sum(values) / len(errors) for values in zip(*errors))
    click.echo(f"mean of {len(errors)}: mse {mse:.5f}, psnr {decibels:.2f} dB; images in {opts.outdir}")


def find_originals(opts: cli.Arguments, G: torch.nn.Module) -> tuple[int, Iterator[Originals]]:
    """The number of images of --reconstruct, and their batches. All are decoded once before this returns."""
    from sampling.input_images import InputImages

    images = InputImages(opts.reconstruct, resolution=G.img_resolution, channels=G.img_channels,
                         max_images=opts.max_images)
    images.check()
    if len(images) < images.num_found:
        click.echo(f"Note: only the first {len(images)} of {images.num_found} images are rebuilt: --max-images takes "
                   "more", err=True)
    return len(images), read_originals(images, opts.batch)


def read_originals(images: InputImages, batch: int) -> Iterator[Originals]:
    """Read images in batches. At the end, print how many images were cropped, scaled or converted."""
    import numpy as np

    from sampling.images import to_tensor

    changed: dict[str, int] = {}
    for begin in range(0, len(images), batch):
        part = [images[index] for index in range(begin, min(begin + batch, len(images)))]
        for image in part:
            changed[image.changes] = changed.get(image.changes, 0) + 1
        yield Originals([image.name for image in part], to_tensor(np.stack([image.pixels for image in part])))
    size = f"{images.resolution}x{images.resolution}x{images.channels}"
    for what, number in changed.items():
        if what:
            tqdm.write(f"Note: {number} of {len(images)} images made fit for {size}: {what}", file=sys.stderr)


def make_originals(
    opts: cli.Arguments, G: torch.nn.Module, to_ws: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[Originals]:
    """Batches of images that G makes of the seeds 0 to N - 1. As in training, they are not rounded to 8 bits."""
    import torch

    from sampling.images import seed_latents

    for begin in range(0, opts.fakes, opts.batch):
        seeds = range(begin, min(begin + opts.batch, opts.fakes))
        with torch.no_grad():
            img = G.synthesis(to_ws(seed_latents(seeds, G.z_dim)), noise_mode=opts.noise_mode)
        yield Originals([f"seed{seed:04d}" for seed in seeds], img.to(torch.float32))


if __name__ == "__main__":
    main()
