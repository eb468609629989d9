"""The architecture of the feature nets that feature_net.py trains: a small classifier, called like NVIDIA's nets."""

from typing import Any

import torch
from torch.nn.functional import avg_pool2d, interpolate


class ConvBlock(torch.nn.Module):
    """Convolution, normalisation, and a smooth activation, which makes distances of features smooth, too."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm: Any = torch.nn.BatchNorm2d(out_channels)
        self.act = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Merge the normalisation, as used for inference, into the convolution."""
        self.conv = torch.nn.utils.fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = torch.nn.Identity()


class ClassifierNet(torch.nn.Module):
    """Classifier with four stages. Each stage has half the resolution of the previous one.

    Args:
        num_classes: Number of classes.
        width:       Channels of the first stage.
        resolution:  Width and height of the images on which it is trained.
    """

    def __init__(self, num_classes: int, *, width: int, resolution: int) -> None:
        super().__init__()
        self.architecture = {"num_classes": num_classes, "width": width, "resolution": resolution}
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
        """Compute class probabilities, features, or inputs of the perceptual distance.

        Args:
            img:             Images [N, C, H, W] in 0..255, uint8 or float, C = 1 or 3. If they are float, gradients
                             flow to them.
            return_features: Return the pooled features [N, F].
            no_output_bias:  No effect: the last layer of this net has no bias. NVIDIA's interface has this argument.
            resize_images:   Scale images to the net's resolution first. False has an effect only with return_lpips.
            return_lpips:    Return [N, K]. The squared L2 distance of two rows is the perceptual distance.

        Returns:
            float32; class probabilities [N, num_classes] if neither return_features nor return_lpips is true.
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
        """Normalise [N, C, H, W] to [N, CHW]: features have length 1 at each position, divided by the root of HW.

        Squared distances of the result are means over positions.
        """
        x = x * (x.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt()
        return x.flatten(1) / (x.shape[2] * x.shape[3]) ** 0.5

    def logits(self, img: torch.Tensor) -> torch.Tensor:
        """Unnormalised log probabilities [N, num_classes] for images at the net's own resolution."""
        return self.fc(self.stage_outputs(self.preprocess(img, False))[3].mean(dim=[2, 3]))

    def fold(self) -> None:
        """Turn the trained net into its final form: in eval mode, without normalisation layers or gradients."""
        self.eval()
        for block in [*self.stages, self.residual]:
            block.fold()
        self.requires_grad_(False)
