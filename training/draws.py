"""How one GPU's share of the batch is divided into parts, and the latents and labels of the fake images of each part.

Published settings compute a batch in parts of `batch_gpu` images. Style mixing, path length and minibatch deviation
depend on them. Such a published part is called a unit here. A GPU may compute several units at once without changing
the result: each unit has its own latents, labels and style mixing, and minibatch deviation uses the same groups.

Random numbers depend only on the position in training. So a resumed run, and a run on another number of processes, draw
the same ones.
"""

import sys
from typing import Any, Iterator, NamedTuple

import numpy as np
import torch

from torch_utils import distributed, misc

from .config.schema import TrainingConfig
from .data.dataset import ImageFolderDataset
from .estimate import images_at_once
from .loss import Batch, Units


class Rows(NamedTuple):
    """Which images of a GPU's share make up one part."""

    positions: np.ndarray       # int64 [N], indices into the share.
    on_device: torch.Tensor     # The same on the device.
    units: Units | None         # None = the part is one unit, or lies in one.


class Division:
    """Divides one GPU's share of the batch into parts. All images of a part are computed at once.

    Minibatch deviation splits N images into N / group groups, and puts image k into group k mod (N / group). The images
    of a part are ordered so that these are the groups that each unit would form alone.

    Args:
        share:   Number of images of the batch on this GPU, a multiple of `unit`.
        at_once: Number of images in a part, a divisor of `share` and a multiple of `unit`.
        unit:    Number of images in a unit.
        group:   Number of images that share a minibatch deviation.
    """

    def __init__(self, share: int, *, at_once: int, unit: int, group: int, device: torch.device):
        self.at_once, self.unit, self.group, self.device = at_once, unit, min(group, unit), device
        groups = np.arange(share).reshape(-1, self.group, unit // self.group)
        self._groups = groups.transpose(0, 2, 1).reshape(-1, self.group)    # Positions of the images of each group.
        self.parts = self._divide()

    def halve(self) -> bool:
        """Halve the number of images per part, and print a warning. Returns False if that would split a group."""
        if self.at_once % (2 * self.group):
            return False
        self.at_once //= 2
        self.parts = self._divide()
        print(f"Warning: {self.device} is out of memory: computing {self.at_once} images at once from now on",
              file=sys.stderr, flush=True)
        return True

    def draw(self, real_img: torch.Tensor, real_c: torch.Tensor, **part_kwargs: Any) -> Iterator[Batch]:
        """Yield the batch of each part; `part_kwargs` go to `draw_part`."""
        for rows in self.parts:
            yield draw_part(rows, real_img, real_c, unit=self.unit, **part_kwargs)

    def _divide(self) -> list[Rows]:
        upload = lambda array: torch.from_numpy(array).to(self.device)
        step, parts = self.at_once // self.group, []
        for first in range(0, len(self._groups), step):
            positions = self._groups[first:first + step].T.flatten()
            numbers = positions // self.unit - positions.min() // self.unit
            units = Units(self.at_once // self.unit, upload(numbers), upload(np.argsort(numbers, kind="stable")))
            parts.append(Rows(positions, upload(positions), units if self.at_once > self.unit else None))
        return parts


def divide_batch(config: TrainingConfig, device: torch.device) -> Division:
    """Divide this GPU's share of the batch. With `fill_gpu`, a part has as many units as fit the GPU's memory."""
    c, at_once = config, images_at_once(config, device)
    if at_once > c.batch_gpu:
        distributed.print0(f"Computing {at_once} images at once, in parts of {c.batch_gpu}")
    return Division(c.batch_size // c.num_gpus, at_once=at_once, unit=c.batch_gpu, group=c.D.mbstd_group_size,
                    device=device)


def draw_part(
    rows: Rows, real_img: torch.Tensor, real_c: torch.Tensor, *, key: tuple[int, int, int], unit: int, z_dim: int,
    dataset: ImageFolderDataset,
) -> Batch:
    """Select the real images of a part, and draw latents and labels for the same number of fake ones.

    This also seeds PyTorch's generators for the random numbers that the losses draw.

    Args:
        real_img: [S, C, H, W], the real images of the whole share.
        real_c:   [S, c_dim], their labels.
        key:      (seed of the run, number of images shown before this share, index of the phase).
        unit:     Number of images in a unit.
        dataset:  Fake images get the labels of random items of it.
    """
    seed, first_nimg, phase = key
    first_unit, last_unit = rows.positions.min() // unit, rows.positions.max() // unit
    drawn = []
    for number in range(last_unit, first_unit - 1, -1):     # backwards: the generators stay as the first unit left them
        unit_key = (seed, first_nimg + int(number) * unit, phase)
        drawn.append(_draw(unit_key, unit, z_dim=z_dim, c_dim=real_c.shape[1], device=real_img.device, dataset=dataset))
    gen_z, gen_c = (torch.cat(parts) for parts in zip(*reversed(drawn)))
    if len(rows.positions) < unit and rows.positions[0] % unit:     # a later part of a unit: seed it differently
        torch.manual_seed(int(np.random.SeedSequence((*key, int(rows.positions[0]))).generate_state(1)[0]))
    index = rows.on_device
    if len(index) == len(real_img) == unit:     # the part is the whole share, in order
        return Batch(real_img, real_c, gen_z, gen_c)
    inside = index - int(first_unit) * unit
    return Batch(real_img[index], real_c[index], gen_z[inside], gen_c[inside], rows.units)


def _draw(
    key: tuple[int, int, int], n: int, *, z_dim: int, c_dim: int, device: torch.device, dataset: ImageFolderDataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seed PyTorch's generators, and draw latents [n, z_dim] and labels [n, c_dim] of one unit."""
    torch_seed, label_seed = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(torch_seed))
    gen_z = torch.randn([n, z_dim], device=device)
    if c_dim == 0:
        return gen_z, torch.zeros([n, 0], device=device)
    indices = np.random.RandomState(label_seed).randint(len(dataset), size=n)
    labels = torch.from_numpy(np.stack([dataset.get_label(int(i)) for i in indices]))
    return gen_z, misc.upload(labels, device)
