"""What a training step costs on N GPUs: the model of docs/scaling.md as tables, and measurements to check it by.

    python benchmarks/scaling.py --model                                 # the tables of docs/scaling.md
    python benchmarks/scaling.py [--data=PATH] [--baseline] [--out=FILE.json]    # measure on this machine's CPU
    python benchmarks/scaling.py --sizes [--baseline] [--plot=FILE.png] [--out=FILE.json]   # batches, resolutions

Measured are: seconds per iteration of train.py in 1, 2 and 4 processes; all-reduce over gloo's loopback by size;
images per second of the loader; operations that an iteration dispatches. The model is fitted to one process, and its
predictions for the others are printed beside what was measured. With --sizes, it is an iteration of one process at
several batch sizes and resolutions, its phases weighted by how often they come.

With --baseline, steps of benchmarks/step.py take turns with the baseline's of the same name there, in the same
processes, for each number of processes, or each size. Ratios are the median over turns of our time by the baseline's:
below 1, ours is faster.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import click
import matplotlib
import numpy as np
import torch
from tqdm import tqdm

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import baseline_option, medians, print_table, ratio, save_results, take_turns  # noqa: E402
from benchmarks.step import BASELINES, Step  # noqa: E402
from cli import Command, IntRanges, warn_unused  # noqa: E402
from dnnlib.util import atomic_path  # noqa: E402
from torch_utils import distributed  # noqa: E402
from training.config.options import Options  # noqa: E402
from training.config.resolve import resolve  # noqa: E402
from training.config.schema import DatasetConfig, TrainingConfig, discriminator_kwargs, generator_kwargs  # noqa: E402
from training.data.dataset import ImageFolderDataset  # noqa: E402
from training.data.loader import BatchLoader, TrainingOrder  # noqa: E402
from training.draws import Division, draw_part  # noqa: E402
from training.estimate import count_parameters  # noqa: E402
from training.jobs import launch  # noqa: E402
from training.loss import StyleGAN2Loss  # noqa: E402
from training.networks import Discriminator, Generator  # noqa: E402
from training.phases import build_phases  # noqa: E402

FLOAT = 4  # Bytes.
GPUS = tuple(2**i for i in range(10))

# ----------------------------------------------------------------------------------------------------------------------
# The model. Symbols are those of docs/scaling.md.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained."""

    n_G: int                    # Parameters.
    n_D: int
    B: int                      # Images of an iteration.
    g: int = 8                  # Images that a GPU sees at once, at most.
    k_G: int = 4                # Iterations between regularisations.
    k_D: int = 16
    tick_kimg: float = 4        # A training state is saved each tick ...
    snap_ticks: int = 50        # ... and metrics are calculated each so many ticks.
    metric_images: int = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What it is trained on. All of this is to be measured; `ASSUMED` says what was assumed for the tables."""

    t_img: float                # Seconds of one GPU for one image in all phases of an iteration, on average.
    launches: float             # Operations that a GPU is told to do for an iteration of one part, on average.
    t_launch: float             # Seconds of the host for each.
    per_node: int               # GPUs of one machine.
    beta_node: float            # Bytes per second of an all-reduce within a machine ...
    beta_net: float             # ... and through the network of one.
    alpha: float                # Seconds of one hop of an all-reduce on GPUs ...
    alpha_host: float           # ... and of one over gloo.
    workers: int                # Loader processes for each GPU.
    r_worker: float             # Images per second of each.
    t_gen: float                # Seconds of one GPU to generate an image and its features for a metric.
    t_score: float              # Seconds of one process to make a score of all features.
    beta_copy: float            # Bytes per second from a GPU to the host.


class Cost(NamedTuple):
    """Seconds of an iteration by what they go into, and what a thousand images cost."""

    compute: float
    launches: float         # What hosts need to tell GPUs what to do; hidden where `compute` is more.
    all_reduce: float
    agreement: float        # Hosts tell each other whether to stop.
    data: float             # Until the loader has the images; hidden where everything else is more.
    iteration: float
    upkeep: float           # Metrics and training states, for each kimg.
    sec_per_kimg: float


def gradient_bytes(s: Setting) -> float:
    """V, what an average iteration reduces: gradients of each phase's network, of regularisations every k-th time."""
    return FLOAT * ((1 + 1 / s.k_G) * s.n_G + (1 + 1 / s.k_D) * s.n_D)


