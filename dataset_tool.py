"""Make a dataset for training: a folder or zip of square images of one size, with labels in dataset.json."""

import sys
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError
from training.data import check as dataset_check
from training.data.image_files import MAX_RESOLUTION
from training.data.prepare.array_sources import SyntheticSource
from training.data.prepare.conversion import MAX_PIXELS, RESIZE_FILTERS, Color, ConversionOptions, CropTransform
from training.data.prepare.pipeline import write_dataset
from training.data.prepare.presets import DATA_PRESETS
from training.data.prepare.source import Labels, SourceOptions, count_classes
from training.data.prepare.sources import SOURCES, open_source


@click.command(cls=cli.Command, help=f"""
    Make a dataset for training from images, or draw a synthetic one.

    Sources: {", ".join(kind.accepts for kind in SOURCES)}.

    Images are turned upright as EXIF says, converted to RGB or grayscale, scaled, and stored as PNG. Transparent images
    are laid on white. Palettes and CMYK become RGB. 16-bit pixels keep their upper byte. The first frame of an
    animation is taken. An image that can't be decoded, or has more than {MAX_PIXELS} pixels, stops the conversion;
    with --skip-bad, it is skipped and counted. In folders and zips, files are recognised by their content, and hidden
    files are left out. Names in a zip are never used as paths.

    \b
        python dataset_tool.py --source=images1024x1024 --dest=ffhq256.zip --preset=ffhq256
        python dataset_tool.py --source=lsun/church_outdoor_train_lmdb --dest=church256.zip --preset=lsun256
        python dataset_tool.py --source=synthetic --resolution=32 --max-images=20000 --dest=scenes.zip
    """)
@click.option("--source", type=cli.Path(), metavar="PATH|synthetic[:simple]", required=True,
              help="Where the images are.")
@click.option("--dest", type=cli.Path(), metavar="PATH", required=True,
              help="Folder, or path that ends in .zip, to write.")
@click.option("--preset", type=click.Choice(list(DATA_PRESETS)),
              help="Settings of published datasets; the options below override them.")
@click.option("--resolution", type=click.IntRange(1, MAX_RESOLUTION), metavar="INT",
              help="Width and height of the images, a power of two.  [default: that of the source, whose images must "
                   "have the same size]")
@click.option("--width", type=click.IntRange(1, MAX_RESOLUTION), metavar="INT", help="Width to scale to.")
@click.option("--height", type=click.IntRange(1, MAX_RESOLUTION), metavar="INT",
              help="Height to scale to; smaller than the width only with a transform that adds a black margin.")
@click.option("--transform", type=click.Choice(get_args(CropTransform)),
              help="center-crop: crop to a square; center-crop-letterbox: leave out smaller images, crop to the aspect "
                   "ratio WIDTH:HEIGHT, scale, and lay on a black square; center-crop-wide: as StyleGAN2-ADA does "
                   "that, which squeezes images that are wider than WIDTH. Without this option, images that are not "
                   "square are squeezed and counted if a size is given, and refused otherwise.")
@click.option("--resize-filter", type=click.Choice(list(RESIZE_FILTERS)),
              help="Filter to scale images by; published FID of FFHQ at 256x256 needs box, which --preset=ffhq256 "
                   "sets.  [default: lanczos]")
@click.option("--max-images", type=click.IntRange(min=1), metavar="INT",
              help="Take only the first INT images of the source.")
@click.option("--labels", type=click.Choice(["auto", "folders", "none"]), default="auto", show_default=True,
              help="auto: labels of the source's dataset.json, or else its sub-folders as classes; folders: always "
                   "sub-folders as classes; none: no labels.")
@click.option("--color", type=click.Choice(["auto", "rgb", "gray"]), default="auto", show_default=True,
              help="Convert images to RGB or grayscale; auto: like the first image, and refuse images that differ.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that can't be read, and with --color=auto convert "
              "images that differ from the first one; name and count both.")
@click.option("--shard-size", type=click.IntRange(min=1), metavar="INT",
              help="Write zips of INT images each into the folder --dest.")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="INT",
              help="Processes that convert images; the result doesn't depend on it.  [default: number of cores]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="INT",
              help="Draws the synthetic images.")
@click.option("--overwrite", is_flag=True, help="Replace an existing dataset at --dest once the new one is complete.")
def main(
    source: str, dest: str, preset: str | None, resolution: int | None, width: int | None, height: int | None,
    transform: CropTransform | None, resize_filter: str | None, max_images: int | None, labels: Labels, color: Color,
    skip_bad: bool, shard_size: int | None, workers: int | None, seed: int, overwrite: bool,
) -> None:
    if not dest:
        raise UserError("--dest is empty: give a folder, or a name that ends in .zip")
    if resolution is not None:
        if width is not None or height is not None:
            raise UserError("--resolution is width and height at once: leave out --width and --height")
        width = height = resolution
    row = DATA_PRESETS[preset] if preset else None
    if row and width is None and height is None:
        width = height = row.resolution
    conversion = ConversionOptions(
        width=width, height=height,
        transform=transform or (row.transform if row else None),
        resize_filter=resize_filter or (row.resize_filter if row else "lanczos"),
        color=color,
    )
    conversion.check(size_option="--width" if resolution is None else "--resolution")
    if SyntheticSource.matches(source) and (transform or color != "auto" or preset):
        raise UserError("--transform, --color and --preset are for images, not for synthetic ones")
    _check_not_inside(source, dest)
    images = open_source(source, SourceOptions(
        labels=labels, split=row.split if row else None, num_images=max_images, resolution=width, seed=seed,
    ))
    notes = list(images.notes)
    if images.labels and not SyntheticSource.matches(source):
        notes.append(f"labels are {images.labels.describe(count_classes(images, max_images))}")
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    summary = write_dataset(
        images, dest, options=conversion, max_images=max_images, workers=workers, skip_bad=skip_bad,
        shard_size=shard_size, overwrite=overwrite,
    )
    size = f"{summary.resolution}x{summary.resolution}x{summary.channels}"
    labels = images.labels.describe(summary.classes) if images.labels else "none"
    print(f"Wrote {summary.num_images} images of {size} to {dest}; labels: {labels}")


def _check_not_inside(source: str, dest: str) -> None:
    if SyntheticSource.matches(source):
        return
    if Path(dest).resolve() in Path(source).resolve().parents:
        raise UserError(f"--dest={dest} has --source={source} inside: choose another --dest")
    if Path(source).resolve() in Path(dest).resolve().parents and Path(source).is_dir():
        raise UserError(f"--dest={dest} is inside --source={source}, and would add its images to those of the source: "
                        "choose another --dest")


@click.command(cls=cli.Command)
@click.argument("path", type=cli.Path(), metavar="PATH")
@click.option("--workers", type=click.IntRange(min=1), metavar="INT",
              help="Processes that read images.  [default: number of cores]")
def check(path: str, workers: int | None) -> None:
    """Check a dataset: read every image and label, and report all problems.

    PATH is a folder, a zip or a folder of zips. Each problem is a line that names the image. A summary follows. The
    exit status is 1 if there are problems.
    """
    def report(problem: dataset_check.Problem) -> None:
        tqdm.write(f"{problem.kind}: {problem.message}", file=sys.stdout)

    summary = dataset_check.DatasetCheck(path, report, workers=workers).run()
    print(dataset_check.format_summary(summary))
    if summary.problems:
        sys.exit(1)


if __name__ == "__main__":
    cli.DefaultGroup(main, check)()
