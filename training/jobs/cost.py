"""The cost of each method on this device: parameters, multiply-accumulates, times, memory (the papers' cost tables)."""

import functools
from typing import Any, Callable, NamedTuple, Sequence

import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from metrics.published import TABLES
from training.config.options import Options
from training.config.resolve import resolve
from training.config.rivals import name_of
from training.config.schema import DatasetConfig, TrainingConfig
from training.estimate import build_for_cost
from training.loss import Batch, StyleGAN2Loss
from training.phases import GradientGuard, Phase, build_phases

_MIN_SEC = 1.0      # Every measurement of time takes at least this long.


class Cost(NamedTuple):
    """The cost of one method. GMAC and times are per image."""

    method: str
    G_params: int
    D_params: int           # With the decoder and heads that training adds.
    G_gmac: float           # Billions of multiply-accumulates of convolutions and matrix products in a forward pass.
    D_gmac: float           # With the decoder and heads.
    G_ms: float             # Time of a forward pass.
    D_ms: float
    step_ms: float          # Time of a training step. A lazy phase counts by the share of the steps that run it.
    memory_gb: float | None     # Peak memory of a training step on a GPU; None on a CPU.


def configure(method: str, *, cfg: str, resolution: int, batch: int, device: str) -> TrainingConfig:
    """The published settings of a method."""
    options = Options(method=method, cfg=cfg, aug="noaug", batch=batch, batch_gpu=batch)
    return resolve(options, DatasetConfig(path="random", resolution=resolution), device=device)


def measure(config: TrainingConfig) -> Cost:
    """Measure a method with random images on `config.device`."""
    device, count = torch.device(config.device), config.batch_gpu
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    G, D, extras = build_for_cost(config, config.device)
    phases = build_phases(config, StyleGAN2Loss(G, D, config=config.loss, **extras))
    guard, side = GradientGuard(device), config.dataset.resolution
    z, c = torch.randn([count, G.z_dim], device=device), torch.zeros([count, 0], device=device)
    img = torch.rand([count, config.dataset.num_channels, side, side], device=device) * 2 - 1
    batch = Batch(img, c, z, c)
    step_sec = sum(_seconds(functools.partial(_run, phase, batch, guard)) / phase.interval for phase in phases)
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    G.eval(), D.eval()
    judge = functools.partial(extras["rivals"].judge, img, c, decode=True)
    passes: dict[str, Callable[[], Any]] = {"G": lambda: G(z, c), "D": judge}
    with torch.inference_mode():
        gmac = {name: _count_flop(work) / 2e9 / count for name, work in passes.items()}
        ms = {name: 1e3 * _seconds(work) / count for name, work in passes.items()}
    G_params, D_params = (sum(parameter.numel() for parameter in net.parameters()) for net in (G, D))
    return Cost(name_of(config), G_params, D_params, G_gmac=gmac["G"], D_gmac=gmac["D"], G_ms=ms["G"],
                D_ms=ms["D"], step_ms=1e3 * step_sec / count, memory_gb=memory)


def _run(phase: Phase, batch: Batch, guard: GradientGuard) -> None:
    """Run a phase as the training loop does."""
    phase.module.requires_grad_(True)
    phase.backward([batch], num=1)
    phase.module.requires_grad_(False)
    phase.finish()
    guard.process(phase.module)
    phase.opt.step()


def _seconds(work: Callable[[], Any]) -> float:
    work()  # the first call compiles kernels and chooses algorithms
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=_MIN_SEC).median


def _count_flop(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def format_costs(costs: Sequence[Cost]) -> str:
    """A table of the costs, with step times relative to the first method's. The published figures follow."""
    first = costs[0]
    cells = [[cost.method, f"{cost.G_params / 1e6:.2f}", f"{cost.D_params / 1e6:.2f}", f"{cost.G_gmac:.3f}",
              f"{cost.D_gmac:.3f}", f"{cost.G_ms:.2f}", f"{cost.D_ms:.2f}", f"{cost.step_ms:.2f}",
              f"{100 * (cost.step_ms / first.step_ms - 1):+.1f}%",
              "-" if cost.memory_gb is None else f"{cost.memory_gb:.2f}"] for cost in costs]
    head = ["method", "G M", "D M", "G GMAC", "D GMAC", "G ms", "D ms", "step ms", f"over {first.method}", "memory GB"]
    lines = [tabulate(cells, head, disable_numparse=True),
             "M: million parameters. GMAC, ms: for one image. GB: the most that a training step takes."]
    for table in TABLES:
        if table.dataset is None:
            lines += ["", f"Published: {table.source}",
                      tabulate([[name, *row] for name, row in table.rows.items()], ["method", *table.columns])]
    return "\n".join(lines)
