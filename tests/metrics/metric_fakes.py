"""Stand-ins that the tests of metrics share: a data set in memory, and a small feature net in a TorchScript file."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from small_networks import save_torchscript


class ArrayDataset:
    """Images and labels in memory, with the options of the real data set that metrics use."""

    def __init__(self, images, labels=None, *, max_size=None, xflip=False, name="arrays"):
        self._images = images
        self._labels = labels if labels is not None else np.zeros([len(images), 0], np.float32)
        self.max_size, self.xflip, self.name = max_size, xflip, name

    resize_filter = None

    @property
    def image_shape(self):
        return list(self._images.shape[1:])

    @property
    def label_dim(self):
        return self._labels.shape[1]

    @property
    def _num_raw(self):
        return len(self._images) if self.max_size is None else min(self.max_size, len(self._images))

    def __len__(self):
        return self._num_raw * (2 if self.xflip else 1)

    def __getitem__(self, i):
        img = self._images[i % self._num_raw]
        return (img[:, :, ::-1] if i >= self._num_raw else img), self.get_label(i)

    def images(self, indices):
        return ArrayImages(np.stack([self[i][0] for i in indices]))

    def get_label(self, i):
        return self._labels[i % self._num_raw].copy()

    def replace(self, *, max_size=None, xflip=None):
        xflip = self.xflip if xflip is None else xflip
        other = type(self)(self._images, self._labels, max_size=max_size, xflip=xflip, name=self.name)
        other.resize_filter = self.resize_filter
        return other

    @property
    def fingerprint(self):
        content = self._images.tobytes() + self._labels.tobytes() + repr((self.max_size, self.xflip)).encode()
        return hashlib.sha256(content).hexdigest()


class ArrayImages:
    """Some of the images, for `dnnlib.reader_pool.read_images`."""

    def __init__(self, items):
        self.items, self.flips, self.shape = items, [False] * len(items), items.shape[1:]

    def read(self, position):
        return self.items[position]


def random_images(n, *, seed=0, resolution=16, channels=3):
    """Smooth images with differing colours, uint8 [n, C, H, W]."""
    rng = np.random.RandomState(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, [n, channels, 2, 2]))
    return torch.nn.functional.interpolate(coarse, size=resolution, mode="bilinear").to(torch.uint8).numpy()


class SmallNet(torch.nn.Module):
    """All three interfaces of feature nets."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(48, 10, generator=generator) * 0.3)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False,
                resize_images: bool = False, return_lpips: bool = False) -> torch.Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(img.to(torch.float32), 4).flatten(1) / 255
        if return_features or return_lpips:
            return x
        return torch.softmax(x @ self.weight, dim=1)


class PerceptualOnly(torch.nn.Module):
    def forward(self, img: torch.Tensor, resize_images: bool = False, return_lpips: bool = False) -> torch.Tensor:
        return img.flatten(1) / 255


def save_net(path: Path, net: torch.nn.Module | None = None) -> str:
    """A TorchScript net that is trusted where the cache is now."""
    return str(save_torchscript(path, net or SmallNet()))
