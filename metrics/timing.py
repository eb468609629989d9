"""Estimates how long metrics will take, from the work to do and a short timing of the networks."""

import dataclasses
import time
from typing import Any, Callable, Mapping, NamedTuple

import torch

from dnnlib.util import num_cores
from metrics.detectors import FeatureNet
from metrics.features import is_known
from metrics.options import ImageSet, MetricOptions
from metrics.perceptual_path_length import MAX_RESOLUTION
from metrics.progress import Stage
from metrics.sampling import generate_uint8
from torch_utils import distributed

_LOOK_SEC = 0.5     # Timing a network takes about three times as long, for at most a batch.


class Work(NamedTuple):
    """The work of one metric. Fields are as in `registry.Metric`."""

    net: FeatureNet
    images: ImageSet | None
    num_gen: int
    keeps_features: bool


def plan(opts: MetricOptions, works: Mapping[str, Work]) -> list[Stage]:
    """The stages of all metrics (by name), in order. Work that is cached or shared appears only once or not at all."""
    stages: list[Stage] = []
    seen: set[tuple] = set()
    generate_sec, read_sec = _time_generator(opts), _time_reading(opts)
    net_sec: dict[tuple[str, str], float] = {}
    wanted = {((net.digest, net.output), images.resolved(opts.dataset))
              for net, images, _, keeps_features in works.values() if images is not None and keeps_features}
    for metric, (net, images, num_gen, _) in works.items():
        key = net.digest, net.output
        if key not in net_sec:
            net_sec[key] = _time_net(opts, net)
        both = generate_sec + net_sec[key]
        if images is not None and (key, images := images.resolved(opts.dataset)) not in seen:
            seen.add((key, images))
            if not is_known(opts, net, images, keep_features=(key, images) in wanted):
                stages.append(Stage(f"{metric} real", images.count, _together(opts, net_sec[key], read_sec)))
        if net.output == "lpips":
            stages += [Stage(f"{metric} paths", num_gen, 2 * both)] * opts.repeats
        elif (key, num_gen) not in seen:
            seen.add((key, num_gen))
            stages += [Stage(f"{metric} generated", num_gen, both)] * opts.repeats
    return [stage._replace(item_sec=stage.item_sec / distributed.world_size()) for stage in stages]


def _together(opts: MetricOptions, net_sec: float, read_sec: float) -> float:
    """Seconds for a real image. Other processes read ahead while a GPU computes, but not while the CPU does."""
    read_sec /= max(min(opts.workers, num_cores()), 1)
    return max(net_sec, read_sec) if opts.device.type == "cuda" and opts.workers else net_sec + read_sec


def _time_generator(opts: MetricOptions) -> float:
    if opts.gen_images is not None:
        return _time_reading(dataclasses.replace(opts, dataset=opts.gen_images))
    return _sec_per_item(opts, lambda count: generate_uint8(
        opts.G, opts.dataset, indices=range(count), seed=opts.seed, device=opts.device))


def _time_net(opts: MetricOptions, net: FeatureNet) -> float:
    channels, side, _ = opts.dataset.image_shape
    if net.output == "lpips":
        img = torch.zeros([opts.batch_size, channels, *[min(side, MAX_RESOLUTION)] * 2], device=opts.device)
    else:
        img = torch.zeros([opts.batch_size, channels, side, side], dtype=torch.uint8, device=opts.device)
    return _sec_per_item(opts, lambda count: net(img[:count]))


def _time_reading(opts: MetricOptions) -> float:
    available = min(opts.batch_size, len(opts.dataset))
    images = opts.dataset.images(range(available))
    return _sec_per_item(opts, lambda count: [images.read(i % available) for i in range(count)])


@torch.inference_mode()
def _sec_per_item(opts: MetricOptions, work: Callable[[int], Any]) -> float:
    """Time `work`, a function of the number of items to process."""
    def seconds(count: int) -> float:
        start = time.perf_counter()
        work(count)
        if opts.device.type == "cuda":
            torch.cuda.synchronize(opts.device)
        return time.perf_counter() - start

    seconds(1)  # compiles, chooses algorithms, fills caches
    count = max(1, min(opts.batch_size, int(_LOOK_SEC / max(seconds(1), 1e-9))))
    return min(seconds(count), seconds(count)) / count
