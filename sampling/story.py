"""One picture of a run: real images, what D and G rebuild of them, and what G generates over time."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from training.runs.run_dir import OPTIONS_NAME, find_options

COLUMNS = 16


class PictureRow(NamedTuple):
    what: str               # "real", "rebuilt", "generated".
    kimg: float | None      # When it was drawn; None for real images.
    pixels: np.ndarray      # uint8 [R, columns * R] or [R, columns * R, 3].


def read_story(run_dir: Path, *, moments: int = 5) -> list[PictureRow]:
    """The rows of the picture, from the grids that a run saves: the same images and latents in each.

    Args:
        run_dir: A run directory.
        moments: How many snapshots to show, evenly spaced from the first one to the last one.

    Raises:
        UserError: The run has no snapshot, or no readable options.
    """
    fakes = sorted(run_dir.glob("fakes[0-9]*.png"))
    if not fakes:
        raise UserError(f"{run_dir} holds no fakesKKKKKK.png: give the directory of a run that saved a snapshot")
    side = _resolution(run_dir)
    chosen = [fakes[i] for i in dict.fromkeys(np.linspace(0, len(fakes) - 1, moments).round().astype(int))]
    rows = [PictureRow("real", None, _first_row(run_dir / "reals.png", side))]
    rebuilt = fakes[-1].with_name(fakes[-1].name.replace("fakes", "reconstructions"))
    if rebuilt.is_file():
        rows.append(PictureRow("rebuilt", kimg_of(rebuilt), _first_row(rebuilt, side, skip=1)))
    return rows + [PictureRow("generated", kimg_of(path), _first_row(path, side)) for path in chosen]


def kimg_of(path: Path) -> float:
    """Of a picture: `fakes000200_512.png` was drawn after 200.512 kimg."""
    return float(re.sub(r"\D*(\d+)_?(\d*)\.png", r"\1.\2", path.name))


def _resolution(run_dir: Path) -> int:
    try:
        return int(find_options(run_dir)["config"]["dataset"]["resolution"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{run_dir / OPTIONS_NAME} doesn't say how large the images are: give the directory of a "
                        "run") from e


def _first_row(path: Path, side: int, *, skip: int = 0) -> np.ndarray:
    """The first images of a grid, after `skip` rows."""
    try:
        with PIL.Image.open(path) as grid:
            return np.asarray(grid)[skip * side:(skip + 1) * side, :COLUMNS * side]
    except OSError as e:
        raise UserError(f"can't read {path}: {e}") from e
