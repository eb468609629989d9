"""What the calculation of metrics will take: the work that there is to do, timed by a first look at the networks."""

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

_LOOK_SEC = 0.5     # A look at a network takes about three times that; it is a batch at most.


class Work(NamedTuple):
    """What one metric does."""

    net: FeatureNet
    images: ImageSet | None     # The real images.
    num_gen: int                # Generated images, or paths.
    keeps_features: bool        # Whether moments of real images are not enough.


def plan(opts: MetricOptions, works: Mapping[str, Work]) -> list[Stage]:
    """The stages of all metrics, by name, in their order; without what is cached, or shared by them."""
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
    return [stage._replace(item_sec=stage.item_sec / opts.num_gpus) for stage in stages]


def _together(opts: MetricOptions, net_sec: float, read_sec: float) -> float:
    """Of a real image, which other processes read ahead while a GPU, but not while a CPU, is busy with others."""
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
    """Of `work`, which is given a number of items."""
    def seconds(count: int) -> float:
        start = time.perf_counter()
        work(count)
        if opts.device.type == "cuda":
            torch.cuda.synchronize(opts.device)
        return time.perf_counter() - start

    seconds(1)  # compiles, chooses algorithms, fills caches
    count = max(1, min(opts.batch_size, int(_LOOK_SEC / max(seconds(1), 1e-9))))
    return min(seconds(count), seconds(count)) / count
