"""What a training iteration spends its time on: the kernels that take longest, and how long the GPU waits for the host.

    python benchmarks/profile_step.py --device=cuda [--cfg=paper256] [--method=glead] [--out=FILE.json]

Iterations are those of train.py, with an untrained perceptual net and drawn images, over one cycle of the lazy
regularisations or part of it. The GPU's idle share is 1 - (time in which a kernel or copy runs, from the profile) /
(time of the same number of iterations without the profiler, which slows the host down). Where it is large, the host
cannot launch as fast as the GPU computes: larger parts of a batch, or CUDA graphs, would pay.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterable

import click
import torch
from torch.autograd import DeviceType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from benchmarks.data import draw_files, write_containers  # noqa: E402
from benchmarks.measuring import print_table, save_results  # noqa: E402
from training import snapshot  # noqa: E402
from training.config import released  # noqa: E402
from training.config.presets import METHODS, PRESETS  # noqa: E402
from training.config.resolve import resolve  # noqa: E402
from training.jobs.prepare_run import inspect_dataset  # noqa: E402
from training.training_loop import Trainer  # noqa: E402

_NAME_LENGTH = 90   # Kernels' names are templates written out.


def busy_sec(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals given in microseconds: what overlaps counts once."""
    total = end = 0.0
    for start, stop in sorted(intervals):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return total / 1e6


def time_iterations(trainer: Trainer, count: int, *, device: str) -> float:
    """Seconds of each, on average."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        trainer.step(trainer.next_batch())
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def profile(trainer: Trainer, count: int, *, device: str, rows: int) -> dict[str, Any]:
    """Top operations of the device, and its idle share, which a CPU has not."""
    on_gpu = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    sec = time_iterations(trainer, count, device=device)
    with torch.profiler.profile(activities=[activity]) as profiler:
        time_iterations(trainer, count, device=device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    # Annotations, such as those of optimisers, span kernels and the time between them.
    events = [event for event in profiler.events() if event.device_type == kind and not event.is_user_annotation]
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    sums: dict[str, tuple[float, int]] = {}
    for event in events:
        us, calls = sums.get(event.name, (0.0, 0))
        sums[event.name] = (us + getattr(event, field), calls + 1)
    total = sum(us for us, _ in sums.values())
    top = [dict(ms_per_iteration=us / count / 1e3, share=us / total, calls_per_iteration=calls / count,
                name=name[:_NAME_LENGTH])
           for name, (us, calls) in sorted(sums.items(), key=lambda item: -item[1][0])[:rows]]
    busy = busy_sec((event.time_range.start, event.time_range.end) for event in events) / count if on_gpu else None
    return dict(sec_per_iteration=sec, launches_per_iteration=len(events) / count, busy_sec_per_iteration=busy,
                idle_share=None if busy is None else max(1 - busy / sec, 0), top=top)


def make_trainer(folder: Path, *, device: str, resolution: int, options: list[str]) -> Trainer:
    """As train.py has it, on drawn images; pictures, which take most of the set-up, are small."""
    data = write_containers(draw_files(64, resolution), folder)["zip"]
    snapshot._MAX_CELLS = 1
    said = train.main.make_context("train.py", [
        f"--data={data}", f"--device={device}", "--aug=noaug", "--metrics=none", "--perceptual=random-vgg",
        *options]).params
    chosen, _ = released.parse(said)
    config = resolve(chosen, inspect_dataset(chosen).dataset, device=device)
    run_dir = folder / "run"
    run_dir.mkdir()
    return Trainer(config, str(run_dir))


@click.command()
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--resolution", default=256, show_default=True, type=click.IntRange(min=16))
@click.option("--cfg", default="paper256", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--method", default="glead", show_default=True, type=click.Choice(list(METHODS)))
@click.option("--batch", default=8, show_default=True, help="All at once; 8 is one GPU's part of paper256.")
@click.option("--iterations", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--option", "more", multiple=True, help="Passed to train.py, e.g. --option=--nhwc=true.")
@click.option("--rows", default=30, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(
    device: str, resolution: int, cfg: str, method: str, batch: int, iterations: int, more: tuple[str, ...], rows: int,
    out: str | None,
) -> None:
    options = [f"--cfg={cfg}", f"--method={method}", f"--batch={batch}", f"--batch-gpu={batch}", *more]
    with tempfile.TemporaryDirectory(prefix="glead-") as folder:
        trainer = make_trainer(Path(folder), device=device, resolution=resolution, options=options)
        time_iterations(trainer, iterations, device=device)  # kernels are built, cuDNN makes its choices
        figures = profile(trainer, iterations, device=device, rows=rows)
        trainer.close()
    print_table(figures["top"])
    idle = figures["idle_share"]
    ms, operations = 1e3 * figures["sec_per_iteration"], figures["launches_per_iteration"]
    print(f"{ms:.1f} ms an iteration, {operations:.0f} operations; "
          + ("no GPU that could wait" if idle is None else f"the GPU waits for the host {idle:.1%} of the time"))
    save_results(out, device=device, resolution=resolution, batch=batch, **figures)


if __name__ == "__main__":
    main()
