"""Time the operations against their references, which insert zeros: interleaved, medians, ratios.

    python benchmarks/ops.py [--device=cuda] [--threads=1] [--out=benchmarks/results/ops.json]
"""

import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Callable

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dnnlib.util import atomic_write  # noqa: E402
from torch_utils.ops import bias_act, upfirdn2d  # noqa: E402

SHAPES = [(16, 32, 32, 32), (16, 64, 16, 16), (8, 64, 64, 64)]


def cases(device: str) -> dict[str, Callable[[torch.Tensor, str], torch.Tensor]]:
    f = upfirdn2d.setup_filter([1, 3, 3, 1], device=device)
    return {
        "upsample2d": lambda x, impl: upfirdn2d.upsample2d(x, f, impl=impl),
        "downsample2d": lambda x, impl: upfirdn2d.downsample2d(x, f, impl=impl),
        "filter2d": lambda x, impl: upfirdn2d.filter2d(x, f, impl=impl),
        "bias_act lrelu": lambda x, impl: bias_act.bias_act(
            x, x.new_ones([x.shape[1]]), act="lrelu", clamp=256, impl=impl),
    }


def forward(fn: Callable, x: torch.Tensor, impl: str) -> None:
    fn(x, impl)


def backward(fn: Callable, x: torch.Tensor, impl: str) -> None:
    fn(x.requires_grad_(), impl).sum().backward()


def double_backward(fn: Callable, x: torch.Tensor, impl: str) -> None:
    """As R1 does: the squared norm of a gradient is differentiated."""
    (dx,) = torch.autograd.grad(fn(x.requires_grad_(), impl).square().sum(), x, create_graph=True)
    dx.square().sum().backward()


def measure(fn: Callable, shape: tuple, mode: Callable, device: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of both paths, which take turns."""
    x = torch.randn(shape, device=device)
    times: dict[str, list[float]] = {"cuda": [], "ref": []}
    for i in range(repeats + 2):
        for impl in times:
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            mode(fn, x.detach().clone(), impl)
            if device != "cpu":
                torch.cuda.synchronize()
            if i >= 2:  # warmed up
                times[impl].append(time.perf_counter() - start)
    ours, reference = (1e3 * statistics.median(times[impl]) for impl in ("cuda", "ref"))
    return dict(ours_ms=round(ours, 3), reference_ms=round(reference, 3), ratio=round(ours / reference, 3))


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(min=3))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(device: str, threads: int, repeats: int, out: str | None) -> None:
    torch.set_num_threads(threads)
    rows = []
    print(f"{'operation':16s} {'shape':18s} {'pass':16s} {'ours ms':>9s} {'reference':>9s} {'ratio':>6s}")
    for name, fn in cases(device).items():
        for shape in SHAPES:
            for mode in (forward, backward, double_backward):
                row = dict(op=name, shape=list(shape), mode=mode.__name__, **measure(fn, shape, mode, device, repeats))
                rows.append(row)
                print(f"{name:16s} {str(shape):18s} {mode.__name__:16s} {row['ours_ms']:9.3f} "
                      f"{row['reference_ms']:9.3f} {row['ratio']:6.2f}", flush=True)
    if out:
        name = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU, {threads} thread(s)"
        content = dict(device=name, torch=torch.__version__, python=platform.python_version(),
                       date=str(date.today()), command=" ".join(sys.argv), rows=rows)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as f:
            f.write((json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
