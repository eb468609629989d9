"""What a configuration will cost: parameters, and memory of one GPU."""

from typing import Any, Callable, NamedTuple

from training.config import (
    DiscriminatorConfig,
    GeneratorConfig,
    TrainingConfig,
    discriminator_kwargs,
    generator_kwargs,
)

FLOAT = 4  # Bytes.
HALF = 2

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

    from training.networks import Discriminator, Generator

    with torch.device("meta"):
        return Generator(**generator_kwargs(config)), Discriminator(**discriminator_kwargs(config))


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
    if config.perceptual is None:
        return 0
    stages = _ALEXNET if config.perceptual in ("lpips-alex", "random-alex") else _VGG16  # other nets are taken for as large as VGG
    res = config.dataset.resolution
    return sum(2 * layers * channels * (res // shrink) ** 2 * FLOAT for channels, layers, shrink in stages)
