"""Estimates of what a configuration will cost: parameters, memory of one GPU, time on a CPU.

Networks are run on the meta device, where tensors have shapes but no data, or are timed. So the estimates hold for
networks of any class.
"""

import dataclasses
import functools
import timeit
from typing import Any, Callable, Iterator, NamedTuple

from dnnlib.util import rough_time
from training.config.schema import TrainingConfig

FLOAT = 4  # Bytes.
_MEMORY_SHARE = 0.8     # Share of the free memory for activations; convolutions need the rest as workspace.
LONG_SEC = 600          # Work that takes longer on a CPU is announced.
_LOOK_PIXELS = 1 << 16  # Networks are timed on a batch of about this many pixels.
_SHORT_KIMG = 0.1       # Shorter runs get no estimate.


class Parameters(NamedTuple):
    G: int
    D: int


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: int        # Parameters, gradients, Adam's two moments, G_ema.
    activations: int    # What autograd keeps, in the phase that needs most.


class Seconds(NamedTuple):
    """Times on this machine's CPU."""

    training: float
    scoring: float      # All metrics of all snapshots.


def count_parameters(config: TrainingConfig) -> Parameters:
    """Count the parameters of G and D without allocating them."""
    import torch

    from training.build import build_networks

    with torch.device("meta"):
        G, D = build_networks(config)
    return Parameters(*(sum(p.numel() for p in net.parameters()) for net in (G, D)))


def estimate_memory(config: TrainingConfig, parameters: Parameters) -> Memory:
    """Estimate the training memory of one GPU, without CUDA's own half gigabyte and unused blocks of the allocator.

    Weights: a parameter takes 16 bytes (value, gradient, Adam's two moments), and one of G takes 4 more in G_ema.
    Activations: the tensors that autograd keeps for the backward pass, in the phase that keeps most. The phases run on
    the meta device with PyTorch's own operations, which keep slightly more than our CUDA kernels.
    """
    return Memory(
        weights=16 * (parameters.G + parameters.D) + FLOAT * parameters.G,
        activations=max(trace_activations(config).values()),
    )


def images_at_once(config: TrainingConfig, device: Any) -> int:
    """The largest multiple of `batch_gpu` that divides the GPU's share of the batch and fits its free memory.

    Without `fill_gpu`, and on a CPU, that is `batch_gpu` itself.

    Args:
        device: A torch.device. It holds the networks already, but no gradients and moments of optimisers yet.
    """
    import torch

    if device.type != "cuda" or not config.fill_gpu:
        return config.batch_gpu
    memory = estimate_memory(config, count_parameters(config))
    free = torch.cuda.mem_get_info(device)[0] - memory.weights
    parts = config.batch_size // config.num_gpus // config.batch_gpu
    fitting = [n for n in range(1, parts + 1) if parts % n == 0 and n * memory.activations <= _MEMORY_SHARE * free]
    return config.batch_gpu * max(fitting, default=1)


def trace_activations(config: TrainingConfig) -> dict[str, int]:
    """The most bytes that autograd keeps in each phase, by its name, for `batch_gpu` images without augmentation."""
    import torch

    from torch_utils import training_stats
    from training.loss import Batch, StyleGAN2Loss
    from training.phases import build_phases

    c = dataclasses.replace(config, loss=dataclasses.replace(config.loss, style_mixing_prob=0.0))
    if config.device == "cuda":     # bfloat16 is as large as float16, and networks use it on the meta device, too
        c = dataclasses.replace(c, G=dataclasses.replace(c.G, half_type="bfloat16"),
                                D=dataclasses.replace(c.D, half_type="bfloat16"))
    G, D, extras = build_for_cost(c, "meta")
    loss = StyleGAN2Loss(G, D, config=c.loss, **extras)
    n, data = c.batch_gpu, c.dataset
    shapes = ([data.num_channels, data.resolution, data.resolution], [data.label_dim], [G.z_dim], [data.label_dim])
    real_img, real_c, gen_z, gen_c = (torch.zeros([n, *shape], device="meta") for shape in shapes)
    batch = Batch(real_img, real_c, gen_z, gen_c)
    found = {}
    with training_stats.unrecorded():
        for phase in build_phases(c, loss):
            phase.module.requires_grad_(True)
            found[phase.name] = max(_kept_bytes(phase.loss(batch), besides=(G, D)))
            phase.module.requires_grad_(False)
    return found


def _kept_bytes(terms: Iterator[Any], *, besides: tuple[Any, ...]) -> Iterator[int]:
    """Yield the bytes that the graph of each term of a loss keeps, without the weights of the networks `besides`."""
    import torch

    weights = {t.untyped_storage()._cdata for net in besides for t in (*net.parameters(), *net.buffers())}
    while True:
        kept: dict[int, Any] = {}   # Storages by address. They are kept alive, so that no address is used twice.

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # noqa: B023 - called within this turn of the loop
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            term = next(terms, None)
        if term is None:
            return
        yield sum(storage.nbytes() for storage in kept.values())


