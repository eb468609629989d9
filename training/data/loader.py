"""The order in which training sees the images, and the loader of batches."""

import functools
from typing import NamedTuple

import numpy as np
import torch

from torch_utils.image_reader import ImageReader
from training.data.dataset import ImageFolderDataset


class TrainingOrder:
    """The endless sequence of dataset indices that training sees. Every epoch is another permutation.

    The sequence is a function of (seed, position) alone: it is the same for any number of processes, and can start at
    any position. Epoch e is shuffled by a Mersenne Twister seeded with SeedSequence((seed, e)). NumPy promises that the
    streams of `RandomState` never change.

    Args:
        dataset_size: Number of items, mirrored ones included.
        seed:         Non-negative.
    """

    def __init__(self, dataset_size: int, seed: int):
        if dataset_size < 1 or seed < 0:
            raise ValueError(f"dataset_size {dataset_size} and seed {seed}: expected at least 1 and 0")
        self.dataset_size = dataset_size
        self.seed = seed
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)    # A batch may lie across two epochs.

    def _epoch(self, number: int) -> np.ndarray:
        """The indices of one epoch: int32 or int64 [dataset_size]. Callers must not write to them."""
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((self.seed, number))))
        small = self.dataset_size <= np.iinfo(np.int32).max
        permutation = np.arange(self.dataset_size, dtype=np.int32 if small else np.int64)
        generator.shuffle(permutation)
        return permutation

    def take(self, start: int, count: int) -> np.ndarray:
        """The dataset indices at positions start ... start + count - 1: int64 [count]."""
        if start < 0:
            raise IndexError(f"position {start} in the training order: expected 0 or more")
        parts = []
        while count > 0:
            number, offset = divmod(start, self.dataset_size)
            part = self.epoch(number)[offset : offset + count]
            parts.append(part.astype(np.int64))
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.zeros([0], dtype=np.int64)


class ImageBatch(NamedTuple):
    images: torch.Tensor  # uint8 [N, C, H, W].
    labels: torch.Tensor  # float32 [N, label_dim].


class BatchLoader(ImageReader):
    """Endless iterator of training batches. `close()`, the end of `with` or an error ends its workers.

    Positions k ... k + batch_size - 1 of the order form one global batch. Each rank gets a contiguous part of it.

    Args:
        dataset:     The images.
        order:       The order of training, by indices of `dataset`.
        batch_size:  Images of one global batch, a multiple of `num_ranks`.
        start_index: Position of the first image; a resumed run gives the position where it stopped.
        rank:        The part that this process gets.
        num_ranks:   Number of parts.
        num_workers: Processes that decode images, at most one for each core; 0 = decode in this process.
        pin_memory:  Give images in page-locked memory, for faster copies to the GPU. This needs CUDA.

    Yields:
        ImageBatch(images uint8 [batch_size / num_ranks, C, H, W], labels float32 [batch_size / num_ranks, label_dim]).

    Raises:
        UserError: On `next`, if an image can't be read. The message names it.
    """

    def __init__(
        self,
        dataset: ImageFolderDataset,
        *,
        order: TrainingOrder,
        batch_size: int,
        start_index: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 3,
        pin_memory: bool = False,
    ):
        if batch_size < 1 or batch_size % num_ranks or not 0 <= rank < num_ranks:
            raise ValueError(f"batch of {batch_size} for rank {rank} of {num_ranks}: expected a multiple of the ranks")
        if order.dataset_size != len(dataset):
            raise ValueError(f"an order of {order.dataset_size} items for a dataset of {len(dataset)}")
        self._order, self._step = order, batch_size
        self._count = batch_size // num_ranks
        self._position = start_index + rank * self._count
        super().__init__(dataset, iter(self._next_indices, None), batch_size=self._count, num_workers=num_workers,
                         pin_memory=pin_memory)

    def _next_indices(self) -> list[int]:
        indices = self._order.take(self._position, self._count).tolist()
        self._position += self._step
        return indices

    def __next__(self) -> ImageBatch:  # type: ignore[override]
        indices, images = super().__next__()
        return ImageBatch(images, torch.from_numpy(self._dataset.get_labels(indices)))
