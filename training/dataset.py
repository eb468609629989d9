"""`ImageFolderDataset` under the name that network pickles and scripts of other programs use."""

from .data.dataset import ImageFolderDataset

__all__ = ["ImageFolderDataset"]
