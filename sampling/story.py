"""A picture of a run: real images, their reconstructions by D and G, and generated images over time."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from training.runs.run_dir import OPTIONS_NAME, find_options

COLUMNS = 16    # Images in a row.


class PictureRow(NamedTuple):
    """A row of images."""

    what: str               # "real", "rebuilt" or "generated".
    kimg: float | None      # Training progress when the row was drawn; None for real images.
    pixels: np.ndarray      # uint8 [R, COLUMNS * R] or [R, COLUMNS * R, 3].


def read_story(run_dir: Path, *, moments: int = 5) -> list[PictureRow]:
    """Take the rows of the picture from the grids that a run saves. All grids show the same images and latents.

    Args:
        run_dir: A run directory.
        moments: Number of snapshots to show, evenly spaced from the first to the last.

    Raises:
        UserError: The run has no snapshot, or its options don't tell the resolution.
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
    """The training progress in the name of a picture: 200.512 for `fakes000200_512.png`."""
    return float(re.sub(r"\D*(\d+)_?(\d*)\.png", r"\1.\2", path.name))


def _resolution(run_dir: Path) -> int:
    try:
        return int(find_options(run_dir)["config"]["dataset"]["resolution"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{run_dir / OPTIONS_NAME} doesn't say how large the images are: give the directory of a "
                        "run") from e


def _first_row(path: Path, side: int, *, skip: int = 0) -> np.ndarray:
    """The first images of a grid's row; `skip` is the number of rows above it."""
    try:
        with PIL.Image.open(path) as grid:
            return np.asarray(grid)[skip * side:(skip + 1) * side, :COLUMNS * side]
    except OSError as e:
        raise UserError(f"can't read {path}: {e}") from e
