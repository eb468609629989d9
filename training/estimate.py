"""What a configuration will cost: parameters, memory of one GPU, time on a CPU."""

import time
from typing import Any, Callable, NamedTuple

from dnnlib.util import rough_time
from training.config.schema import DiscriminatorConfig, GeneratorConfig, TrainingConfig

FLOAT = 4  # Bytes.
HALF = 2
LONG_SEC = 600          # What takes longer on a CPU is announced.
_LOOK_PIXELS = 1 << 16  # Networks are timed on images with about so many pixels.
_SHORT_KIMG = 0.1       # Nobody needs an estimate for so few images.

# Channels of each stage's feature maps, kept before and after the activation, and the side relative to the image.
_VGG16 = ((64, 2, 1), (128, 2, 2), (256, 3, 4), (512, 3, 8), (512, 3, 16))      # channels, layers, image side / side
_ALEXNET = ((64, 1, 4), (192, 1, 8), (384, 1, 16), (256, 2, 16))


class Parameters(NamedTuple):
    G: int
    D: int


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: int        # Parameters, gradients, Adam's two moments, G_ema.
    activations: int    # The phase that keeps most.


class Seconds(NamedTuple):
    """On this machine's CPU."""

    training: float
    scoring: float      # Of all snapshots, by the metrics of the run.


def count_parameters(config: TrainingConfig, *, build: Callable[[TrainingConfig], Any] | None = None) -> Parameters:
    """Count the parameters of G and D without allocating them.

    Args:
        config: The run.
        build:  Gives the modules (G, D); default: ours, on the meta device.
    """
    G, D = (build or _build_on_meta)(config)
    return Parameters(*(sum(p.numel() for p in net.parameters()) for net in (G, D)))


def _build_on_meta(config: TrainingConfig) -> tuple[Any, Any]:
    import torch

    from training.build import build_networks

    with torch.device("meta"):
        return build_networks(config)


