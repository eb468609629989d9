"""Mix the styles of seeds: coarse features of one image with fine ones of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, check_writable, made_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch


@click.command(cls=cli.Command)
@cli.network_option
@click.option("--rows", type=cli.IntRanges(), required=True, help="Seeds of the rows, which give all other layers")
@click.option("--cols", type=cli.IntRanges(), required=True, help="Seeds of the columns, which give --styles")
@click.option("--styles", type=cli.IntRanges(),
              help="Layers to take from the column, 0 = the coarsest  [default: 0-6, but not the last one]")
@cli.trunc_option
@cli.class_option
@cli.label_option
@cli.noise_mode_option
@click.option("--outdir", type=cli.Path(file_okay=False), required=True, help="Where to write the images")
@click.option("--batch", type=click.IntRange(min=1), help="Images made at a time", default=8, show_default=True)
@cli.device_option
@cli.trust_option
def main(**options: Any) -> None:
    """Mix the styles of seeds.

    For each row and column, ROW-COL.png is made of the row's w, but of the column's w in the layers --styles.
    SEED-SEED.png is the image of a seed itself. grid.png shows all images. Those of the seeds themselves are in its
    first row and column.

    \b
    Example:
      python style_mixing.py --outdir=out --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --styles=0-6
    """
    opts = cli.Arguments(**options)
    rows, cols = opts.rows, opts.cols
    cli.check_outdir(opts.outdir)
    cli.check_seeds("--rows", rows)
    cli.check_seeds("--cols", cols)
    from sampling import images as sampling
    from torch_utils import misc

    device = misc.pick_device(opts.device)
    G = cli.load_generator(opts.network_pkl, trust=opts.trust_pickle).to(device)
    layers = pick_layers(G, opts.styles)
    sampling.check_grid(len(rows) + 1, len(cols) + 1, side=G.img_resolution,
                        what=f"{len(rows)} rows and {len(cols)} columns")
    label = cli.pick_label(G, opts.class_idx, opts.label)
    check_writable(Path(opts.outdir, "image"))

    seeds = list(dict.fromkeys(rows + cols))
    ws = sampling.map_latents(G, sampling.seed_latents(seeds, G.z_dim), label=label,
                              truncation=sampling.Truncation(opts.truncation_psi), batch=1)
    index = {seed: number for number, seed in enumerate(seeds)}
    pairs = list(dict.fromkeys([*((seed, seed) for seed in seeds), *((row, col) for row in rows for col in cols)]))
    grid = sampling.ImageGrid(len(rows) + 1, len(cols) + 1, shape=(G.img_resolution, G.img_resolution, G.img_channels))
    with made_folder(opts.outdir), tqdm(total=len(pairs), unit="img", file=sys.stderr) as progress:
        for begin in range(0, len(pairs), opts.batch):
            part = pairs[begin:begin + opts.batch]
            own, others = ws[[index[row] for row, _ in part]], ws[[index[col] for _, col in part]]
            mixed = sampling.mix_styles(own, others, layers)
            # Random noise makes fine details, which come from the row: its seed is the row's.
            images = sampling.synthesize(G, mixed, noise_mode=opts.noise_mode, noise_seeds=[row for row, _ in part],
                                         batch=opts.batch)
            for (row, col), image in zip(part, images, strict=True):
                sampling.save_image(image, Path(opts.outdir, f"{row}-{col}.png"))
                for place in places(row, col, rows, cols):
                    grid.place(*place, image)
                progress.update()
        sampling.save_image(grid.pixels, Path(opts.outdir, "grid.png"))
    click.echo(f"{len(pairs)} images and grid.png in {opts.outdir}; layers {','.join(map(str, layers))} are the "
               "columns'")


def pick_layers(G: torch.nn.Module, styles: list[int] | None) -> list[int]:
    if styles is None:
        from sampling.images import default_layers

        return default_layers(G.num_ws)
    if max(styles) >= G.num_ws:
        raise UserError(f"--styles holds {max(styles)}; this network has the layers 0 to {G.num_ws - 1}")
    return sorted(set(styles))


def places(row: int, col: int, rows: list[int], cols: list[int]) -> list[tuple[int, int]]:
    """The (row, column) places in the grid that show the image of a pair. A seed that is given twice has several."""
    inside = [(y, x) for y, r in enumerate(rows, 1) for x, c in enumerate(cols, 1) if (r, c) == (row, col)]
    if row != col:
        return inside
    left = [(y, 0) for y, r in enumerate(rows, 1) if r == row]
    top = [(0, x) for x, c in enumerate(cols, 1) if c == col]
    return inside + left + top


if __name__ == "__main__":
    main()