def reduces(s: Setting) -> float:
    """A, how many all-reduces an average iteration makes: one a phase, w_avg, and the mean path length."""
    return 2 + 1 / s.k_G + 1 / s.k_D + 1 + 1 / s.k_G


def all_reduce_sec(s: Setting, m: Machine, N: int) -> float:
    if N == 1:
        return 0.0
    beta = m.beta_node if m.per_node >= N else min(m.beta_node, m.beta_net)
    return 2 * (N - 1) / N * gradient_bytes(s) / beta + reduces(s) * 2 * math.log2(N) * m.alpha


def state_bytes(s: Setting) -> float:
    """G, D, G_ema, and Adam's two moments of G and D."""
    return FLOAT * (2 * s.n_G + s.n_D + 2 * (s.n_G + s.n_D))


def cost(s: Setting, m: Machine, N: int) -> Cost:
    """The model; N <= B."""
    b = s.B / N
    compute = m.t_img * b
    launches = m.launches * m.t_launch * max(b / s.g, 1)
    all_reduce = all_reduce_sec(s, m, N)
    agreement = 2 * math.log2(N) * m.alpha_host if N > 1 else 0.0
    data = b / (m.workers * m.r_worker)
    iteration = max(max(compute, launches) + all_reduce + agreement, data)
    metric = s.metric_images / N * m.t_gen + m.t_score
    upkeep = (metric / s.snap_ticks + state_bytes(s) / m.beta_copy) / s.tick_kimg
    return Cost(compute, launches, all_reduce, agreement, data, iteration, upkeep,
                iteration * 1000 / s.B + upkeep)


PAPER256 = Setting(n_G=24_767_458, n_D=24_001_089, B=64)  # StyleGAN2, FFHQ or LSUN at 256x256
_PUBLISHED_SEC_PER_KIMG = 2.47  # Assumed: StyleGAN2 at batch 64 on 8 A100s, in the original program, without metrics.
_UNCALIBRATED = Machine(
    t_img=0.0, launches=2462, t_launch=10e-6, per_node=8, beta_node=230e9, beta_net=20e9, alpha=10e-6, alpha_host=50e-6,
    workers=3, r_worker=400, t_gen=0.004, t_score=20, beta_copy=10e9,
)


def calibrated() -> Machine:
    """The assumed machine, with the t_img that gives the published time on 8 GPUs."""
    rest = cost(PAPER256, _UNCALIBRATED, 8)
    iteration = _PUBLISHED_SEC_PER_KIMG * PAPER256.B / 1000
    return dataclasses.replace(_UNCALIBRATED, t_img=(iteration - rest.all_reduce - rest.agreement) * 8 / PAPER256.B)


ASSUMED = calibrated()


def table(setting_of: Callable[[int], Setting]) -> str:
    """Markdown: a row for each number of GPUs; milliseconds of an iteration, seconds for a thousand images."""
    heads = ("N", "B", "images/GPU", "compute", "launches", "all-reduce", "iteration", "sec/kimg", "of it upkeep",
             "speed-up", "efficiency")
    rows = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    first = cost(setting_of(1), ASSUMED, 1).sec_per_kimg
    for N in GPUS:
        s = setting_of(N)
        if s.B < N:
            continue
        c = cost(s, ASSUMED, N)
        speed = first / c.sec_per_kimg
        rows.append(f"| {N} | {s.B} | {s.B // N} | {1e3 * c.compute:.1f} | {1e3 * c.launches:.1f} | "
                    f"{1e3 * c.all_reduce:.1f} | {1e3 * c.iteration:.1f} | {c.sec_per_kimg:.3f} | {c.upkeep:.3f} | "
                    f"{speed:.1f} | {100 * speed / N:.0f} % |")
    return "\n".join(rows)


