"""Small networks, with all that trained ones have, for the tests of the command lines that make images."""

import warnings

import torch

from torch_utils.formats import network_pickle
from torch_utils.formats.feature_nets import trust_net
from training.networks import Discriminator, Generator

SMALL = {"channel_base": 128, "channel_max": 16}


def make_generator(*, c_dim=0, img_channels=3):
    """16x16 pixels, 6 layers; noise and truncation have an effect."""
    torch.manual_seed(0)
    G = Generator(8, c_dim, 12, 16, img_channels, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=SMALL)
    with torch.no_grad():
        G.mapping.w_avg.copy_(torch.randn(12))
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.2)
    return G.eval().requires_grad_(False)


def make_discriminator(*, c_dim=0, img_channels=3, res_g=8, **kwargs):
    """With decoder and heads for `make_generator`, unless `kwargs` say otherwise."""
    torch.manual_seed(1)
    heads = dict(decoder_res=8, glead_res_g=res_g, decoder_out_channel=12) | kwargs
    D = Discriminator(c_dim, 16, img_channels, epilogue_kwargs={"mbstd_group_size": 4}, **SMALL, **heads)
    return D.eval().requires_grad_(False)


def save(path, **networks):
    network_pickle.save_network_pkl(path, networks)


class Overwriting(torch.nn.Module):
    """A feature net that writes to a file when it is opened."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.flatten(1).float()

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.victim, self.training = state
        torch.save(torch.zeros(1), self.victim)


def save_torchscript(path, net, *, trust=True):
    """Write a TorchScript file, and trust it where the cache is now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the format of these files
        torch.jit.script(net).save(str(path))
    if trust:
        trust_net(path)
    return path
