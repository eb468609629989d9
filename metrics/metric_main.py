"""Calculates and reports the metrics of `metrics/registry.py`."""

import contextlib
import copy
import dataclasses
import functools
import json
import os
import statistics
import time
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import PIL
import torch

from dnnlib.util import EasyDict, UserError, append_text, check_all, format_time
from metrics import detectors, registry
from metrics.detectors import FeatureNet
from metrics.features import generated_stats, real_stats
from metrics.options import ImageSet, MetricOptions, Shared, shared_failure
from metrics.progress import ScoreBar, Stage
from metrics.registry import METRICS, Metric, check_metrics
from metrics.timing import Work, plan
from torch_utils import distributed
from torch_utils.formats.feature_nets import Output

is_valid_metric, list_valid_metrics = registry.is_valid_metric, registry.list_valid_metrics     # Users import these.
higher_is_better = registry.higher_is_better


def check_detector(metrics: Sequence[str], detector: str | None = None, *, trust: bool = False) -> None:
    """Check, before long work, that every feature net that these metrics need exists and has the right interface.

    Args:
        metrics:  Names of metrics.
        detector: Path or URL of a feature net; None = each metric's standard net.
        trust:    As in `load_feature_net`.

    Raises:
        UserError: A metric is unknown, or a net can't be had, is no feature net, lacks the interface, or fails. The
            message names every net with a problem.
    """
    check_metrics(metrics)
    needed: dict[str, dict[Output, list[str]]] = {}     # Net -> output -> names of metrics.
    for name in metrics:
        entry = METRICS[name]
        needed.setdefault(detector or entry.standard_net, {}).setdefault(entry.output, []).append(name)

    def check(spec: str) -> None:
        for output, names in needed[spec].items():
            try:
                detectors.load_feature_net(spec, output, trust=trust).check()
            except UserError as e:
                raise UserError(f"{', '.join(names)}: {e}") from e

    check_all(*(functools.partial(check, spec) for spec in needed))


def feature_net(
    metric: str, detector: str | None = None, *, device: torch.device | str = "cpu", trust: bool = False
) -> FeatureNet:
    """The net that a metric is measured with: `detector`, or the standard one. Raises UserError if it can't be had."""
    entry = METRICS[metric]
    return detectors.load_feature_net(detector or entry.standard_net, entry.output, device=device, trust=trust)


def result_suffix(metric: str, detector: str | None, net: FeatureNet) -> str:
    """The ending of the names of a metric's results: empty for the standard net, otherwise `@` and the name of the net.

    The standard net is recognised by its content, wherever the file is: by the published SHA-256 or, if none is
    published, by that of the file that was first downloaded from its URL.
    """
    url = METRICS[metric].standard_net
    return "" if detector in (None, url) or detectors.is_standard(net.digest, url) else f"@{net.name}"


def check_match(G: torch.nn.Module, dataset: Any) -> None:
    """Raise UserError unless the data set has the resolution, channels and labels of the network."""
    image_shape = [G.img_channels, G.img_resolution, G.img_resolution]
    if list(dataset.image_shape) != image_shape:
        raise UserError(f"the data set {dataset.name} has images of shape {list(dataset.image_shape)}, the network "
                        f"makes {image_shape} ([channels, height, width]): give the data set that it was trained on")
    if G.c_dim > 0 and dataset.label_dim != G.c_dim:
        has = f"labels of width {dataset.label_dim}" if dataset.label_dim > 0 else "no labels"
        raise UserError(f"the network takes labels of width {G.c_dim}, and the data set {dataset.name} has {has}")


def check_images(metrics: Sequence[str], images: Any, dataset: Any) -> None:
    """Raise UserError unless these metrics can compare generated images, given as a data set, with the real ones.

    Args:
        metrics: Names of metrics.
        images:  The generated images.
        dataset: The real images.
    """
    if list(images.image_shape) != list(dataset.image_shape):
        raise UserError(f"the images in {images.name} have the shape {list(images.image_shape)}, those in "
                        f"{dataset.name} {list(dataset.image_shape)} ([channels, height, width]): convert both with "
                        "dataset_tool.py")
    for name in metrics:
        if METRICS[name].output == "lpips":
            raise UserError(f"{name} is about paths between latents, which need a network: score images by others")
        if METRICS[name].num_gen > len(images):
            fewer = ", or take a metric of fewer, such as fid1k_full" if len(images) >= 1000 else ""
            raise UserError(f"{name} looks at {METRICS[name].num_gen} generated images, and {images.name} holds "
                            f"{len(images)}: give more{fewer}")


