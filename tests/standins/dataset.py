"""A data set read from an .npz file of images and labels."""

import sys
from pathlib import Path

import numpy as np

from dnnlib.util import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from metric_fakes import ArrayDataset  # noqa: E402


class ImageFolderDataset(ArrayDataset):
    def __init__(self, path, *, use_labels=False, max_size=None, xflip=False, random_seed=0):
        if not Path(path).is_file():
            raise UserError(f"no images at {path}")
        with np.load(path) as f:
            labels = f["labels"] if use_labels and "labels" in f else None
            super().__init__(f["images"], labels, max_size=max_size, xflip=xflip, name=Path(path).stem)
