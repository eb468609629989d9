"""Training of small classifiers whose features compare images; see feature_net.py."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate
from tqdm import tqdm

from dnnlib.util import UserError

from .dataset import ImageFolderDataset

_MAX_RESOLUTION = 64  # Larger images are scaled down: class labels can be told from that, and it keeps training short.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    epochs: int
    width: int              # Channels of the first stage; the last one has eight times as many.
    batch_size: int
    lr: float               # Peak of the one-cycle schedule.
    seed: int
    holdout: float          # Share of the images that is kept back to measure the accuracy.


class LabelledImages(NamedTuple):
    images: torch.Tensor    # uint8 [N, 3, R, R]
    classes: torch.Tensor   # int64 [N]
    num_classes: int
    name: str


class ConvBlock(torch.nn.Module):
    """Convolution, normalisation, and an activation without a kink, so that distances of features are smooth."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(out_channels)
        self.act = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Put the normalisation of inference into the convolution."""
        self.conv = torch.nn.utils.fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = torch.nn.Identity()


class FeatureNet(torch.nn.Module):
    """Classifier of four stages, each at half the resolution of the one before.

    Args:
        num_classes: Width of the output.
        width:       Channels of the first stage.
        resolution:  Side of the images that it is trained on.
    """

    def __init__(self, num_classes: int, *, width: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stages = torch.nn.ModuleList(ConvBlock(i, o) for i, o in zip([3] + widths[:-1], widths))
        self.residual = ConvBlock(widths[2], widths[2])
        self.fc = torch.nn.Linear(widths[3], num_classes, bias=False)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        no_output_bias: bool = False,
        resize_images: bool = True,
        return_lpips: bool = False,
    ) -> torch.Tensor:
        """One of three results, of images [N, C, H, W] in 0..255, uint8 or float, C = 1 or 3.

        Args:
            img:             The images; gradients flow to them if they are float.
            return_features: Give the pooled features [N, F].
            no_output_bias:  Part of the interface; the last layer of this net has no bias.
            resize_images:   Scale to the net's own resolution first; False takes effect with return_lpips only.
            return_lpips:    Give [N, K], whose squared L2 distance is the perceptual distance.

        Returns:
            float32; class probabilities [N, classes] if neither features nor distances are asked for.
        """
        x = self.preprocess(img, resize_images or not return_lpips)
        if return_lpips:
            return torch.cat([self.unit_length(stage) for stage in self.stage_outputs(x)], dim=1)
        features = self.stage_outputs(x)[3].mean(dim=[2, 3])
        if return_features:
            return features
        return self.fc(features).softmax(dim=1)

    def preprocess(self, img: torch.Tensor, resize: bool) -> torch.Tensor:
        x = img.to(torch.float32)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if resize and (x.shape[2] != self.resolution or x.shape[3] != self.resolution):
            size = [self.resolution, self.resolution]
            x = interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x / 127.5 - 1

    def stage_outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else avg_pool2d(x, 2))
            if i == 2:
                x = x + self.residual(x)
            outputs.append(x)
        return outputs

    def unit_length(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] as [N, CHW]: length 1 at each position, scaled so that squared distances are means over them."""
        x = x * (x.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt()
        return x.flatten(1) / (x.shape[2] * x.shape[3]) ** 0.5

    def logits(self, img: torch.Tensor) -> torch.Tensor:
        """Unnormalised log probabilities [N, classes] of images at the net's own resolution."""
        return self.fc(self.stage_outputs(self.preprocess(img, False))[3].mean(dim=[2, 3]))

    def fold(self) -> None:
        """Turn the trained net into the one that is exported."""
        self.eval()
        for block in [*self.stages, self.residual]:
            block.fold()
        self.requires_grad_(False)


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
        images[i] = pixels  # grey is repeated
        classes[i] = int(np.argmax(label))
    num_classes = len(classes.unique())
    if num_classes < 2:
        raise UserError(f"all images in {path} are of one class: feature_net.py needs two or more")
    return LabelledImages(images, classes, dataset.label_dim, dataset.name)


def split(num_images: int, holdout: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to train on and indices to measure on, drawn by `seed`; at least one each."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    held_out = min(max(round(num_images * holdout), 1), num_images - 1)
    return order[held_out:], order[:held_out]


def augment(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What keeps every class: shifts by up to an eighth, changes of brightness and colour, noise.

    Args:
        img:       uint8 [N, C, R, R].
        generator: Source of randomness, on the images' device.

    Returns:
        float [N, C, R, R] in 0..255, channels-last.
    """
    n, channels, side, _ = img.shape
    device = img.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device) * (high - low) + low

    reach = max(side // 8, 1)
    padded = torch.nn.functional.pad(img.float(), [reach] * 4, mode="reflect")
    start = torch.randint(2 * reach + 1, (2, n, 1), generator=generator, device=device)
    rows, columns = start + torch.arange(side, device=device)  # [N, R] each
    index = torch.arange(n, device=device)[:, None, None]
    x = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [N, C, R, R]
    gain = uniform(0.8, 1.2, n, 1, 1, 1) * uniform(0.9, 1.1, n, channels, 1, 1)
    x = (x - 127.5) * gain + 127.5 + uniform(-20, 20, n, 1, 1, 1)
    noise = torch.randn((n, side, side, channels), generator=generator, device=device).permute(0, 3, 1, 2)
    return (x + noise * uniform(0, 12, n, 1, 1, 1)).clamp(0, 255)


def train(data: LabelledImages, indices: torch.Tensor, options: TrainingOptions, device: torch.device) -> FeatureNet:
    """Train a classifier on `indices` of `data`; the result is folded, in eval mode.

    Raises:
        UserError: The loss is no longer a number.
    """
    torch.manual_seed(options.seed)
    net = FeatureNet(data.num_classes, width=options.width, resolution=data.images.shape[-1])
    net = net.to(device, memory_format=torch.channels_last).train()
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
    """Share of the highest learning rate: up in the first quarter, then down to 0 along a cosine."""
    return 4 * progress if progress < 0.25 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.25) / 0.75)


@torch.no_grad()
def accuracy(net: FeatureNet, data: LabelledImages, indices: torch.Tensor, device: torch.device) -> float:
    """The share of `indices` whose class the net gives the highest probability."""
    correct = 0
    for batch in indices.split(500):
        probabilities = net(data.images[batch].to(device), no_output_bias=True)
        correct += int((probabilities.argmax(dim=1).cpu() == data.classes[batch]).sum())
    return correct / len(indices)
