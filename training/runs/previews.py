"""Small versions of the grids of images that a run saves."""

import os

import PIL.Image

WIDTH, HEIGHT, SIDE = 512, 256, 64      # The largest size of a preview, and the largest side of each image, in pixels.


def preview(path: str | os.PathLike, resolution: int | None) -> PIL.Image.Image:
    """The top left part of a grid: whole images, scaled down to 64 pixels if they are larger.

    Args:
        path:       PNG file with the grid.
        resolution: Side of the images in the grid; None = not known, so the whole grid is scaled down.

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