def build_for_cost(config: TrainingConfig, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """Build G, D and the result of `build_extras`. Untrained perceptual nets cost the same and need no download."""
    import torch

    from training.build import build_networks
    from training.perceptual import build_stand_in
    from training.rivals import build_extras

    with torch.device(device):
        G, D = (net.requires_grad_(False) for net in build_networks(config))
        distance = functools.partial(build_stand_in, resolution=config.dataset.resolution)
        return G, D, build_extras(config, G, D, build_distance=distance)


# ----------------------------------------------------------------------------------------------------------------------
# Time.


def describe_long_work(config: TrainingConfig, dataset: Any, *, done_kimg: float = 0) -> str | None:
    """One line on how long a run will take on the CPU; None if that is less than ten minutes, or on a GPU.

    For the arguments, see `estimate_seconds`.
    """
    if config.device != "cpu" or (config.total_kimg - done_kimg < _SHORT_KIMG and not config.metrics):
        return None
    training, scoring = estimate_seconds(config, dataset, done_kimg=done_kimg)
    if training + scoring < LONG_SEC:
        return None
    line = f"on the CPU this training will take about {rough_time(training)}"
    if scoring > 60:
        line += f", and its metrics about {rough_time(scoring)} more (--metrics=none leaves them out)"
    return f"{line}: a GPU is much faster; --kimg, --cmax and the size of the images count, too"


def estimate_seconds(config: TrainingConfig, dataset: Any, *, done_kimg: float = 0) -> Seconds:
    """Estimate the time of training and of its metrics on this CPU, within a factor of about 2.

    The forward passes of G, D and the tasks of D are timed on a few images. The gradient of the input takes as long as
    the forward pass, and the gradient of the weights as long again. So each image costs:

        Gmain   3 G + 2 D
        Greg    6 G (only for the images that it uses)
        Dmain   G + 6 D + 2 of each task, because tasks have no trained weights
        Dreg    6 D

    Rivals are not counted.

    Args:
        config:    The run.
        dataset:   Its images, for the metrics.
        done_kimg: How much of the run is done already.
    """
    import torch

    from training.tasks import Shown

    count = max(1, min(config.batch_gpu, _LOOK_PIXELS // config.dataset.resolution**2))
    G, D, extras = build_for_cost(config, "cpu")
    G, D, judge, tasks = G.eval(), D.eval(), extras["rivals"].judge, [*extras["real_tasks"], *extras["fake_tasks"]]
    z, c = torch.randn(count, G.z_dim), torch.zeros(count, G.c_dim)
    with torch.inference_mode():
        ws = G.mapping(z, c)
        keep = sorted({res for task in tasks for res in task.states})
        img, states = G.synthesis.run(ws, keep=keep) if keep else (G.synthesis(ws), {})
        shown = Shown(img, img, c, states, z, ws)
        G_sec, D_sec = _time(lambda: G(z, c)), _time(lambda: judge(img, c))
        out = judge(img, c, decode=True) if tasks else None
        of_kind = {kind: _time(functools.partial(task.loss, out, shown))
                   for kind, task in {task.kind: task for task in tasks}.items()}
    task_sec = sum(of_kind[task.kind] for task in tasks)
    sec = 4 * G_sec + 8 * D_sec + 2 * task_sec + 6 * D_sec / config.d_reg_interval
    if config.loss.pl_weight:
        sec += 6 * G_sec / config.loss.pl_batch_shrink / config.g_reg_interval
    return Seconds(1000 * (config.total_kimg - done_kimg) * sec / count,
                   _scoring_seconds(config, G, dataset, done_kimg=done_kimg))


def _time(work: Callable[[], Any]) -> float:
    """Seconds of the faster of two calls, after one call that does not count."""
    return min(timeit.repeat(work, number=1, repeat=3)[1:])


def _scoring_seconds(config: TrainingConfig, G: Any, dataset: Any, *, done_kimg: float) -> float:
    if not config.metrics:
        return 0
    from metrics import metric_main
    from training.runs.evaluation import metric_batch

    stages = metric_main.estimate(config.metrics, G=G, dataset=dataset, detector=config.detector,
                                  batch_size=metric_batch(config), workers=config.workers)
    times = 1
    if config.snapshot_ticks:
        times += int((config.total_kimg - done_kimg) / (config.kimg_per_tick * config.snapshot_ticks)) + (not done_kimg)
    return sum(stage.sec * (1 if stage.of_real else times) for stage in stages)
