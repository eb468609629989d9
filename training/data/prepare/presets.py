"""How published datasets are made, as one table."""

from typing import Any, Literal, NamedTuple

from training.data.prepare.conversion import CropTransform


class DataPreset(NamedTuple):
    """One row of the table. Options that the user gives override it."""

    resolution: int
    transform: CropTransform | None
    resize_filter: Literal["box", "lanczos"]
    split: str | None    # Take only images below a folder of this name, if there is one.


# Sources:
#   ffhq256  Published FID at 256x256 was measured on FFHQ's 1024x1024 images, scaled by a box filter.
#   lsun256  ADA paper: LSUN at 256x256, cropped to the short side. GGDR and GLeaD do the same.
#   afhq     ADA paper: AFHQ at 512x512, the training images of one kind of animal.
_ROWS: dict[str, tuple[Any, ...]] = {
    #           res   transform      filter     split
    "ffhq256": (256,  None,          "box",     None),
    "lsun256": (256,  "center-crop", "lanczos", None),
    "afhq":    (512,  None,          "lanczos", "train"),
}
DATA_PRESETS = {name: DataPreset(*row) for name, row in _ROWS.items()}
