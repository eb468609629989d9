"""Mix the styles of seeds: coarse features of one image with fine ones of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
def main(
    network_pkl: str,
    rows: list[int],
    cols: list[int],
    styles: list[int] | None,
    truncation_psi: float,
    class_idx: int | None,
    label: list[float] | None,
    noise_mode: str,
    outdir: str,
    batch: int,
    device: str | None,
    trust_pickle: bool,
) -> None:
    """Mix the styles of seeds.

    For each row and column, ROW-COL.png is made of the row's w, but of the column's w in the layers --styles.
    SEED-SEED.png is the image of a seed itself. grid.png shows all images. Those of the seeds themselves are in its
    first row and column.

    \b
    Example:
      python style_mixing.py --outdir=out --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --styles=0-6
    """
    cli.check_outdir(outdir)
    cli.check_seeds("--rows", rows)
    cli.check_seeds("--cols", cols)
    from sampling.images import ImageGrid, Truncation, check_grid, map_latents, save_image, seed_latents, synthesize
    from torch_utils import misc

    target = misc.pick_device(device)
    G = cli.load_generator(network_pkl, trust=trust_pickle).to(target)
    layers = pick_layers(G, styles)
    check_grid(len(rows) + 1, len(cols) + 1, side=G.img_resolution, what=f"{len(rows)} rows and {len(cols)} columns")
    c = cli.pick_label(G, class_idx, label)
    check_writable(Path(outdir, "image"))

    seeds = list(dict.fromkeys(rows + cols))
    ws = map_latents(G, seed_latents(seeds, G.z_dim), label=c, truncation=Truncation(truncation_psi), batch=1)
    w = dict(zip(seeds, ws))
    pairs = list(dict.fromkeys([*((seed, seed) for seed in seeds), *((row, col) for row in rows for col in cols)]))
    grid = ImageGrid(len(rows) + 1, len(cols) + 1, shape=(G.img_resolution, G.img_resolution, G.img_channels))
    with made_folder(outdir), tqdm(total=len(pairs), unit="img", file=sys.stderr) as progress:
        for begin in range(0, len(pairs), batch):
            part = pairs[begin:begin + batch]
            # Random noise makes fine details, which come from the row: its seed is the row's.
            images = synthesize(G, mix(w, part, layers), noise_mode=noise_mode, noise_seeds=[row for row, _ in part],
                                batch=batch)
            for (row, col), image in zip(part, images, strict=True):
                save_image(image, Path(outdir, f"{row}-{col}.png"))
                for place in places(row, col, rows, cols):
                    grid.place(*place, image)
                progress.update()
        save_image(grid.pixels, Path(outdir, "grid.png"))
    click.echo(f"{len(pairs)} images and grid.png in {outdir}; layers {','.join(map(str, layers))} are the columns'")


def pick_layers(G: torch.nn.Module, styles: list[int] | None) -> list[int]:
    if styles is None:
        from sampling.images import default_layers

        return default_layers(G.num_ws)
    if max(styles) >= G.num_ws:
        raise UserError(f"--styles holds {max(styles)}; this network has the layers 0 to {G.num_ws - 1}")
    return sorted(set(styles))


def mix(w: dict[int, torch.Tensor], pairs: list[tuple[int, int]], layers: list[int]) -> torch.Tensor:
    """Ws of (row, column) pairs: the row's, with the column's in `layers`; [N, num_ws, w_dim]."""
    import torch

    from sampling.images import mix_styles

    own, others = (torch.stack([w[pair[place]] for pair in pairs]) for place in (0, 1))
    return mix_styles(own, others, layers)


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
