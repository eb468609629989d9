"""Time the operations, against plain ones, and on GPUs against the bandwidth of a copy.

    python benchmarks/ops.py --baseline [--threads=1] [--out=benchmarks/results/ops-cpu.json]
    python benchmarks/ops.py --device=cuda --baseline=native [--out=FILE.json]

With --baseline, each operation takes turns with the "reference", which inserts zeros and composes plain operations,
or, on a GPU, with "native", which is what runs without kernels; on a CPU, ours is native. The ratio is the median over
turns of our time by the other's: below 1, ours is faster. Of the copy's bandwidth, an operation that reads its input
and writes its output once, at the speed of a copy, has 100 %.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli
from benchmarks.measuring import baseline_option, medians, print_table, ratio, save_results, take_turns
from torch_utils.ops import bias_act, modconv_epilogue, upfirdn2d
from torch_utils.ops.build import custom_ops

Tensor = torch.Tensor

SHAPES = {  # [N, C, H, W]; on GPUs beyond what caches hold
    "cpu": [(16, 32, 32, 32), (16, 64, 16, 16), (8, 64, 64, 64)],
    "cuda": [(64, 64, 256, 256), (64, 128, 128, 128), (64, 512, 32, 32), (8, 64, 256, 256), (8, 32, 1024, 1024)],
}
MODES = ("forward", "backward", "double backward")
BASELINES = ("reference", "native")


class Case(NamedTuple):
    name: str
    fn: Callable[[Tensor, str], Tensor]         # The operation of an image, "ours" or a baseline.
    traffic: float                              # Elements read and written in the forward pass, per one of the input.


def cases(device: str, shape: tuple[int, ...]) -> list[Case]:
    f = upfirdn2d.setup_filter([1, 3, 3, 1], device=device)
    long = upfirdn2d.setup_filter(range(1, 13), device=device)
    n, c, h, w = shape
    scale, noise = torch.rand([n, c], device=device) + 0.5, torch.randn([n, 1, h, w], device=device)
    strength, b = torch.full([], 0.1, device=device), torch.randn([c], device=device)

    def epilogue(x: Tensor, way: str) -> Tensor:
        if way == "reference":
            x = x * scale.to(x.dtype)[:, :, None, None] + (noise * strength).to(x.dtype)
            return bias_act.bias_act(x, b.to(x.dtype), act="lrelu", clamp=256, impl="ref")
        return modconv_epilogue.modconv_epilogue(x, scale, noise, strength, b, clamp=256)

    def fir(function: Callable[..., Tensor], **kwargs: Any) -> Callable[[Tensor, str], Tensor]:
        return lambda x, way: function(x, impl="ref" if way == "reference" else "cuda", **kwargs)

    return [
        Case("upsample2d", fir(upfirdn2d.upsample2d, f=f), 5),
        Case("downsample2d", fir(upfirdn2d.downsample2d, f=f), 1.25),
        Case("filter2d", fir(upfirdn2d.filter2d, f=f), 2),
        Case("filter2d 12 taps", fir(upfirdn2d.filter2d, f=long), 4),
        Case("bias_act lrelu", fir(bias_act.bias_act, b=b, act="lrelu", clamp=256), 2),
        Case("modconv_epilogue", epilogue, 2),
    ]


def run(fn: Callable[[Tensor, str], Tensor], x: Tensor, way: str, mode: str) -> None:
    if mode == "forward":
        fn(x, way)
        return
    x = x.detach().requires_grad_()
    if mode == "backward":
        y = fn(x, way)
        torch.autograd.grad(y, x, y.detach())
    else:  # as in R1: the squared norm of a gradient is differentiated
        (dx,) = torch.autograd.grad(fn(x, way).square().sum(), x, create_graph=True)
        torch.autograd.grad(dx.square().sum(), x)


def measure(
    case: Case, x: Tensor, mode: str, *, baseline: str | None, device: str, repeats: int, copy_rate: float | None
) -> dict[str, Any]:
    """Median milliseconds of each way, and their ratio."""
    inner = 1 if device == "cpu" else 4  # calls between two looks at the clock, which wait for the GPU

    def call(way: str) -> Callable[[], None]:
        def once() -> None:
            for _ in range(inner):
                run(case.fn, x, "ours" if way == "native" else way, mode)

        if way != "native":
            return once

        def without_kernels() -> None:
            with custom_ops.switched_off():
                once()

        return without_kernels

    ways = ["ours"] if baseline is None else ["ours", baseline]
    times = take_turns({way: call(way) for way in ways}, repeats=repeats, device=device, title=case.name)
    row = {f"{way} ms": 1e3 * value / inner for way, value in medians(times).items()}
    row |= {f"ours / {way}": ratio(times, "ours", way) for way in ways[1:]}
    if copy_rate is not None:
        # The derivative with respect to the input moves as much again; double backward has no such bound.
        moved = x.numel() * x.element_size() * case.traffic * dict(forward=1, backward=2).get(mode, float("nan"))
        row["% of copy"] = 100 * moved / (row["ours ms"] / 1e3) / copy_rate
    return row


def measure_copy(device: str) -> float:
    """Bytes per second, read and written, of a copy within the GPU's memory."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    times = take_turns({"copy": lambda: [y.copy_(x) for _ in range(4)]}, repeats=10, device=device)
    return 4 * 2 * x.numel() / medians(times)["copy"]


@click.command(cls=cli.Command)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(min=3))
@click.option("--modes", default=",".join(MODES), show_default=True)
@click.option("--shapes", default=None, type=click.IntRange(min=1), help="Only so many of the sizes.")
@baseline_option(*BASELINES)
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON, anew after each size.")
def main(
    device: str, threads: int, repeats: int, modes: str, shapes: int | None, baseline: str | None, out: str | None
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device=cuda: PyTorch finds no GPU here; try --device=cpu")
    if unknown := set(modes.split(",")) - set(MODES):
        raise click.ClickException(f"--modes: {', '.join(sorted(unknown))}: expected some of {', '.join(MODES)}")
    if device == "cpu" and baseline == "native":
        raise click.ClickException("--baseline=native: on a CPU, ours is native; try --baseline=reference")
    torch.set_num_threads(threads)
    kinds = [(torch.float32, False)]
    if device == "cuda":
        kinds += [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True)]
    copy_rate = measure_copy(device) if device == "cuda" else None
    if copy_rate:
        print(f"Copy within the GPU: {copy_rate / 1e12:.2f} TB/s, read and written")
    rows = []
    for shape, (dtype, channels_last) in itertools.product(SHAPES[device][:shapes], kinds):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(shape, device=device).to(dtype=dtype, memory_format=memory_format)
        kind = str(dtype).removeprefix("torch.") + (", channels last" if channels_last else "")
        for case, mode in itertools.product(cases(device, shape), modes.split(",")):
            figures = measure(
                case, x, mode, baseline=baseline, device=device, repeats=repeats, copy_rate=copy_rate)
            rows.append(dict(operation=case.name, shape=str(shape), kind=kind, mode=mode, **figures))
        print_table(rows[-len(cases(device, shape)) * len(modes.split(",")):])
        save_results(out, device=device, copy_bytes_per_sec=copy_rate, rows=rows)


if __name__ == "__main__":
    main()
