"""Loading networks of this and of other StyleGAN2-style projects, under the name that their scripts import.

    with dnnlib.util.open_url(network_pkl) as f:
        G = legacy.load_network_pkl(f)["G_ema"].to(device)
"""

import os
from typing import Any, BinaryIO, Sequence

import torch

from dnnlib.util import EasyDict, open_url
from torch_utils.network_formats import read_networks

__all__ = ["load_network_pkl"]


def load_network_pkl(
    f: BinaryIO | str | os.PathLike,
    force_fp16: bool = False,
    *,
    trust: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Load the networks of a file, without running any code that it carries.

    Network pickles, safetensors files, state dicts under rosinality's names and ONNX files (the latter if convert.py
    wrote them) are told apart by their content.

    Args:
        f:          File open in binary mode, path, or http(s) URL (downloaded once).
        force_fp16: Let the four highest resolutions run in float16 on CUDA devices, whatever the networks were trained
                    with.
        trust:      Use the ordinary unpickler and run the source in a pickle: only for files whose origin you trust.
        only:       Build only these of the keys below; the others are None.

    Returns:
        A dict with `G`, `D`, `G_ema` and `augment_pipe` (modules on the CPU) and `training_set_kwargs` (EasyDict). What
        the file lacks is None.

    Raises:
        UserError: The file can't be read, holds no networks, asks for globals that are refused (`trust` is the way
            to accept them), or holds networks of another architecture.
    """
    if isinstance(f, (str, os.PathLike)):
        with open_url(f) as file:
            return load_network_pkl(file, force_fp16, trust=trust, only=only)
    networks = read_networks(f, trust=trust, only=only)
    if force_fp16:
        for key in ("G", "D", "G_ema"):
            if networks[key] is not None:
                networks[key] = _with_fp16(networks[key])
    return networks


def _with_fp16(network: torch.nn.Module) -> torch.nn.Module:
    """The same network, built anew with four float16 resolutions and the clamp that float16 needs."""
    kwargs = network.init_kwargs
    target = kwargs.setdefault("synthesis_kwargs", EasyDict()) if hasattr(network, "synthesis") else kwargs
    target.update(num_fp16_res=4, conv_clamp=256)
    with torch.random.fork_rng(devices=[]):
        result = type(network)(*network.init_args, **kwargs)
    result.load_state_dict(network.state_dict())
    result.train(network.training)
    for new, old in zip(result.parameters(), network.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return result
