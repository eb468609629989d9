"""Training of small classifiers. Their features serve as detectors and as perceptual nets; see feature_net.py."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy, interpolate, pad
from tqdm import tqdm

from dnnlib.util import UserError
from torch_utils.formats.classifier_net import ClassifierNet
from training.data.dataset import ImageFolderDataset

_MAX_RESOLUTION = 64  # Larger images are scaled down to this. It suffices to tell classes apart, and training is short.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    epochs: int
    width: int              # Channels of the first stage; the last one has eight times as many.
    batch_size: int
    lr: float               # Peak of the one-cycle schedule.
    seed: int
    holdout: float          # Share of the images that measures the accuracy and is not trained on.


class LabelledImages(NamedTuple):
    images: torch.Tensor    # uint8 [N, 3, R, R]
    classes: torch.Tensor   # int64 [N]
    num_classes: int
    name: str


def read_images(path: str) -> LabelledImages:
    """Read a whole labelled dataset into memory.

    Raises:
        UserError: The images have no class labels, or fewer than two classes.
    """
    dataset = ImageFolderDataset(path, use_labels=True)
    if not dataset.has_labels:
        raise UserError(f"{path} has no labels: feature_net.py needs a dataset.json with a class for each image")
    if not dataset.has_onehot_labels:
        raise UserError(f"the labels in {path} are vectors of {dataset.label_dim} numbers: feature_net.py needs one "
                        "class, an integer, for each image")
    side = min(dataset.resolution, _MAX_RESOLUTION)
    images = torch.empty(len(dataset), 3, side, side, dtype=torch.uint8)
    classes = torch.empty(len(dataset), dtype=torch.int64)
    for i in tqdm(range(len(dataset)), desc="Reading", unit="img", unit_scale=True, leave=False):
        img, label = dataset[i]
        pixels = torch.from_numpy(img)
        if side < dataset.resolution:
            size = [side, side]
            scaled = interpolate(pixels[None].float(), size, mode="bilinear", align_corners=False, antialias=True)
            pixels = scaled[0].round().clamp(0, 255).to(torch.uint8)
        images[i] = pixels  # grey images are repeated to 3 channels
        classes[i] = int(np.argmax(label))
    num_classes = len(classes.unique())
    if num_classes < 2:
        raise UserError(f"all images in {path} are of one class: feature_net.py needs two or more")
    return LabelledImages(images, classes, dataset.label_dim, dataset.name)


def split(num_images: int, holdout: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random int64 indices to train on, and to measure the accuracy on; at least one each."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    held_out = min(max(round(num_images * holdout), 1), num_images - 1)
    return order[held_out:], order[:held_out]


def augment(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change shift (up to an eighth of the size), brightness, colour and noise of images, but not their class.

    Args:
        img:       uint8 [N, C, R, R].
        generator: Source of randomness, on the images' device.

    Returns:
        float [N, C, R, R] in [0, 255], channels-last.
    """
    n, channels, side, _ = img.shape
    device = img.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device) * (high - low) + low

    reach = max(side // 8, 1)
    padded = pad(img.float(), [reach] * 4, mode="reflect")
    start = torch.randint(2 * reach + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = start + torch.arange(side, device=device)  # [N, R] each
    index = torch.arange(n, device=device)[:, None, None]
    x = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [N, C, R, R]
    gain = uniform(0.8, 1.2, n, 1, 1, 1) * uniform(0.9, 1.1, n, channels, 1, 1)
    x = (x - 127.5) * gain + 127.5 + uniform(-20, 20, n, 1, 1, 1)
    noise = torch.randn((n, side, side, channels), generator=generator, device=device).permute(0, 3, 1, 2)
    return (x + noise * uniform(0, 12, n, 1, 1, 1)).clamp(0, 255)


def train(data: LabelledImages, indices: torch.Tensor, options: TrainingOptions, device: torch.device) -> ClassifierNet:
    """Train a classifier on `indices` of `data`, and fold it (`ClassifierNet.fold`).

    Raises:
        UserError: The loss is not finite.
    """
    torch.manual_seed(options.seed)
    net = ClassifierNet(data.num_classes, width=options.width, resolution=data.images.shape[-1])
    net = net.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # PyTorch 2.11
    images, classes = data.images[indices].to(device), data.classes[indices].to(device)
    generator = torch.Generator(device).manual_seed(options.seed)
    batch_size = min(options.batch_size, len(indices))
    steps = len(indices) // batch_size
    num_steps = options.epochs * steps
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle((step + 0.5) / num_steps))
    with tqdm(total=num_steps * batch_size, desc="Training", unit="img", unit_scale=True) as bar:
        for epoch in range(options.epochs):
            order = torch.randperm(len(indices), generator=generator, device=device)
            for batch in order[:steps * batch_size].split(batch_size):
                logits = net.logits(augment(images[batch], generator))
                loss = cross_entropy(logits, classes[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(batch_size)
            loss_value = loss.item()
            if not math.isfinite(loss_value):
                raise UserError(f"training diverged in epoch {epoch + 1}: try a --lr below {options.lr:g}")
            bar.set_postfix(epoch=f"{epoch + 1}/{options.epochs}", loss=f"{loss_value:.2f}")
    net.fold()
    return net


def _one_cycle(progress: float) -> float:
    """Factor of the peak learning rate. It rises in the first quarter of training, then falls to 0 along a cosine."""
    return 4 * progress if progress < 0.25 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.25) / 0.75)


@torch.no_grad()
def accuracy(net: ClassifierNet, data: LabelledImages, indices: torch.Tensor, device: torch.device) -> float:
    """The share of the images `indices` that the net classifies correctly, 0 to 1."""
    correct = 0
    for batch in indices.split(500):
        probabilities = net(data.images[batch].to(device), no_output_bias=True)
        correct += int((probabilities.argmax(dim=1).cpu() == data.classes[batch]).sum())
    return correct / len(indices)
