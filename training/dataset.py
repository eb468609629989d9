"""`ImageFolderDataset` under the name that network pickles and other programs' scripts know."""

from .data.dataset import ImageFolderDataset

__all__ = ["ImageFolderDataset"]
