"""How a GPU's share of the batch is computed: divided into parts, each with latents and labels of generated images.

Published settings compute a batch in parts of `batch_gpu` images, which style mixing, path length and minibatch
deviation depend on. Here those are units: however many of them a GPU computes at once, each has the latents, labels and
style mixing of its own, and minibatch deviation forms the same groups of images.

Draws depend on the position in training alone, so that an interrupted run, or one on another number of processes, draws
the same.
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
    """The images of one part."""

    positions: np.ndarray       # [N] in the share.
    on_device: torch.Tensor     # The same.
    units: Units | None         # None = they are one unit, or a part of one.


class Division:
    """The images of one GPU, divided into parts that it computes at once.

    Minibatch deviation takes N images for N / group groups, of which image k belongs to number k mod (N / group). So
    images are put into an order in which these are the groups that each unit has by itself.

    Args:
        share:   Images of the batch on this GPU, a multiple of `unit`.
        at_once: Images of a part: a divisor of `share`, and a multiple of `unit`.
        unit:    Images of a published part.
        group:   Images that share a minibatch deviation.
    """

    def __init__(self, share: int, *, at_once: int, unit: int, group: int, device: torch.device):
        self.at_once, self.unit, self.group, self.device = at_once, unit, min(group, unit), device
        groups = np.arange(share).reshape(-1, self.group, unit // self.group)
        self._groups = groups.transpose(0, 2, 1).reshape(-1, self.group)    # The images of each.
        self.parts = self._divide()

    def halve(self) -> bool:
        """Compute half as many images at once from now on, and say so; False if that would divide a group."""
        if self.at_once % (2 * self.group):
            return False
        self.at_once //= 2
        self.parts = self._divide()
        print(f"Warning: {self.device} is out of memory: computing {self.at_once} images at once from now on",
              file=sys.stderr, flush=True)
        return True

    def draw(self, real_img: torch.Tensor, real_c: torch.Tensor, **said: Any) -> Iterator[Batch]:
        """The batch of each part; see `draw_part`."""
        for rows in self.parts:
            yield draw_part(rows, real_img, real_c, unit=self.unit, **said)

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
    """The division of the batch on this GPU, which computes as many parts at once as `fill_gpu` allows."""
    c, at_once = config, images_at_once(config, device)
    if at_once > c.batch_gpu:
        distributed.print0(f"Computing {at_once} images at once, in parts of {c.batch_gpu}")
    return Division(c.batch_size // c.num_gpus, at_once=at_once, unit=c.batch_gpu, group=c.D.mbstd_group_size,
                    device=device)


def draw_part(
    rows: Rows, real_img: torch.Tensor, real_c: torch.Tensor, *, key: tuple[int, int, int], unit: int, z_dim: int,
    dataset: ImageFolderDataset,
) -> Batch:
    """The real images of a part, latents and labels for as many others; PyTorch's generators are seeded for all that
    the losses draw.

    Args:
        real_img: [S, C, H, W], the whole share.
        real_c:   [S, c_dim].
        key:      (seed of the run, number of images shown before the share, number of the phase).
        unit:     Images of a published part.
        dataset:  Generated images get the labels of random items.
    """
    seed, first_nimg, phase = key
    first_unit, last_unit = rows.positions.min() // unit, rows.positions.max() // unit
    drawn = []
    for number in range(last_unit, first_unit - 1, -1):     # The generators stay as the first unit leaves them.
        unit_key = (seed, first_nimg + int(number) * unit, phase)
        drawn.append(_draw(unit_key, unit, z_dim=z_dim, c_dim=real_c.shape[1], device=real_img.device, dataset=dataset))
    gen_z, gen_c = (torch.cat(parts) for parts in zip(*reversed(drawn)))
    if len(rows.positions) < unit and rows.positions[0] % unit:     # Other parts of the same unit draw otherwise.
        torch.manual_seed(int(np.random.SeedSequence((*key, int(rows.positions[0]))).generate_state(1)[0]))
    index = rows.on_device
    if len(index) == len(real_img) == unit:     # All of it, in its order.
        return Batch(real_img, real_c, gen_z, gen_c)
    inside = index - int(first_unit) * unit
    return Batch(real_img[index], real_c[index], gen_z[inside], gen_c[inside], rows.units)


def _draw(
    key: tuple[int, int, int], n: int, *, z_dim: int, c_dim: int, device: torch.device, dataset: ImageFolderDataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [n, z_dim] and labels [n, c_dim] of one unit."""
    torch_seed, label_seed = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(torch_seed))
    gen_z = torch.randn([n, z_dim], device=device)
    if c_dim == 0:
        return gen_z, torch.zeros([n, 0], device=device)
    indices = np.random.RandomState(label_seed).randint(len(dataset), size=n)
    labels = torch.from_numpy(np.stack([dataset.get_label(int(i)) for i in indices]))
    return gen_z, misc.upload(labels, device)
