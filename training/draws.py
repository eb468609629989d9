"""Latents and labels of generated images. They depend on the position in training alone, so that an interrupted run,
or one on another number of processes, draws the same."""

import numpy as np
import torch

from torch_utils import misc

from .data.dataset import ImageFolderDataset
from .loss import Batch


def draw_part(
    key: tuple[int, int, int], real_img: torch.Tensor, real_c: torch.Tensor, *, z_dim: int, dataset: ImageFolderDataset
) -> Batch:
    """Latents and labels for one part of a batch; PyTorch's generators are seeded for all that the losses draw.

    Args:
        key:      (seed of the run, number of images shown before the first one of this part, number of the phase).
        real_img: [N, C, H, W].
        real_c:   [N, c_dim].
        dataset:  Generated images get the labels of random items.
    """
    n, device = len(real_img), real_img.device
    torch_seed, label_seed = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(torch_seed))
    gen_z = torch.randn([n, z_dim], device=device)
    if real_c.shape[1] == 0:
        return Batch(real_img, real_c, gen_z, torch.zeros([n, 0], device=device))
    indices = np.random.RandomState(label_seed).randint(len(dataset), size=n)
    labels = torch.from_numpy(np.stack([dataset.get_label(int(i)) for i in indices]))
    return Batch(real_img, real_c, gen_z, misc.upload(labels, device))