def calc_metric(
    metric: str,
    *,
    G: torch.nn.Module | None,                  # generator; a copy in eval mode is used
    dataset: Any,                               # real images, and labels for generated ones
    gen_images: Any = None,                     # if G is None: a data set of generated images
    detector: str | None = None,                # path or URL of a feature net; None = the standard one
    trust: bool = False,                        # open the net even if it is an unknown TorchScript file, a program
    device: torch.device | str = "cpu",
    shared: Shared | None = None,
    progress: ScoreBar | None = None,
    **options: Any,                             # other fields of `MetricOptions`
) -> EasyDict:
    """Calculate one metric. All processes that have met by `distributed.join` call this together.

    Returns:
        `results`: name of the value -> float. With a detector that is not the standard one, names end in "@<detector>".
        With `repeats`, also `std`, with the same names. The other entries describe the protocol: see `_describe`. Every
        process gets the same.

    Raises:
        UserError: The metric is unknown, or the feature net or the data do not fit.
        LostRank:  Another process died, or did not answer in time.
    """
    check_metrics([metric])
    if G is not None:
        check_match(G, dataset)
    else:
        check_images([metric], gen_images, dataset)
    start, device = time.monotonic(), torch.device(device)
    shared = Shared([metric]) if shared is None else shared
    opts = MetricOptions(
        metric=metric, G=G, dataset=dataset, gen_images=gen_images, device=device, shared=shared,
        wanted=_wanted_features(metric, shared.metrics, dataset, detector),
        progress=progress if distributed.rank() == 0 else None, **options,
    )
    with shared_failure(opts):  # memory may run out
        if G is not None:
            opts = dataclasses.replace(opts, G=copy.deepcopy(G).eval().requires_grad_(False).to(device))
        net = feature_net(metric, detector, device=device, trust=trust)
    suffix = result_suffix(metric, detector, net)
    with exact_float32(), contextlib.nullcontext() if opts.progress is None else opts.progress.shown():
        scores = _compute(opts, net, detector)
    sec = time.monotonic() - start
    return EasyDict(_summary(scores, suffix), **_describe(opts, net), total_time=sec, total_time_str=format_time(sec),
                    num_gpus=distributed.world_size())


def _compute(opts: MetricOptions, net: FeatureNet, detector: str | None) -> list[dict[str, float]]:
    """The results for each seed, on every process."""
    with shared_failure(opts):
        if opts.progress is not None and not opts.shared.is_planned:
            opts.progress.plan(_plan(opts, opts.shared.metrics, detector), times_later=opts.shared.waiting)
            opts.shared.is_planned = True
        scores = [_score(dataclasses.replace(opts, seed=opts.seed + i), net) for i in range(opts.repeats)]
    return distributed.from_rank0(scores)


def _score(opts: MetricOptions, net: FeatureNet) -> dict[str, float]:
    """The results for one seed; empty on ranks above 0."""
    entry = METRICS[opts.metric]
    if entry.output == "lpips":
        return entry.compute(opts, net, num_gen=entry.num_gen)
    keep = entry.keeps_features
    real = None if entry.images is None else real_stats(opts, net, entry.images, keep_features=keep)
    gen = generated_stats(opts, net, num_items=entry.num_gen, keep_features=keep)
    return entry.compute(opts, real, gen) if distributed.rank() == 0 else {}


def _summary(scores: Sequence[dict[str, float]], suffix: str) -> dict[str, dict[str, float]]:
    """Means over seeds and, if there are several, standard deviations (divided by N - 1)."""
    values = {name + suffix: [score[name] for score in scores] for name in scores[0]}
    summary = {"results": {name: statistics.fmean(row) for name, row in values.items()}}
    if len(scores) > 1:
        summary["std"] = {name: statistics.stdev(row) for name, row in values.items()}
    return summary


