"""Kill a small run again and again at random moments, resume each time, and compare it with one that was left alone.

    python benchmarks/soak.py [--kills=30] [--method=glead+ggdr] [--aug=ada] [--kimg=0.96] [--seed=0] [--out=FILE.json]

Everything must be the same in the end, bit by bit: weights, optimiser states, strength of augmentation, statistics of
every tick. What measures time and memory may differ. Needs the CPU alone, and fork().
"""

import io
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from benchmarks.measuring import save_results  # noqa: E402
from training.config import released  # noqa: E402
from training.config.presets import METHODS  # noqa: E402
from training.config.resolve import resolve  # noqa: E402
from training.config.schema import TrainingConfig  # noqa: E402
from training.jobs.prepare_run import inspect_dataset  # noqa: E402
from training.runs.training_state import list_states, read_state  # noqa: E402
from training.training_loop import run_training  # noqa: E402

SMALL = ["--cfg=auto", "--cbase=64", "--cmax=8", "--map-depth=1", "--batch=8", "--mbstd-group=4", "--device=cpu",
         "--workers=0", "--metrics=none", "--reg_loss_real=mse", "--mirror=true", "--cond=true"]
_TIMED = ("Timing/", "Resources/", "timestamp")


def write_images(path: Path, *, count: int = 48, resolution: int = 16) -> None:
    """A zip of labelled noise."""
    rng = np.random.RandomState(0)
    with zipfile.ZipFile(path, "w") as z:
        names = [f"00000/img{i:08d}.png" for i in range(count)]
        for name in names:
            buffer = io.BytesIO()
            Image.fromarray(rng.randint(256, size=[resolution, resolution, 3]).astype(np.uint8)).save(buffer, "PNG")
            z.writestr(name, buffer.getvalue())
        z.writestr("dataset.json", json.dumps({"labels": [[name, i % 3] for i, name in enumerate(names)]}))


def small_config(data: str | os.PathLike, *options: str) -> TrainingConfig:
    """What the command line makes of `SMALL` and `options`."""
    said = train.main.make_context("train.py", [f"--data={data}", *SMALL, *options]).params
    options, _ = released.parse(said)
    return resolve(options, inspect_dataset(options).dataset, device="cpu")


def fork_training(
    config: TrainingConfig, run_dir: Path, *, before: Callable[[], None] = lambda: None
) -> int:
    """Train in a new process, which resumes if there is a training state. Returns its process id.

    Args:
        before: Is called in the process first.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(run_dir / "output.txt", "a") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        torch.set_num_threads(1)    # OpenMP would wait for threads of the process before the fork
        before()
        run_training(config, str(run_dir), resume="newest" if list_states(run_dir) else None)
        status = 0
    finally:
        sys.stdout.flush()
        sys.excepthook(*sys.exc_info()) if status else None
        os._exit(status)


def differences(a: Path, b: Path) -> list[str]:
    """What is not the same in two run directories, by name."""
    found = []
    states = [list_states(run)[0] for run in (a, b)]
    contents = [dict(_flatten(read_state(state.path))) for state in states]
    found += [f"state: {name}" for name in contents[0].keys() | contents[1].keys()
              if not name.endswith("elapsed_sec") and not name.startswith(("config.", "tick.report_sizes."))
              and not _same(contents[0].get(name), contents[1].get(name)) and not any(t in name for t in _TIMED)]
    for name in {p.name for run in (a, b) for p in run.glob("network-snapshot-*.pkl")}:
        networks = [_load(run / name) for run in (a, b)]
        found += [f"{name}: {key}" for key in networks[0] if not _same(networks[0][key], networks[1].get(key))]
    records = [[_untimed(json.loads(line)) for line in (run / "stats.jsonl").read_text().splitlines()]
               for run in (a, b)]
    if len(records[0]) != len(records[1]):
        found.append(f"stats.jsonl: {len(records[0])} and {len(records[1])} records")
    found += [f"stats.jsonl: record {i}" for i, (x, y) in enumerate(zip(*records)) if x != y]
    return sorted(found)


def _load(path: Path) -> dict[str, Any]:
    with open(path, "rb") as f:
        content = pickle.load(f)  # made by this program a moment ago
    return {f"{net}.{name}": value for net in ("G", "D", "G_ema", "augment_pipe") if content[net] is not None
            for name, value in content[net].state_dict().items()}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


def _untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith(_TIMED)}


def soak(config: TrainingConfig, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Train once undisturbed, and once with `kills` kills, spread over about the same time."""
    straight, killed = folder / "straight", folder / "killed"
    straight.mkdir()
    killed.mkdir()
    start = time.monotonic()
    _expect(os.waitpid(fork_training(config, straight), 0)[1], 0)
    straight_sec = time.monotonic() - start
    rng = random.Random(seed)
    starts = done = 0
    from_scratch = 0
    bar = tqdm(total=kills, desc="kills")
    while True:
        from_scratch += not list_states(killed)
        pid = fork_training(config, killed)
        starts += 1
        # As long as kills are left, most come between set-up and a few ticks later, some before training begins.
        stop = time.monotonic() + rng.expovariate(1) * straight_sec / max(kills, 1) * 2
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if done < kills and time.monotonic() > stop:
                os.kill(pid, signal.SIGKILL)
                _expect(os.waitpid(pid, 0)[1], signal.SIGKILL)
                done += 1
                bar.update()
                break
            time.sleep(0.002)
        if status[0]:
            _expect(status[1], 0)
            break
    bar.close()
    leftovers = sorted(p.name for p in killed.glob(".*"))
    return dict(kills=done, starts=starts, starts_without_state=from_scratch, leftovers=leftovers,
                iterations=int(config.total_kimg * 1000) // config.batch_size,
                straight_sec=round(straight_sec, 1), total_sec=round(time.monotonic() - start, 1),
                mismatches=differences(straight, killed))


def _expect(status: int, wanted: int) -> None:
    if status != wanted:
        raise SystemExit(f"a process ended with status {status}, expected {wanted}: see its output.txt")


@click.command()
@click.option("--kills", default=30, show_default=True, type=click.IntRange(min=1))
@click.option("--method", default="glead+ggdr", show_default=True, type=click.Choice(list(METHODS)))
@click.option("--aug", default="ada", show_default=True, type=click.Choice(["ada", "noaug"]))
@click.option("--kimg", default=2.4, show_default=True, type=float, help="Length of the run.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(kills: int, method: str, aug: str, kimg: float, seed: int, out: str | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images.zip"))
        options = [f"--method={method}", f"--aug={aug}", f"--kimg={kimg:g}", "--tick=0.024", "--snap=5"]
        options += ["--target=0.1"] if aug == "ada" else []
        options += ["--reg_loss_fake=mse"] if method == "glead" else []
        config = small_config(Path(folder, "images.zip"), *options)
        figures = soak(config, Path(folder), kills=kills, seed=seed)
    print(json.dumps(figures, indent=1))
    save_results(out, **figures)
    if figures["mismatches"] or figures["leftovers"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
