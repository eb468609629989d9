"""What saving costs a run: how long training waits for copies in memory, and how long the writing beside it takes.

    python benchmarks/saving.py [--resolution=256] [--cbase=16384] [--out-dir=FOLDER] [--out=FILE.json]
"""

import sys
import tempfile
import time
from pathlib import Path

import click
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import print_table, save_results  # noqa: E402
from training.networks import Discriminator, Generator  # noqa: E402
from training.runs.checkpoints import Checkpoints, Keep  # noqa: E402
from training.runs.training_state import pickle_path  # noqa: E402


@click.command()
@click.option("--resolution", default=256, show_default=True)
@click.option("--cbase", default=16384, show_default=True)
@click.option("--out-dir", type=click.Path(file_okay=False), help="Where to write.  [default: a temporary folder]")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(resolution: int, cbase: int, out_dir: str | None, device: str, out: str | None) -> None:
    channels = dict(channel_base=cbase, channel_max=512)
    G = Generator(512, 0, 512, resolution, 3, mapping_kwargs={"num_layers": 8}, synthesis_kwargs=channels).to(device)
    D = Discriminator(0, resolution, 3, **channels).to(device)
    networks = {"G": G, "D": D, "G_ema": G}
    mparams = {f"{name}_mparams": sum(p.numel() for p in networks[name].parameters()) / 1e6 for name in ("G", "D")}
    moments = {net: {i: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                     for i, p in enumerate(networks[net].parameters())} for net in ("G", "D")}
    state = {"networks": {name: net.state_dict() for name, net in networks.items()}, "optimizers": moments}
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        writer = Checkpoints(folder, keep=Keep(), metric=None, snapshot_kimg=4)
        rows = []
        for name, save in (("state", lambda: writer.save_state(state, nimg=0)),
                           ("pickle", lambda: writer.save_networks(pickle_path(folder, 0), networks=networks,
                                                                   training_set_kwargs={}))):
            start = time.perf_counter()
            path = save()
            waited = time.perf_counter() - start
            if problems := writer.wait():
                raise click.ClickException("; ".join(problems))
            total = time.perf_counter() - start
            rows.append(dict(what=name, training_waits_sec=waited, written_after_sec=total,
                             mb=path.stat().st_size / 1e6))
        writer.close()
    print_table(rows)
    save_results(out, device=device, **mparams, rows=rows)


if __name__ == "__main__":
    main()
