"""The summary that train.py prints before a run starts: the options as JSON, then the run in words and numbers.

There is a line for each option that has a `summary` (`config.options`). By default, it shows the value of the option's
first field. `_WORDS` has functions for lines that say more.
"""

import json
import sys
from typing import Callable

from training.config import comparison
from training.config import schema as configs
from training.config.options import AUGMENTATION, BASIC, DATA, METHOD, OPTIONS, TRANSFER, get, shown_value
from training.config.presets import PRESETS, auto_preset
from training.config.rivals import name_of
from training.config.schema import TaskConfig, TrainingConfig
from training.estimate import count_parameters, estimate_memory

from .prepare_run import detector_of, is_downloaded

_FIRST_GROUPS = (DATA, METHOD, TRANSFER, BASIC, AUGMENTATION)   # The order of lines; other groups follow.


def print_options(config: TrainingConfig, description: str) -> None:
    """Print the options as in `training_options.json`, then the run in words and numbers, on stdout."""
    print("Training options:")
    print(json.dumps({k: v for k, v in configs.to_legacy_kwargs(config).items() if k != "config"}, indent=2))
    print()
    parameters = count_parameters(config)
    memory = estimate_memory(config, parameters)
    lines = {
        "Run": description,
        **describe_options(config),
        "Parameters": f"{parameters.G:,} of G, {parameters.D:,} of D",
        "Memory per device": f"about {sum(memory) / 1e9:.1f} GB: {memory.weights / 1e9:.1f} for weights and "
                             f"optimisers, {memory.activations / 1e9:.1f} for activations",
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name + ':':{width + 1}} {text}")
    print(comparison.departures_line(config))


def print_verdict(config: TrainingConfig, problems: list[str]) -> None:
    """Print the result of a dry run: the problems that would stop a run, or that there are none."""
    unseen = [net for net in (config.resume, config.perceptual, detector_of(config)) if net and is_downloaded(net)]
    names = ", ".join("the metrics' standard nets" if net == "standard" else net for net in unseen)
    sys.stdout.flush()
    for problem in problems:
        print(f"Warning: a run would stop here: {problem}", file=sys.stderr)
    if not problems:
        print("\nNothing stands in the way of this run here"
              + (f", unless one of these is missing, which were not looked for: {names}" if names else ""))


def describe_options(config: TrainingConfig) -> dict[str, str]:
    """The lines of options, as names and texts, in the order in which they are shown."""
    groups = list(dict.fromkeys([*_FIRST_GROUPS, *(option.group for option in OPTIONS.values())]))
    shown = sorted((option for option in OPTIONS.values() if option.summary), key=lambda o: groups.index(o.group))
    return {option.summary: _WORDS[option.name](config) if option.name in _WORDS else
            shown_value(get(config, option.fields[0])) for option in shown}


def _describe_data(config: TrainingConfig) -> str:
    dataset = config.dataset
    size = "all images" if dataset.max_size is None else f"{dataset.max_size} images"
    labels = f"labels of {dataset.label_dim}" if dataset.use_labels else "no labels"
    shape = f"{dataset.num_channels}x{dataset.resolution}x{dataset.resolution}"
    return f"{dataset.path}, {size}, {shape}, {labels}, {'mirrored too' if dataset.xflip else 'not mirrored'}"


def _describe_task(task: TaskConfig | None, config: TrainingConfig) -> str:
    from training.tasks import TASKS

    return "no task" if task is None else TASKS[task.kind].describe(task, config)


def _describe_decoder(config: TrainingConfig) -> str:
    res, size = config.D.decoder_res, config.D.decoder_kernel
    return "none" if res is None else f"up to {res}x{res}, {size}x{size} convolutions, {config.D.decoder_act}"


def _describe_method(config: TrainingConfig) -> str:
    text = f"{name_of(config)}, settings of --cfg={config.preset}"
    if config.recipe == "released":
        text += ", as GLeaD's released program does it; --recipe=paper follows the paper"
    return text


def _describe_start(config: TrainingConfig) -> str:
    """The network to start from, and its sizes that replace those of --cfg."""
    if config.resume is None:
        return "new networks"
    cfg = auto_preset(PRESETS[config.preset], config.dataset.resolution, config.num_gpus)
    text, depth = config.resume, config.G.map_depth
    if depth != cfg.map_depth:
        text += f"; mapping network: {depth} layers, from the source instead of {cfg.map_depth}"
    cbase = cfg.cbase if config.method == "stylegan2" else cfg.cbase_task
    if (config.G.channel_base, config.G.channel_max) != (cbase, cfg.cmax):
        text += f"; cbase {config.G.channel_base} and cmax {config.G.channel_max} instead of {cbase} and {cfg.cmax}"
    return text


def _describe_batch(config: TrainingConfig) -> str:
    """For example `64 images = 8 steps of 8 on 1 GPU`. A GPU may compute several steps at once if they fit."""
    steps, gpus = config.batch_size // config.num_gpus // config.batch_gpu, config.num_gpus
    where = "1 GPU" if gpus == 1 else f"each of {gpus} GPUs"
    if config.device == "cpu":
        where = "the CPU" if gpus == 1 else f"the CPU in each of {gpus} processes"
    at_once = ", as many at once as fit its memory" if config.fill_gpu and steps > 1 else ""
    shares = f"{steps} step{'s' if steps > 1 else ''} of {config.batch_gpu} on {where}"
    return f"{config.batch_size} images = {shares}{at_once}"


def _describe_augment(config: TrainingConfig) -> str:
    augment = config.augment
    if augment is None:
        return "none"
    if augment.mode == "fixed":
        return f"{augment.pipe}, each transform with probability {augment.p:g}"
    return f"{augment.pipe}, adapted to a mean sign of {augment.target:g} over {augment.ada_kimg:g} kimg"


_WORDS: dict[str, Callable[[TrainingConfig], str]] = {  # By option.
    "data": _describe_data,
    "method": _describe_method,
    "lambda_real": lambda c: _describe_task(c.loss.real_task, c),
    "lambda_fake": lambda c: _describe_task(c.loss.fake_task, c),
    "res_decoder": _describe_decoder,
    "resume": _describe_start,
    "kimg": lambda c: f"{c.total_kimg:g} kimg (thousand images), in ticks of {c.kimg_per_tick:g} kimg",
    "batch": _describe_batch,
    "aug": _describe_augment,
    "snap": lambda c: f"every {c.snapshot_ticks} ticks" if c.snapshot_ticks else "at the end",
}
