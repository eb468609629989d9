"""Project images to the latent space w of a generator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, check_all, check_writable, made_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import numpy as np
    import torch

    from sampling.input_images import InputImages
    from sampling.projection import Projection
    from training.perceptual import PerceptualLoss

VIDEO_FPS = 30
SELF_TEST_GAIN = 2  # The self-test passes if the distance shrinks by at least this factor.


class Target(NamedTuple):
    """An image to project."""

    name: str
    pixels: np.ndarray      # uint8 [R, R, C].
    folder: Path | None     # For the results; None = write nothing.


@click.command(cls=cli.Command)
@cli.network_option
@click.option("--target", type=cli.Path(), multiple=True, metavar="IMAGES",
              help="Image to project: file, folder, zip or pattern like 'a/*.png'; may be given several times")
@click.option("--self-test", is_flag=True,
              help="Project the image that the network makes of --seed, and check that its w is found; --outdir may be "
                   "left out")
@click.option("--outdir", type=cli.Path(file_okay=False),
              help="Where to write the results; with several images, each has a folder of its own  [required, except "
                   "with --self-test]")
@click.option("--num-steps", type=click.IntRange(1, 1_000_000), default=1000, show_default=True,
              help="Steps of the optimisation")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=303, show_default=True,
              help="Seed of all random numbers; the same seed gives the same result")
@click.option("--save-video", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Write a video of the optimisation, beside the target")
@click.option("--perceptual", type=cli.Path(), default="lpips-vgg", show_default=True, metavar="NAME|PATH|URL",
              help="Distance to minimise, as train.py --perceptual")
@cli.class_option
@cli.label_option
@cli.device_option
@cli.trust_option
@cli.trust_net_option
def main(**options: Any) -> None:
    """Project images to the latent space w of a generator.

    Finds the w whose image looks most like the given one (StyleGAN2, appendix D). Writes target.png, proj.png,
    projected_w.npz with w and noise maps (for generate.py --projected-w), and proj.mp4.

    \b
    Examples:
      python projector.py --outdir=out --network=ffhq.pkl --target=photo.png
      python projector.py --self-test --network=ffhq.pkl
    """
    opts = cli.Arguments(**options)
    if bool(opts.target) == opts.self_test:
        raise click.UsageError("give either --target or --self-test")
    if opts.outdir is None and not opts.self_test:
        raise click.UsageError("Missing option '--outdir'.")
    if opts.outdir is not None:
        cli.check_outdir(opts.outdir, images=opts.target)
    from torch_utils import misc
    from training.perceptual import build_perceptual

    device = misc.pick_device(opts.device)
    G = load_nets(opts).to(device)
    label = cli.pick_label(G, opts.class_idx, opts.label)
    targets = self_test_target(opts, G, label) if opts.self_test else find_targets(opts, G)
    if opts.outdir is not None:
        check_writable(Path(opts.outdir, "image"))
    distance = build_perceptual(opts.perceptual, device=device, img_channels=G.img_channels)
    for target in targets:
        found = project_one(opts, G, target, distance, label)
        if opts.self_test:
            judge(found)


def load_nets(opts: cli.Arguments) -> torch.nn.Module:
    """Load the generator, and check the perceptual net. A UserError names the faults of both."""
    from sampling.projection import COMPARED_RES
    from training.perceptual import check_perceptual

    found: list[torch.nn.Module] = []

    def load() -> None:
        found.append(cli.load_generator(opts.network_pkl, trust=opts.trust_pickle))

    def check() -> None:
        resolution = min([COMPARED_RES, *(G.img_resolution for G in found)])
        check_perceptual(opts.perceptual, resolution=resolution, trust=opts.trust_net)

    check_all(load, check)
    return found[0]


def self_test_target(opts: cli.Arguments, G: torch.nn.Module, label: np.ndarray | None) -> Iterator[Target]:
    """The image that the network makes of the seed, truncated so that it is a typical one."""
    from sampling.images import Truncation, map_latents, seed_latents, synthesize

    z = seed_latents([opts.seed], G.z_dim)
    image = synthesize(G, map_latents(G, z, label=label, truncation=Truncation(0.7)))[0]
    return iter([Target(f"seed{opts.seed:04d}", image, Path(opts.outdir) if opts.outdir is not None else None)])


def find_targets(opts: cli.Arguments, G: torch.nn.Module) -> Iterator[Target]:
    """The images of --target, one at a time. All are decoded once before this returns."""
    from sampling.input_images import InputImages

    images = InputImages(opts.target, resolution=G.img_resolution, channels=G.img_channels)
    images.check()
    return _targets(images, Path(opts.outdir))


def _targets(images: InputImages, outdir: Path) -> Iterator[Target]:
    for image in images:
        if image.changes:
            click.echo(f"Note: {image.name} made fit for {images.resolution}x{images.resolution}: {image.changes}",
                       err=True)
        yield Target(image.name, image.pixels, outdir if len(images) == 1 else outdir / image.name)


def judge(found: Projection) -> None:
    """Print the result of the self-test, and raise a UserError if it failed."""
    gain = found.start_distance / max(found.distance, 1e-12)
    passed = gain >= SELF_TEST_GAIN
    click.echo(f"self-test {'passed' if passed else 'failed'}: the distance is {gain:.1f} times smaller")
    if not passed:
        raise UserError(f"the image was not found again: the distance should be at least {SELF_TEST_GAIN} times "
                        "smaller, which takes some hundred steps")


def project_one(
    opts: cli.Arguments, G: torch.nn.Module, target: Target, distance: PerceptualLoss, label: np.ndarray | None
) -> Projection:
    """Project an image, print how like it the result is, and write the results if the target has a folder."""
    import torch

    from sampling.images import psnr, to_pixels, to_tensor
    from sampling.projection import ProjectionConfig, project, synthesize_with

    device = next(G.parameters()).device
    config = ProjectionConfig(num_steps=opts.num_steps, seed=opts.seed)
    with tqdm(total=opts.num_steps, desc=target.name, unit="step", file=sys.stderr) as progress:

        def report(step: int, value: float) -> None:
            progress.set_postfix(distance=f"{value:.4f}", refresh=False)
            progress.update()

        found = project(G, to_tensor(target.pixels[None]).to(device), perceptual=distance, config=config, label=label,
                        report=report)
    with torch.no_grad():
        ends = torch.stack([found.w_mean, found.w_steps[-1]]).to(device)
        before, after = to_pixels(synthesize_with(G, ends, found.noise))
    if target.folder is not None:
        write_results(opts, G, target, found, after)
    click.echo(f"{target.name}: {opts.perceptual} distance {found.start_distance:.4f} -> {found.distance:.4f}, psnr "
               f"{psnr(target.pixels, before):.2f} -> {psnr(target.pixels, after):.2f} dB (mean w -> projected w)"
               + (f"; in {target.folder}" if target.folder is not None else ""))
    return found


def write_results(
    opts: cli.Arguments, G: torch.nn.Module, target: Target, found: Projection, image: np.ndarray
) -> None:
    from sampling.images import save_image
    from sampling.projection import ProjectedW, save_projected_w
    from sampling.video import resolve_path, write_video

    folder = target.folder
    with made_folder(folder):
        save_image(target.pixels, folder / "target.png")
        save_image(image, folder / "proj.png")
        ws = found.w_steps[-1:].unsqueeze(1).repeat(1, G.num_ws, 1).numpy()  # [1, num_ws, w_dim]
        save_projected_w(folder / "projected_w.npz",
                         ProjectedW(ws, {name: noise.cpu().numpy() for name, noise in found.noise.items()}))
        if opts.save_video:
            with cli.shown_warnings():
                path = resolve_path(folder / "proj.mp4")
            frames = tqdm(video_frames(G, target, found), total=opts.num_steps, desc=path.name, unit="frame",
                          file=sys.stderr)
            write_video(path, frames, num_frames=opts.num_steps, fps=VIDEO_FPS)


def video_frames(G: torch.nn.Module, target: Target, found: Projection) -> Iterator[np.ndarray]:
    """For each step, the target beside the image of that step's w with the final noise maps; uint8 [R, 2 * R, C]."""
    import numpy as np
    import torch

    from sampling.images import to_pixels
    from sampling.projection import synthesize_with

    device = next(G.parameters()).device
    for w in found.w_steps.split(8):
        with torch.no_grad():
            images = to_pixels(synthesize_with(G, w.to(device), found.noise))
        for image in images:
            yield np.concatenate([target.pixels, image], axis=1)


if __name__ == "__main__":
    main()
