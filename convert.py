"""Convert networks between formats: network pickles, safetensors, state dicts under rosinality's names, ONNX."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, atomic_write, check_writable, is_url, made_folder, sha256_of

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch

SUFFIXES = {".pkl": "pkl", ".safetensors": "safetensors", ".pt": "pt", ".onnx": "onnx"}
KEYS = ("G", "D", "G_ema", "augment_pipe", "training_set_kwargs")
PROBE_SEEDS = (0, 1, 2)     # Images of these latents are compared, without truncation ...
PROBE_PSI = 0.7             # ... and the first one also with this truncation.


class Discrepancy(NamedTuple):
    """How far images of the converted generator are from those of the source."""

    difference: float       # Largest absolute difference of two pixels.
    largest: float          # Largest absolute value of a pixel of the source.

    @property
    def relative(self) -> float:
        """The difference relative to `largest`, or to 1 if that is more: large values have large rounding errors."""
        return self.difference / max(self.largest, 1)


@click.command(cls=cli.Command)
@click.option("--network", type=cli.Path(), metavar="PATH|URL", required=True,
              help="Networks to convert, in any format")
@click.option("--out", type=cli.Path(dir_okay=False), help="File to write", required=True)
@click.option("--format", "format_name", type=click.Choice([*SUFFIXES.values(), "safetensors-float16"]),
              help="Format of --out; safetensors-float16 has half the size  [default: by its suffix]")
@click.option("--only", type=cli.CommaList(), help=f"Keep only these of {','.join(KEYS)}", metavar="KEY,...")
@click.option("--noise-mode", type=click.Choice(["const", "none"]), default="const", show_default=True,
              help="Noise of an ONNX graph: the generator's constant one, or none")
@click.option("--card/--no-card", default=True, show_default=True, help="Write a model card beside --out, as NAME.md")
@click.option("--overwrite", is_flag=True, help="Replace --out and the files beside it")
@cli.trust_option
def main(**options: Any) -> None:
    """Convert networks between formats.

    \b
    .pkl          all networks, with code that checkouts of StyleGAN2-ADA and StyleGAN3 can run
    .safetensors  all networks, without code; a description of them is in the file and beside it (NAME.json)
    .pt           unconditional RGB generators of the skip architecture, as rosinality's stylegan2-pytorch names them
    .onnx         G_ema as a graph, from z, c (if conditional) and optionally truncation_psi to img

    Before the result appears at --out, it is read again and compared with the source. Images are always compared, and
    tensors if the format keeps them exactly.

    \b
    Examples:
      python convert.py --network=network-snapshot-025000.pkl --out=church.safetensors
      python convert.py --network=church.safetensors --out=church.onnx --noise-mode=none
      python convert.py --network=rosinality.pt --out=network.pkl --no-card
    """
    opts = cli.Arguments(**options)
    target = Path(opts.out)
    opts.format_name = opts.format_name or SUFFIXES.get(target.suffix.lower())
    if opts.format_name is None:
        raise UserError(f"--out={opts.out} has none of the suffixes {', '.join(SUFFIXES)}: give --format")
    unknown = sorted(set(opts.only or ()) - set(KEYS))
    if unknown or opts.only == []:
        raise UserError(f"--only={','.join(unknown)}: choose from {', '.join(KEYS)}")
    if opts.noise_mode != "const" and opts.format_name != "onnx":
        cli.warn("--noise-mode has no effect: only ONNX files hold a fixed kind of noise")
        opts.noise_mode = "const"
    card_path = target.with_suffix(".md") if opts.card else None
    check_target(target, opts.network, opts.format_name, overwrite=opts.overwrite)
    if card_path is not None and card_path.exists() and not opts.overwrite:
        cli.warn(f"{card_path} is kept as it is: --overwrite writes a new card")
        card_path = None
    with cli.shown_warnings(), tqdm(total=4, unit="step", disable=None, leave=False) as progress:
        convert(opts, target, card_path, progress)


def check_target(target: Path, network: str, format_name: str, *, overwrite: bool) -> None:
    """Check that the files can be written, and that none is overwritten by accident."""
    check_writable(target)
    if not is_url(network) and target.exists() and os.path.exists(network) and target.samefile(network):
        raise UserError(f"--out={target} is --network itself: give another name")
    files = [target, target.with_suffix(".json")] if format_name.startswith("safetensors") else [target]
    if len({*files, target.with_suffix(".md")}) <= len(files):
        raise UserError(f"--out={target}: this suffix is for what is written beside the networks; choose another")
    there = [str(path) for path in files if path.exists()]
    if there and not overwrite:
        raise UserError(f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''}: --overwrite replaces it")


def convert(opts: cli.Arguments, target: Path, card_path: Path | None, progress: tqdm) -> None:
    """Read the networks, and write, check and describe the result in a temporary folder. Then move it to the target."""
    progress.set_description("reading")
    import legacy

    networks = legacy.load_network_pkl(opts.network, trust=opts.trust_pickle, only=opts.only)
    networks = select(networks, opts.network, opts.format_name, only=opts.only)
    progress.update()
    folder_name = dict(dir=target.parent, prefix=f".{target.name}.")
    with made_folder(target.parent), tempfile.TemporaryDirectory(**folder_name) as folder:
        progress.set_description("writing")
        written = write(Path(folder, target.name), networks, opts.format_name, noise_mode=opts.noise_mode)
        progress.update()
        progress.set_description("checking")
        compared = check(networks, written[0], opts.format_name, noise_mode=opts.noise_mode)
        progress.update()
        if card_path is not None:
            written.append(Path(folder, card_path.name))
            text = describe(opts.network, networks, written[:-1], compared, noise_mode=opts.noise_mode)
            with atomic_write(written[-1]) as f:
                f.write(text.encode())
        digest, num_bytes = sha256_of(written[0]), written[0].stat().st_size
        for path in reversed(written):  # the networks last: if they are there, all files are
            os.replace(path, target.parent / path.name)
        progress.update()
    progress.close()
    click.echo(f"{target}: {', '.join(networks)}; {num_bytes:,} bytes, sha256 {digest}")
    if compared is not None:
        click.echo(f"Images of the source and of {target.name} differ by {compared.difference:.2g} at most; their "
                   f"largest value is {compared.largest:.2g}")
    if card_path is not None:
        click.echo(f"Model card: {card_path}")


def select(networks: dict[str, Any], source: str, format_name: str, *, only: list[str] | None) -> dict[str, Any]:
    """The entries of `networks` that the format can hold, as far as --only wants them. A warning names those left out.

    Raises:
        UserError: An entry of --only is missing or doesn't fit in the format, or no network is left.
    """
    from torch_utils import misc
    from torch_utils.formats import FORMATS

    there = {key: networks[key] for key in KEYS if networks[key] is not None}
    absent = [key for key in only or () if key not in there]
    if absent:
        found = ", ".join(there) or "nothing of it"
        raise UserError(f"--only={','.join(only)}: {source} holds no {absent[0]}, but {found}")
    possible = FORMATS[format_name].keys
    refused = [key for key in there if key not in possible]
    if refused and only is not None:
        raise UserError(f"--only={','.join(only)}: {refused[0]} doesn't fit in the format {format_name}, which holds "
                        f"{', '.join(possible)}")
    chosen = {key: value for key, value in there.items() if key in possible}
    if not chosen.keys() & {"G", "D", "G_ema"}:
        raise UserError(f"{source}: there is no network for the format {format_name}, which holds "
                        f"{', '.join(possible)}; found {', '.join(there)}")
    if refused:
        cli.warn(f"left out, because the format {format_name} has no place for it: {', '.join(refused)}")
    if format_name == "pkl" and not chosen.keys() >= {"G", "D", "G_ema"}:
        cli.warn("the legacy.py of other projects asks for G, D and G_ema; this file opens there with pickle.load")
    for key in chosen.keys() - {"training_set_kwargs"}:
        misc.check_network(chosen[key], source, key)
        chosen[key].eval().requires_grad_(False)
    return chosen


def write(path: Path, networks: dict[str, Any], format_name: str, *, noise_mode: str) -> list[Path]:
    """Write the networks. Returns their file, and others that belong to it."""
    from torch_utils.formats import onnx_file, safetensors_file, state_dict_file
    from torch_utils.formats.network_pickle import save_network_pkl

    if format_name.startswith("safetensors"):
        return safetensors_file.write(path, networks, half=format_name == "safetensors-float16")
    if format_name == "pt":
        return state_dict_file.write(path, networks)
    if format_name == "onnx":
        return onnx_file.write(path, networks, noise_mode=noise_mode)
    save_network_pkl(path, networks)
    return [path]


def check(networks: dict[str, Any], path: Path, format_name: str, *, noise_mode: str) -> Discrepancy | None:
    """Read the file again and compare it with the networks.

    Returns:
        The discrepancy of images; None if the file holds no generator.

    Raises:
        UserError:    Images differ by more than the format's tolerance.
        RuntimeError: Tensors or arguments differ although the format keeps them exactly.
    """
    import legacy
    from torch_utils.formats import FORMATS, onnx_file

    kind = FORMATS[format_name]
    again = {key: value for key, value in legacy.load_network_pkl(path).items() if value is not None}
    expected = dict(networks)
    if noise_mode == "none":
        expected["G_ema"] = onnx_file.without_noise(networks["G_ema"])
    if kind.lossless:
        check_same(expected, again)
    comparisons = []
    for key in ("G_ema", "G"):
        if key in networks:
            make = onnx_file.Session(path) if format_name == "onnx" else sampler(again[key], noise_mode="const")
            comparisons.append(compare(networks[key], make, noise_mode=noise_mode))
    if not comparisons:
        return None
    worst = max(comparisons, key=lambda comparison: comparison.relative)
    if not worst.relative <= kind.tolerance:  # true for NaN
        hint = " (it has no conv_clamp, which this generator reaches)" if format_name == "pt" else ""
        raise UserError(f"images change by {worst.difference:.2g} (largest value {worst.largest:.2g}) in the format "
                        f"{format_name}{hint}; at most {kind.tolerance:g} of it is allowed: nothing was written")
    return worst


def check_same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    from torch_utils.formats import description

    ours, theirs = description.tensors_of(expected), description.tensors_of(found)
    if description.describe(expected) != description.describe(found) or ours.keys() != theirs.keys():
        raise RuntimeError("what was written describes other networks than those read")
    changed = [name for name in ours if not ours[name].equal(theirs[name])]
    if changed:
        raise RuntimeError(f"what was written holds another {changed[0]} than what was read")


def sampler(G: torch.nn.Module, *, noise_mode: str) -> Any:
    def make(z: torch.Tensor, c: torch.Tensor | None, truncation_psi: float | None = None) -> torch.Tensor:
        return G(z, c, truncation_psi=1 if truncation_psi is None else truncation_psi, noise_mode=noise_mode)

    return make


def compare(G: torch.nn.Module, make: Any, *, noise_mode: str) -> Discrepancy:
    """Compare images of `make` with those of `G`: a batch of several, and one image with truncation."""
    import torch

    reference = sampler(G, noise_mode=noise_mode)
    difference = largest = 0.0
    for seeds, psi in ((PROBE_SEEDS, None), (PROBE_SEEDS[:1], PROBE_PSI)):
        z = torch.cat([torch.randn([1, G.z_dim], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        c = torch.eye(G.c_dim)[torch.tensor(seeds) % G.c_dim] if G.c_dim > 0 else None
        psi = psi if getattr(G, "w_avg", None) is not None else None
        expected = reference(z, c, psi)
        difference = max(difference, (make(z, c, psi) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return Discrepancy(difference, largest)


def describe(
    source: str, networks: dict[str, Any], written: list[Path], compared: Discrepancy | None, *, noise_mode: str
) -> str:
    """The model card of the networks, in Markdown."""
    from training.runs import model_card

    files = [model_card.ModelFile(path.name, path.stat().st_size, sha256_of(path)) for path in written]
    origin, run = source, None
    if not is_url(source):
        origin = model_card.ModelFile(Path(source).name, os.path.getsize(source), sha256_of(Path(source)))
        run = model_card.read_origin(source)
    difference = None if compared is None else compared.difference
    return model_card.render(networks, files, origin=origin, run=run, difference=difference, noise_mode=noise_mode)


if __name__ == "__main__":
    main()
