"""Small versions of the grids of images that a run saves."""

import os

import PIL.Image

WIDTH, HEIGHT, SIDE = 512, 256, 64      # At most, in pixels: of a preview, and of each image in it.


def preview(path: str | os.PathLike, resolution: int | None) -> PIL.Image.Image:
    """The top left part of a grid: whole images, scaled down to 64 pixels if they are larger.

    Args:
        path:       PNG file.
        resolution: Of the images in it; None = not known, so all of the grid is scaled down.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: It can't be read.
    """
    with PIL.Image.open(path) as file:
        img = file.convert("RGB")
    if resolution is None or img.width < resolution or img.height < resolution:
        img.thumbnail((WIDTH, HEIGHT))
        return img
    side = min(resolution, SIDE)
    columns, rows = min(img.width // resolution, WIDTH // side), min(img.height // resolution, HEIGHT // side)
    part = img.crop((0, 0, columns * resolution, rows * resolution))
    return part.resize((columns * side, rows * side), PIL.Image.Resampling.BOX)