def _describe(opts: MetricOptions, net: FeatureNet) -> dict[str, Any]:
    """How a result was measured: everything that is needed to measure it again."""
    entry, real = METRICS[opts.metric], None
    if entry.images is not None:
        dataset, count = entry.images.find(opts.dataset)
        real = EasyDict(num_images=count, sha256=dataset.fingerprint, mirrored=bool(dataset.xflip))
        if dataset.resize_filter is not None:
            real.resize_filter = dataset.resize_filter
    return dict(
        metric=opts.metric,
        detector=EasyDict(name=net.name, sha256=net.digest),
        real=real,
        num_gen=entry.num_gen,
        seed=opts.seed,
        **({"repeats": opts.repeats} if opts.repeats > 1 else {}),
        **({"polarity": EasyDict(opts.polarity._asdict())} if opts.polarity is not None else {}),
        versions=EasyDict(torch=torch.__version__, numpy=np.__version__, pillow=PIL.__version__),
    )


def prefetch(
    metrics: Sequence[str], *, dataset: Any, detector: str | None = None, device: torch.device | str = "cpu",
    batch_size: int = 64, workers: int = 3,
) -> Iterator[tuple[str, int]]:
    """Put the statistics of the real images that these metrics need into the cache.

    Yields:
        The name of a metric, and the number of real images in its statistics.
    """
    kept_real: dict = {}
    for metric in metrics:
        entry = METRICS[metric]
        if entry.images is not None:
            opts = MetricOptions(
                metric=metric, G=None, dataset=dataset, device=torch.device(device), batch_size=batch_size,
                workers=workers, kept_real=kept_real, wanted=_wanted_features(metric, metrics, dataset, detector))
            with exact_float32():
                net = feature_net(metric, detector, device=device)
                stats = real_stats(opts, net, entry.images, keep_features=entry.keeps_features)
            yield metric, stats.num_items


def _wanted_features(
    metric: str, metrics: Sequence[str], dataset: Any, detector: str | None
) -> frozenset[ImageSet]:
    """The images whose features one of `metrics` needs from the feature net of `metric`."""
    def net(entry: Metric) -> tuple[str, Output]:
        return detector or entry.standard_net, entry.output

    wanted = set()
    for entry in map(METRICS.get, {metric, *metrics}):
        if entry.keeps_features and net(entry) == net(METRICS[metric]):
            wanted.add(ImageSet("generated", entry.num_gen))
            if entry.images is not None:
                wanted.add(entry.images.resolved(dataset))
    return frozenset(wanted)


def estimate(
    metrics: Sequence[str], *, G: torch.nn.Module, dataset: Any, detector: str | None = None, batch_size: int = 64,
    workers: int = 3,
) -> list[Stage]:
    """Estimate how long each stage of these metrics will take on this CPU, from a short timing of the networks.

    Raises:
        UserError: A metric is unknown.
    """
    check_metrics(metrics)
    with exact_float32():
        return _plan(MetricOptions(metric="", G=G, dataset=dataset, device=torch.device("cpu"), batch_size=batch_size,
                                   workers=workers), metrics, detector)


def _plan(opts: MetricOptions, metrics: Sequence[str], detector: str | None) -> list[Stage]:
    """Plan the stages. Metrics whose feature net can't be had are left out: they fail later, with a message."""
    works = {}
    for name in metrics:
        with contextlib.suppress(UserError):
            entry = METRICS[name]
            net = feature_net(name, detector, device=opts.device)
            works[name] = Work(net, entry.images, entry.num_gen, entry.keeps_features)
    return plan(opts, works)


def report_metric(
    result_dict: dict[str, Any], *, run_dir: str | None = None, snapshot_pkl: str | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> None:
    """Print the result of `calc_metric` as one JSON line, and append the line to RUN_DIR/metric-<name>.jsonl.

    Args:
        result_dict:  From `calc_metric`.
        run_dir:      Directory of the run; None = print only.
        snapshot_pkl: The network's file; with `run_dir`, the path is written relative to it.
        protocol:     Plain data: differences from how training scores its snapshots. Written unless it is empty.
    """
    if run_dir is not None and snapshot_pkl is not None:
        snapshot_pkl = os.path.relpath(snapshot_pkl, run_dir)
    note = {"protocol": dict(protocol)} if protocol else {}
    line = json.dumps(dict(result_dict, **note, snapshot_pkl=snapshot_pkl, timestamp=time.time()))
    print(line, flush=True)
    if run_dir is not None:
        append_text(os.path.join(run_dir, f"metric-{result_dict['metric']}.jsonl"), f"{line}\n")


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, TF32 is off, whatever training uses: scores are compared to the second decimal."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value