def _growing(N: int) -> Setting:
    return dataclasses.replace(PAPER256, B=max(64, 8 * N))


def tables() -> dict[str, str]:
    """The tables of docs/scaling.md, by the number of its caption."""
    return {
        "Table 1": table(lambda N: PAPER256),
        "Table 2": table(_growing),
        "Table 3": table(lambda N: dataclasses.replace(_growing(N), tick_kimg=4 * max(1, N / 8))),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Measurements.

NETWORKS = ("--cbase=512", "--cmax=16", "--map-depth=2")  # Small enough for one core, with gradients worth sending.


def measure_iterations(data: str, *, gpus: int, batch: int, folder: Path) -> float:
    """Median seconds of an iteration of train.py on the CPU, over its ticks but the first two."""
    ticks, iterations = 6, 16  # a tick has all phases
    outdir = folder / f"gpus{gpus}-batch{batch}"
    tick_kimg = batch * iterations / 1000
    command = [sys.executable, str(ROOT / "train.py"), f"--outdir={outdir}", f"--data={data}", "--cfg=auto",
               "--method=stylegan2", "--aug=noaug", *NETWORKS, f"--batch={batch}", f"--batch-gpu={batch // gpus}",
               "--mbstd-group=2", f"--gpus={gpus}", "--device=cpu", "--workers=0", "--metrics=none", "--snap=0",
               f"--tick={tick_kimg}", f"--kimg={tick_kimg * ticks}"]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    (stats,) = outdir.glob("*/stats.jsonl")
    records = [json.loads(line) for line in stats.read_text().splitlines()][2:]
    return statistics.median(r["Timing/sec_per_kimg"]["mean"] for r in records) * batch / 1000


def _reduce_process(rank: int, size: int, store: str, sizes: list[int], repeats: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    result = {}
    for count in sizes:
        tensor, times = torch.zeros(count), []
        for _ in range(repeats + 2):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(tensor)
            times.append(time.perf_counter() - start)
        result[count * FLOAT] = statistics.median(times[2:])
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def measure_all_reduce(size: int, *, folder: Path, repeats: int = 9) -> dict[int, float]:
    """Median seconds of an all-reduce of float32 over gloo's loopback, by bytes."""
    sizes = [2**i for i in (8, 12, 16, 18, 20, 22, 24)]
    out = folder / f"reduce{size}.json"
    torch.multiprocessing.spawn(
        _reduce_process, (size, str(folder / f"store{size}"), sizes, repeats, str(out)), nprocs=size)
    return {int(count): sec for count, sec in json.loads(out.read_text()).items()}


SPIN = """
import sys, time
import numpy as np
a, count, stop = np.ones((128, 128), np.float32), 0, float(sys.argv[1])
while time.time() < stop - 3:
    time.sleep(0.01)
while time.time() < stop:
    a @ a
    count += 1
print(count)
"""


def measure_capacity(processes: int) -> float:
    """How many cores so many busy processes have between them, on a machine with other work: the work of all in 3 s,
    over what one alone does."""
    def work(number: int) -> int:
        command = [sys.executable, "-c", SPIN, str(time.time() + 4 + 0.2 * number)]  # all start together
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
                   for _ in range(number)]
        return sum(int(process.communicate()[0]) for process in running)

    return work(processes) / work(1)


def measure_loader(data: str, *, workers: int, batches: int = 30) -> float:
    """Images per second of the loader alone."""
    dataset = ImageFolderDataset(data)
    with BatchLoader(dataset, order=TrainingOrder(len(dataset), 0), batch_size=64, num_workers=workers) as loader:
        for _ in range(4 * max(workers, 1)):  # what was read ahead, while processes started
            next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return 64 * batches / (time.perf_counter() - start)


def small_config(resolution: int, batch: int, *, gpus: int = 1) -> TrainingConfig:
    """What is measured."""
    options = Options(cfg="auto", method="stylegan2", aug="noaug", cbase=512, cmax=16, map_depth=2, gpus=gpus,
                      batch=batch, batch_gpu=batch // gpus, mbstd_group=2)
    return resolve(options, DatasetConfig(path="random", resolution=resolution), device="cpu")


class StepTimes(NamedTuple):
    """Seconds of an iteration of benchmarks/step.py."""

    turns: list[float]
    least: float        # Each part is the least of its turns.


def time_steps(
    configs: Mapping[Any, TrainingConfig], baseline: str | None, **options: Any
) -> dict[tuple[Any, str], StepTimes]:
    """Steps of all `configs`, ours and the baseline's, in turns; by key of `configs` and path.

    Args:
        options: Of `take_turns`.
    """
    steps = {(key, path): Step(config, path) for key, config in configs.items() for path in paths(baseline)}
    cases = {(*key, part): call for key, step in steps.items() for part, (call, _) in step.parts().items()}
    times = take_turns(cases, warmup=1, title="steps", **options)
    result = {}
    for key, step in steps.items():
        sec = {part: times[(*key, part)] for part in step.parts()}
        (least,) = step.iterations({part: [min(turns)] for part, turns in sec.items()})
        result[key] = StepTimes(step.iterations(sec), least)
    return result


def paths(baseline: str | None) -> list[str]:
    return ["ours"] if baseline is None else ["ours", baseline]


STEP_WORKER = "import sys; sys.path[0] = sys.argv[1]; from benchmarks.scaling import work; work(*sys.argv[2:])"


def measure_steps(baseline: str, *, gpus: int, batch: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of an iteration by turn, of ours and of the baseline; all processes begin and end each phase together."""
    out = folder / f"steps{gpus}.json"
    launch.run_together([sys.executable, "-c", STEP_WORKER, str(ROOT), baseline, str(batch), str(repeats), str(out)],
                        size=gpus)
    return json.loads(out.read_text())


def work(baseline: str, batch: str, repeats: str, out: str) -> None:
    """In each process: what `measure_steps` gives."""
    torch.set_num_threads(1)
    distributed.join(device="cpu", timeout_sec=60)
    config = small_config(32, int(batch), gpus=distributed.world_size())
    times = time_steps({"": config}, baseline, repeats=int(repeats))
    if distributed.rank() == 0:
        Path(out).write_text(json.dumps({path: sec.turns for (_, path), sec in times.items()}))
    distributed.leave()


def measure_sizes(
    resolutions: Sequence[int], batches: Sequence[int], *, baseline: str | None, repeats: int
) -> list[dict[str, Any]]:
    """A row for each resolution: milliseconds of an average iteration by batch size, and a line through them.

    They are processor time of one thread, of each phase the least of its turns: other work on the machine only adds.
    With a baseline, "to_baseline" holds the median ratios of turns by batch size.
    """
    configs = {(resolution, batch): small_config(resolution, batch) for resolution in resolutions for batch in batches}
    times = time_steps(configs, baseline, repeats=repeats, clock=time.process_time)
    rows = []
    for resolution in resolutions:
        ms = [1e3 * times[(resolution, batch), "ours"].least for batch in batches]
        per_image, rest = np.polyfit(batches, ms, 1).tolist()
        per_pixels = 1e6 * per_image / resolution**2
        row = {"side": resolution, **{f"batch {batch}": t for batch, t in zip(batches, ms)},
               "ms per image": per_image, "ms beside": rest, "us per 1000 pixels": per_pixels}
        if baseline is not None:
            turns = {batch: {path: times[(resolution, batch), path].turns for path in paths(baseline)}
                     for batch in batches}
            row["to_baseline"] = {f"batch {batch}": ratio(turns[batch], "ours", baseline) for batch in batches}
        rows.append(row)
    return rows


def sizes_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the times that `measure_sizes` gave."""
    heads = [name for name in rows[0] if name != "to_baseline"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    lines += [f"| {row['side']} | " + " | ".join(f"{row[name]:.1f}" for name in heads[1:]) + " |" for row in rows]
    return "\n".join(lines)


def plot_sizes(rows: list[dict[str, Any]], batches: Sequence[int], path: str) -> None:
    """Milliseconds of an iteration over the batch size, a line for each resolution."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for row in rows:
        ms = [row[f"batch {batch}"] for batch in batches]
        axes.plot(batches, ms, marker="o", label=f"{row['side']}x{row['side']}")
    axes.set(xlabel="images of an iteration", ylabel="ms of an iteration", xscale="log", yscale="log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


class _CountOps(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations that make new tensors or change them; views cost a GPU nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operations() -> dict[str, int]:
    """Operations of each phase of paper256, forward and backward, for one part of a batch; channels don't matter."""
    options = Options(cfg="paper256", method="stylegan2", aug="noaug", cmax=4, cbase=256, batch=2, batch_gpu=2,
                      mbstd_group=2)
    config: TrainingConfig = resolve(options, DatasetConfig(path="none", resolution=256), device="cpu")
    G, D = Generator(**generator_kwargs(config)), Discriminator(**discriminator_kwargs(config))
    loss = StyleGAN2Loss(G.requires_grad_(False), D.requires_grad_(False), config=config.loss)
    counts = {}
    for phase in build_phases(config, loss):
        phase.module.requires_grad_(True)
        (rows,) = Division(2, at_once=2, unit=2, group=2, device=torch.device("cpu")).parts
        batch = draw_part(rows, torch.zeros(2, 3, 256, 256), torch.zeros(2, 0), key=(0, 0, 0), unit=2, z_dim=G.z_dim,
                          dataset=None)
        with _CountOps() as ops:
            for term in phase.loss(batch):
                term.backward()
        counts[phase.name] = ops.count
        phase.module.requires_grad_(False)
    return counts


def average_launches(counts: dict[str, int], s: Setting = PAPER256) -> float:
    return counts["Gmain"] + counts["Dmain"] + counts["Greg"] / s.k_G + counts["Dreg"] / s.k_D


def fit_reduce(times: dict[int, float]) -> tuple[float, float]:
    """(latency in seconds, bytes per second) of times that are latency + bytes / rate, by least relative errors."""
    sizes, seconds = (np.array(list(values), dtype=float) for values in (times.keys(), times.values()))
    relative = np.stack([1 / seconds, sizes / seconds], axis=1)
    latency, slope = np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)[0]
    return float(max(latency, 0)), float(1 / max(slope, 1e-15))


def predict(
    one: dict[int, float], times: dict[int, dict[int, float]], s: Setting, *, gpus: int, cores: float
) -> float:
    """Seconds of an iteration in several processes that share cores.

    Args:
        one:   Seconds of an iteration in one process, by batch size: at least two.
        times: All-reduces, by number of processes and bytes.
        cores: How many the processes have between them.
    """
    t_img, t_iteration = np.polyfit(list(one), list(one.values()), 1)  # the rest does not depend on the batch
    latency, rate = fit_reduce(times[gpus]) if gpus > 1 else (0.0, math.inf)
    shared = max(gpus / cores, 1)   # processes for each core
    return shared * (t_img * s.B / gpus + max(t_iteration, 0)) + reduces(s) * latency + gradient_bytes(s) / rate


def small_setting(batch: int) -> Setting:
    """What `measure_iterations` trains."""
    parameters = count_parameters(small_config(32, batch))
    return Setting(n_G=parameters.G, n_D=parameters.D, B=batch)


def measure(data: str | None, folder: Path, *, baseline: str | None, repeats: int) -> dict[str, Any]:
    """All measurements and the model's predictions, printed on the way."""
    scenes = folder / "scenes32.zip"
    subprocess.run([sys.executable, str(ROOT / "dataset_tool.py"), "--source=synthetic", "--resolution=32",
                    "--max-images=512", f"--dest={scenes}"], check=True, capture_output=True)
    cores = len(os.sched_getaffinity(0))
    counts = count_operations()
    print(f"Operations: {counts}, on average {average_launches(counts):.0f} an iteration", flush=True)
    loader = {workers: measure_loader(data or str(scenes), workers=workers) for workers in (0, 1, 2)}
    print("Loader, images/s by workers: " + ", ".join(f"{w}: {rate:.0f}" for w, rate in loader.items()), flush=True)
    reduce = {size: measure_all_reduce(size, folder=folder) for size in (2, 4)}
    for size, times in reduce.items():
        latency, rate = fit_reduce(times)
        print(f"All-reduce of {size}: {1e6 * latency:.0f} us + bytes / {rate / 1e6:.0f} MB/s", flush=True)
    batch = 16
    one = {b: measure_iterations(str(scenes), gpus=1, batch=b, folder=folder) for b in (8, batch)}
    rows = []
    for gpus in tqdm((1, 2, 4), desc="processes", leave=False, disable=None):
        capacity = 1.0 if gpus == 1 else measure_capacity(gpus)
        sec = one[batch] if gpus == 1 else measure_iterations(str(scenes), gpus=gpus, batch=batch, folder=folder)
        model = predict(one, reduce, small_setting(batch), gpus=gpus, cores=capacity)
        row = dict(processes=gpus, batch=batch, cores=capacity, measured_sec=sec, model_sec=model, ratio=model / sec)
        if baseline is not None:
            times = measure_steps(baseline, gpus=gpus, batch=batch, repeats=repeats, folder=folder)
            row |= {f"{path}_step_sec": value for path, value in medians(times).items()}
            row["to_baseline"] = ratio(times, "ours", baseline)
        rows.append(row)
    print_table(rows)
    return dict(cores=cores, load_average=os.getloadavg(), networks=NETWORKS,
                operations=counts, average_operations=average_launches(counts),
                loader_img_per_sec=loader, loader_data=data or "drawn scenes, 32x32", all_reduce_sec=reduce,
                iteration_sec_one_process=one, iterations=rows)


@click.command(cls=Command)
@click.option("--model", is_flag=True, help="Print the tables of docs/scaling.md.")
@click.option("--sizes", is_flag=True, help="Measure an iteration at several batch sizes and resolutions.")
@click.option("--resolutions", default="16,32,64", show_default=True, type=IntRanges(), help="For --sizes.")
@click.option("--batches", default="4,8,16,32", show_default=True, type=IntRanges(), help="For --sizes.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1),
              help="For --sizes and --baseline.")
@baseline_option(*BASELINES)
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw what --sizes measured, as PNG.")
@click.option("--data", type=click.Path(exists=True), help="Measure the loader on this.  [default: drawn scenes]")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(
    model: bool, sizes: bool, resolutions: list[int], batches: list[int], repeats: int, baseline: str | None,
    plot: str | None, data: str | None, out: str | None,
) -> None:
    if model:
        warn_unused(["sizes", "baseline", "plot", "data", "out"], because="with --model, which measures nothing")
        for name, text in tables().items():
            print(f"{name}\n\n{text}\n")
        return
    if sizes:
        torch.set_num_threads(1)
        rows = measure_sizes(resolutions, batches, baseline=baseline, repeats=repeats)
        print(sizes_table(rows))
        if baseline is not None:
            print(f"\nTime relative to {baseline}:")
            print_table([dict(side=row["side"], **row["to_baseline"]) for row in rows])
        if plot is not None:
            plot_sizes(rows, batches, plot)
        save_results(out, networks=NETWORKS, rows=rows)
        return
    with tempfile.TemporaryDirectory(prefix="glead-") as folder:
        figures = measure(data, Path(folder), baseline=baseline, repeats=repeats)
    save_results(out, **figures)


if __name__ == "__main__":
    main()
