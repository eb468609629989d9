"""A generator and a discriminator of one layer each, which share nothing with StyleGAN2."""

import torch

from torch_utils import persistence


class _Mapping(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = torch.nn.Linear(width, width)

    def forward(self, z, c, **kwargs):
        return self.fc(z).tanh().unsqueeze(1).repeat(1, 2, 1)  # [N, 2, w_dim]


@persistence.persistent_class
class ToyGenerator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, img_resolution, img_channels, **kwargs):
        super().__init__()
        self.z_dim, self.w_dim, self.c_dim = z_dim, z_dim, c_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.mapping = _Mapping(z_dim)
        self.layers = torch.nn.Linear(z_dim, img_channels * img_resolution**2)

    def synthesis(self, ws, **kwargs):
        return self.layers(ws.mean(1)).sin().unflatten(1, [self.img_channels, self.img_resolution, self.img_resolution])

    def forward(self, z, c, **kwargs):
        return self.synthesis(self.mapping(z, c))


@persistence.persistent_class
class ToyDiscriminator(torch.nn.Module):
    def __init__(self, c_dim, img_resolution, img_channels, **kwargs):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(img_channels * img_resolution**2, 32), torch.nn.Softplus(),
            torch.nn.Linear(32, 1),
        )

    def forward(self, img, c=None):
        return self.layers(img)
