"""Small networks, with all that trained ones have, for the tests of the command lines that make images."""

import torch

from torch_utils import network_pickle
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
