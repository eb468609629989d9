"""Reads batches of images ahead, in other processes, for training and for metrics."""

from collections import deque
from concurrent.futures import Future
from typing import Any, Iterable, NamedTuple, Sequence

import numpy as np
import torch

from dnnlib.util import UserError, num_cores
from dnnlib.worker_pool import SharedBuffer, WorkerPool, read_images

# Each worker reads at least 2 and at most 8 batches ahead, depending on how many fit in `_AHEAD_BYTES`. Small batches
# are read within milliseconds, and on a busy machine the next request may come later than that.
_AHEAD = (2, 8)
_AHEAD_BYTES = 8 << 20


class ReadBatch(NamedTuple):
    indices: Sequence[int]
    images: torch.Tensor    # uint8 [N, C, H, W], on the host.


class _Request(NamedTuple):
    """A batch that was requested from the workers."""

    future: Future
    indices: Sequence[int]
    offset: int             # Position of its images in the shared buffer, in bytes.


class ImageReader:
    """Iterator over batches of images. `close()`, the end of `with` or an error stops its workers.

    Args:
        dataset:     Has `image_shape` and `images(indices)`, like `training.dataset.ImageFolderDataset`.
        batches:     The indices of each batch; may be infinite.
        batch_size:  Size of the largest batch.
        num_workers: Processes that decode images, limited to one for each core; 0 = this process decodes.
        pin_memory:  Return tensors in page-locked memory, for faster copies to the GPU; needs CUDA.

    Raises:
        UserError: During iteration, if an image can't be read (the message names it) or a worker was killed.
    """

    def __init__(
        self, dataset: Any, batches: Iterable[Sequence[int]], *, batch_size: int, num_workers: int = 3,
        pin_memory: bool = False,
    ):
        self._dataset, self._batches = dataset, iter(batches)
        self._pin_memory = pin_memory
        self._requests: deque[_Request] = deque()
        self._pool: WorkerPool | None = None
        if num_workers:
            self._buffer = SharedBuffer()
            self._pool = WorkerPool(min(num_workers, num_cores()), self._buffer)
            batch_bytes = batch_size * int(np.prod(dataset.image_shape))
            ahead = min(max(_AHEAD_BYTES // batch_bytes, _AHEAD[0]), _AHEAD[1])
            for slot in range(ahead * self._pool.num_workers):
                self._request(slot * batch_bytes)

    def _request(self, offset: int) -> None:
        assert self._pool is not None
        indices = next(self._batches, None)
        if indices is not None:
            future = self._pool.submit(read_images, self._dataset.images(indices), offset)
            self._requests.append(_Request(future, indices, offset))

    def __iter__(self) -> "ImageReader":
        return self

    def __next__(self) -> ReadBatch:
        try:
            return self._read_here() if self._pool is None else self._receive(self._pool)
        except UserError:
            self.close()
            raise

    def _receive(self, pool: WorkerPool) -> ReadBatch:
        if not self._requests:
            raise StopIteration
        request = self._requests[0]  # removed only when the batch is complete: Ctrl-C before that loses nothing
        pool.result(request.future)
        images = self._empty(len(request.indices))
        self._buffer.read_into(images.numpy(), request.offset)
        self._request(request.offset)
        self._requests.popleft()
        return ReadBatch(request.indices, images)

    def _read_here(self) -> ReadBatch:
        indices = next(self._batches)
        images, part = self._empty(len(indices)), self._dataset.images(indices)
        for i, image in enumerate(images.numpy()):
            image[...] = part.read(i)
        return ReadBatch(indices, images)

    def _empty(self, count: int) -> torch.Tensor:
        return torch.empty([count, *self._dataset.image_shape], dtype=torch.uint8, pin_memory=self._pin_memory)

    def close(self) -> None:
        """Stop the workers and end the iteration."""
        self._batches = iter(())
        self._requests.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
