"""View networks in a browser: seeds, truncation, style mixing, interpolation, and reconstructions by D and G."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import tempfile
from typing import TYPE_CHECKING

import click

import cli
from dnnlib.util import UserError

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch

    from sampling.viewer import Model, Rebuilder

LOOPBACK = "127.0.0.1"
INSTALL = "pip install 'gradio>=6'"


@click.command(cls=cli.Command)
@click.option("--network", "networks", type=cli.Path(), multiple=True, required=True, metavar="PATH|URL",
              help="Network, as for generate.py; may be given several times, to see networks side by side")
@cli.label_option
@click.option("--host", default=LOOPBACK, show_default=True, metavar="ADDRESS",
              help="Address to listen on; 0.0.0.0 lets all who can reach this machine use the page")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True,
              help="Port to listen on; 0 = any free port")
@cli.device_option
def main(networks: tuple[str, ...], label: list[float] | None, host: str, port: int, device: str | None) -> None:
    """View networks in a browser. The page needs no network access, and code in pickles is not run.

    \b
    Examples:
      python view.py --network=network-snapshot-025000.pkl
      python view.py --network=glead.pkl --network=stylegan2.pkl --port=8080
    """
    check_gradio()
    with listen(host, port) as listening, tempfile.TemporaryDirectory() as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache   # its default may belong to another user of this machine
        models = load_models(networks, label, device)
        from sampling.viewer_page import serve

        if host != LOOPBACK:
            cli.warn(f"all who can reach {host} on this machine can use the page")
        click.echo(f"http://{host}:{listening.getsockname()[1]} shows {', '.join(model.name for model in models)}; "
                   "Ctrl-C ends it")
        serve(models, listening)


def check_gradio() -> None:
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as e:
        raise UserError(f"view.py needs the package gradio, which is not installed: {INSTALL}") from e
    if int(version.partition(".")[0]) < 6:
        raise UserError(f"view.py needs gradio 6 or later, and {version} is installed: {INSTALL}")


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve the page on. Browsers that connect early wait until the page is served."""
    try:
        return socket.create_server((host, port))
    except OSError as e:
        reason = e.strerror.partition(" (")[0]
        raise UserError(f"can't listen on {host}:{port}: {reason}; --host and --port give another place") from e


def load_models(networks: tuple[str, ...], vector: list[float] | None, device_name: str | None) -> list[Model]:
    """Load the networks on their device. They must make images of one size."""
    from analysis.curves import unique_labels
    from sampling.viewer import Model, count_classes
    from torch_utils import misc

    device = misc.pick_device(device_name)
    models = []
    for name, path in zip(unique_labels(networks), networks, strict=True):
        modules = cli.load_networks(path, trust=False, only=cli.PAIR)
        G = cli.need_generator(modules, path).to(device)
        label = cli.pick_label(G, None, vector) if vector is not None else None
        rebuilder, no_rebuilder = find_rebuilder(modules, path, device)
        models.append(Model(name, G, rebuilder, no_rebuilder, label=label))
    cli.check_one_size(list(zip(networks, (model.G for model in models), strict=True)))
    count_classes(models)
    return models


def find_rebuilder(
    modules: dict[str, torch.nn.Module], path: str, device: torch.device
) -> tuple[Rebuilder | None, str]:
    """The networks that reconstruct images, and ""; or None, and why the file has none."""
    from sampling.reconstruction import find_res_g
    from sampling.viewer import Rebuilder

    try:
        G, D = cli.need_pair(modules, path, purpose="rebuilding images")
        return Rebuilder(G.to(device), D.to(device), find_res_g(G, D, name=path)), ""
    except UserError as e:
        return None, str(e)


if __name__ == "__main__":
    main()
