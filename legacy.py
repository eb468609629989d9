"""Load networks of this and other StyleGAN2-style projects. Their scripts import this module by this name:

    with dnnlib.util.open_url(network_pkl) as f:
        G = legacy.load_network_pkl(f)["G_ema"].to(device)

The command `legacy.py --source --dest` converts an old network pickle, as in StyleGAN2-ADA.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Sequence

import click

import cli
from dnnlib.util import EasyDict, UserError, check_writable, made_folder, open_url

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch

__all__ = ["load_network_pkl"]


def load_network_pkl(
    f: BinaryIO | str | os.PathLike,
    force_fp16: bool = False,
    *,
    trust: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Load the networks of a file, without running any code that it carries.

    The format is recognised by the content: network pickles, safetensors files, state dicts with rosinality's names,
    and ONNX files that convert.py wrote.

    Args:
        f:          File open in binary mode, path, or http(s) URL (downloaded once).
        force_fp16: Let the four highest resolutions run in float16 on CUDA devices, whatever the networks were trained
                    with.
        trust:      Use the ordinary unpickler and run the code in a pickle: only for files whose origin you trust.
        only:       Build only these of the keys below; the others are None.

    Returns:
        A dict with `G`, `D`, `G_ema` and `augment_pipe` (modules on the CPU) and `training_set_kwargs` (EasyDict).
        Entries that the file lacks are None.

    Raises:
        UserError: The file can't be read, holds no networks or networks of another architecture, or is a pickle with
                   globals that are refused unless `trust` is set.
    """
    from torch_utils.formats import read_networks

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
    """Rebuild a network with four resolutions in float16, and with the clamp that float16 needs."""
    import torch

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


@click.command(cls=cli.Command)
@click.option("--source", type=cli.Path(), metavar="PATH|URL", required=True, help="Networks, of any format")
@click.option("--dest", type=cli.Path(dir_okay=False), metavar="PATH", required=True, help="Network pickle to write")
@click.option("--force-fp16", type=bool, default=False, show_default=True, metavar="BOOL",
              help="Let the four highest resolutions run in float16 on CUDA devices")
@click.option("--overwrite", is_flag=True, help="Replace --dest")
@cli.trust_option
def main(source: str, dest: str, force_fp16: bool, overwrite: bool, trust_pickle: bool) -> None:
    """Convert an old network pickle, also of TensorFlow, to one that StyleGAN2-ADA and StyleGAN3 can read.

    convert.py does the same, compares images before and after, and knows other formats.

    \b
    Example:
      python legacy.py --source=stylegan2-cat-config-f.pkl --dest=stylegan2-cat-config-f-pt.pkl
    """
    if not dest:
        raise UserError("--dest is empty: give the name of a file")
    if os.path.lexists(dest) and not overwrite:
        raise UserError(f"--dest={dest} exists: --overwrite replaces it")
    check_writable(dest)
    with cli.shown_warnings():
        networks = load_network_pkl(source, force_fp16, trust=trust_pickle)
    from torch_utils import misc
    from torch_utils.formats.network_pickle import save_network_pkl

    found = {key: value for key, value in networks.items() if value is not None}
    for key in found.keys() - {"training_set_kwargs"}:
        misc.check_network(found[key], source, key)
    with made_folder(Path(dest).parent):
        save_network_pkl(dest, found)
    click.echo(f"{dest}: {', '.join(found)}")


if __name__ == "__main__":
    main()