def estimate_memory(config: TrainingConfig, parameters: Parameters) -> Memory:
    """Estimate the training memory of one GPU, without the framework's own half gigabyte and without its spare blocks.

    Weights: parameter, gradient and Adam's two moments are 16 bytes for each parameter of G and D; G_ema adds 4 for
    each of G. Activations: channels x resolution^2 x batch_gpu x bytes, summed over the maps that a backward pass
    needs (`_generator_maps`, `_discriminator_maps`), for the phase that needs most:

        Gmain   the graphs of G and D
        Greg    twice G's graph (the gradient has one as well) on a batch that is pl_batch_shrink times smaller
        Dmain   D's graph with its decoder; in reconstructions also frozen G's from res_g up, and the perceptual net's
        Dreg    twice D's graph
    """
    G = sum(_generator_maps(config, above=0))
    D = sum(_discriminator_maps(config))
    phases = [G + D, 2 * D]
    if config.loss.pl_weight:
        phases.append(2 * G // config.loss.pl_batch_shrink)
    tasks = [task for task in (config.loss.real_task, config.loss.fake_task) if task is not None]
    if tasks:
        task_bytes = _decoder_maps(config)
        if any(task.kind == "reconstruction" for task in tasks):
            above = config.D.res_g if config.D.res_g != 1 else 0
            task_bytes += sum(_generator_maps(config, above=above)) + _perceptual_maps(config)
        phases.append(D + task_bytes)
    return Memory(
        weights=16 * (parameters.G + parameters.D) + FLOAT * parameters.G,
        activations=config.batch_gpu * max(phases),
    )


def _resolutions(config: TrainingConfig) -> list[int]:
    return [2**i for i in range(2, config.dataset.resolution.bit_length())]


def _map_bytes(config: TrainingConfig, net: GeneratorConfig | DiscriminatorConfig, res: int) -> int:
    """Bytes of one feature map at `res`: [channels, res, res], in half precision where the network uses it."""
    highest = config.dataset.resolution >> net.num_fp16_res
    half = (config.device == "cuda" or net.half_type == "bfloat16") and res > max(highest, 4)
    return min(net.channel_base // res, net.channel_max) * res**2 * (HALF if half else FLOAT)


def _generator_maps(config: TrainingConfig, *, above: int) -> list[int]:
    """Per resolution: input, output and activation of two convolutions, and what the up-sampling filters."""
    return [7 * _map_bytes(config, config.G, res) for res in _resolutions(config) if res > above]


def _discriminator_maps(config: TrainingConfig) -> list[int]:
    """Per resolution: the input, output, activation and blur of the first convolution; three maps of half the size."""
    sizes = [_map_bytes(config, config.D, res) for res in _resolutions(config)]
    return [4 * size + 3 * smaller for smaller, size in zip([0] + sizes, sizes)]


def _decoder_maps(config: TrainingConfig) -> int:
    """Each level keeps its up-sampled input, twice the coarser level's channels, and its output, in float32."""
    channels = {res: min(config.D.channel_base // res, config.D.channel_max) for res in _resolutions(config)}
    levels = [res for res in channels if 4 < res <= (config.D.decoder_res or 0)]
    return sum((2 * channels[res // 2] + channels[res]) * res**2 * FLOAT for res in levels)


def _perceptual_maps(config: TrainingConfig) -> int:
    res = config.dataset.resolution
    return sum(2 * layers * channels * (res // shrink) ** 2 * FLOAT
               for channels, layers, shrink in _perceptual_stages(config))


def _perceptual_stages(config: TrainingConfig) -> tuple[tuple[int, int, int], ...]:
    if config.perceptual is None:
        return ()
    # Other nets are taken for as large as VGG.
    return _ALEXNET if config.perceptual.startswith(("lpips-alex", "random-alex")) else _VGG16


# ----------------------------------------------------------------------------------------------------------------------
# Time.


def describe_long_work(config: TrainingConfig, dataset: Any, *, done_kimg: float = 0) -> str | None:
    """A line on how long a run will take, where that is more than ten minutes on a CPU; else None."""
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

    G, D and convolutions like those of the perceptual net are timed on a few images. A backward pass takes as long for
    the input as the forward pass, and as long for the weights:

        Gmain   3 G + 2 D
        Greg    6 G for each of its images
        Dmain   G + 6 D, and for each image that is rebuilt 2 times frozen G above res_g and 3 times the perceptual net
        Dreg    6 D

    Args:
        config:    The run.
        dataset:   Its images, for metrics.
        done_kimg: What of its length is done already.
    """
    import torch

    from training.build import build_networks

    count = max(1, min(config.batch_gpu, _LOOK_PIXELS // config.dataset.resolution**2))
    G, D = (net.eval().requires_grad_(False) for net in build_networks(config))
    z, c = torch.randn(count, G.z_dim), torch.zeros(count, G.c_dim)
    with torch.inference_mode():
        img = G(z, c)
        G_sec, D_sec = _time(lambda: G(z, c)), _time(lambda: D(img, c))
        task_sec = 3 * _time(lambda: _look_at(img, _perceptual_stages(config)))
    if config.D.res_g is not None:
        maps = [sum(_generator_maps(config, above=res)) for res in (config.D.res_g, 0)]
        task_sec += 2 * G_sec * maps[0] / maps[1]
    sec = 4 * G_sec + 8 * D_sec + 6 * D_sec / config.d_reg_interval
    if config.loss.pl_weight:
        sec += 6 * G_sec / config.loss.pl_batch_shrink / config.g_reg_interval
    tasks = (config.loss.real_task, config.loss.fake_task)
    sec += task_sec * sum(task is not None and task.kind == "reconstruction" for task in tasks)
    return Seconds(1000 * (config.total_kimg - done_kimg) * sec / count,
                   _scoring_seconds(config, G, dataset, done_kimg=done_kimg))


def _look_at(img: Any, stages: tuple[tuple[int, int, int], ...]) -> None:
    """Convolve images as a perceptual net does, were all of its convolutions 3x3."""
    import torch

    x = img
    for channels, layers, shrink in stages:
        step = x.shape[2] * shrink // img.shape[2]
        x = x[:, :, ::step, ::step]
        for _ in range(layers):
            x = torch.nn.functional.conv2d(x, torch.zeros(channels, x.shape[1], 3, 3), padding=1)


def _time(work: Callable[[], Any]) -> float:
    """Of the quicker one of two calls after a first one, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


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
