"""What train.py does before a run: inspect the data set and the source network, and find what would stop it later."""

import dataclasses
import functools
import os
import sys
from typing import Any, NamedTuple

from dnnlib.util import UserError, check_all, check_writable, is_url, lies_in, open_url
from training.adversarial import ADVERSARIAL
from training.config.options import Options, expect
from training.config.presets import PERCEPTUAL
from training.config.resolve import source_network
from training.config.schema import DatasetConfig, GeneratorConfig, Sizes, TrainingConfig, sizes_of
from training.runs import resume

from . import launch, torchrun


class Inspected(NamedTuple):
    dataset: DatasetConfig
    source: Any                     # An open ImageFolderDataset with all images.


def inspect_dataset(options: Options) -> Inspected:
    """Open the data set, and configure it as the options say.

    Raises:
        UserError: The data set can't be opened, has no labels for --cond, or has fewer images than --subset.
    """
    from training.data.dataset import ImageFolderDataset

    data, subset = options.data, options.subset
    source = ImageFolderDataset(data, use_labels=options.cond)
    if options.cond and not source.has_labels:
        raise UserError(f"--cond=true needs labels, and {data} has none in its dataset.json")
    size = len(source)
    if source.label_dim > max(size, 1000) and source.has_onehot_labels:
        raise UserError(f"the classes of {data} go up to {source.label_dim - 1} for {size} images, and each "
                        "costs memory: number them from 0 without gaps")
    if subset is not None and not 1 <= subset <= size:
        raise UserError(f"--subset is {subset}, expected 1 to {size}, the number of images in {data}")
    dataset = DatasetConfig(
        path=data,
        resolution=source.resolution,
        num_channels=source.num_channels,
        label_dim=source.label_dim if options.cond else 0,
        use_labels=options.cond,
        max_size=subset if subset != size else None,
        xflip=options.mirror,
        random_seed=options.seed,
    )
    return Inspected(dataset, source)


def choose_device(options: Options) -> str:
    """The device to train on. "auto" means "cuda" if there is a GPU, or if --gpus is above 1; else "cpu"."""
    if options.device != "auto":
        return options.device
    import torch

    return "cuda" if (options.gpus or 1) > 1 or torch.cuda.is_available() else "cpu"


def check_apart(data: str, place: str, *, new: bool) -> None:
    """Raise UserError if the run at `place` would lie in the folder `data`: the run's pictures would join the data.

    Args:
        new: The run is a new one, not a resumed one.
    """
    if place and lies_in(place, data):
        do = (f"choose an --outdir outside {os.path.realpath(data)}" if new else
              "move the images elsewhere, and give that folder with --data")
        raise UserError(f"{place} lies inside {data}, so the pictures of the run would join the images that it learns "
                        f"from: {do}")


# ----------------------------------------------------------------------------------------------------------------------
# The network that a run starts from.


def size_like_source(
    options: Options, dataset: DatasetConfig, run: resume.ResumableRun | None, problems: list[str]
) -> Options:
    """Fill in the sizes that were left out from the network that the run starts from.

    A dry run downloads nothing, so it does not look at a source that is a URL. Problems with the source are added to
    `problems`, so that they are reported together with those of other nets.
    """
    source = source_network(options)
    if source is None or run is None and options.dry_run and is_downloaded(source):
        return options
    if run is not None:     # the source itself may be gone
        sizes: GeneratorConfig | Sizes | None = run.config.G
    else:
        try:
            sizes = _sizes_of_source(source, options, dataset)
        except UserError as e:
            problems += e.args
            return options
    if sizes is None:
        return options
    theirs = {"map_depth": sizes.map_depth, "cbase": sizes.channel_base, "cmax": sizes.channel_max}
    left_out: dict[str, Any] = {name: size for name, size in theirs.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **left_out)


def _sizes_of_source(source: str, options: Options, dataset: DatasetConfig) -> Sizes | None:
    """The sizes of the generator in a network file, a path or URL; None if it has no such sizes."""
    resume.check_exists(source)
    try:
        networks = read_source(source)
    except UserError as e:
        raise UserError(f"--resume: {e}") from e
    G = networks["G"] or networks["G_ema"]
    if G is None:
        raise UserError(f"--resume: {source} holds neither G nor G_ema")
    sizes = sizes_of(G)
    if sizes is None:
        return None
    if sizes.map_widths != (GeneratorConfig.w_dim,):
        widths = " and ".join(map(str, sizes.map_widths))
        raise UserError(f"--resume: z, w and the mapping layers of {source} have {widths} numbers, those of this run "
                        f"{GeneratorConfig.w_dim}")
    if options.map_depth not in (None, sizes.map_depth):
        raise UserError(f"--map-depth is {options.map_depth}, but the mapping network of {source} has "
                        f"{sizes.map_depth} layers: leave out --map-depth to take it over")
    theirs, ours = (G.img_channels, G.img_resolution), (dataset.num_channels, dataset.resolution)
    if theirs != ours:
        print(f"Warning: {source} makes images of {theirs[0]}x{theirs[1]}x{theirs[1]}, this run "
              f"{ours[0]}x{ours[1]}x{ours[1]}: only layers of the same name and shape are taken over", file=sys.stderr)
    return sizes


def read_source(source: str) -> dict[str, Any]:
    """G and G_ema of a network file, a path or URL, by name; None for a missing one."""
    from torch_utils.formats import read_networks

    with open_url(source) as f:
        return read_networks(f, only=("G", "G_ema"))


# ----------------------------------------------------------------------------------------------------------------------
# This machine and the nets that a run needs.


def check_machine(
    config: TrainingConfig, options: Options, *, run: resume.ResumableRun | None, trust: bool, of_source: list[str]
) -> list[str]:
    """Find problems that would stop the run later. A dry run downloads nothing, so it does not check nets by URL.

    Args:
        run:       The run to resume; None = a new run.
        trust:     Open unknown TorchScript nets, and remember that they are trusted.
        of_source: Problems with the network that the run starts from.

    Returns:
        The problems, in a dry run; otherwise an empty list.

    Raises:
        UserError: The first problem, or all problems with nets together. Not in a dry run.
    """
    from torch_utils.ops.build import custom_ops
    from training.runs.checkpoints import Keep
    from training.runs.trackers import check_trackers
    from training.tasks import validate_tasks

    custom_ops.kernels_wanted()
    validate_tasks(config)
    expect(config.loss.adversarial in ADVERSARIAL, "--adversarial", config.loss.adversarial,
           f"one of {', '.join(ADVERSARIAL)}")
    Keep.parse(config.keep)
    gpus_here = torchrun.processes_here() or config.num_gpus
    checks = [functools.partial(launch.check_gpus, config.device, gpus_here)]
    checks += [functools.partial(check_trackers, config.log)]
    checks += [functools.partial(_check_outdir, options.outdir)] if run is None else []
    nets = [
        functools.partial(check, config, trust=trust)
        for net, check in ((config.perceptual, _check_perceptual), (detector_of(config), _check_detector))
        if net is not None and not (options.dry_run and is_downloaded(net))
    ]
    problems: list[str] = []
    for check in [*checks, functools.partial(check_all, functools.partial(_raise_all, of_source), *nets)]:
        try:
            check()
        except UserError as e:
            if not options.dry_run:
                raise
            problems += e.args
    return problems


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise UserError(*problems)


def _check_outdir(outdir: str) -> None:
    """Raise UserError if no run directory can be made in `outdir`. Nothing is made yet."""
    if not outdir:
        raise UserError("--outdir is empty: give the name of a folder")
    try:
        check_writable(os.path.join(outdir, "run"))
    except UserError as e:
        raise UserError(f"--outdir: {e}") from e


def _check_perceptual(config: TrainingConfig, *, trust: bool) -> None:
    from training.perceptual import check_perceptual

    check_perceptual(config.perceptual, resolution=config.dataset.resolution, trust=trust)


def _check_detector(config: TrainingConfig, *, trust: bool) -> None:
    from metrics.metric_main import check_detector

    try:
        check_detector(config.metrics, config.detector, trust=trust)
    except UserError as e:
        raise UserError(*(f"{line}; --metrics=none trains without scores" for line in e.args)) from e


def detector_of(config: TrainingConfig) -> str | None:
    """The feature net that the metrics need: a path, a URL, or "standard"; None without metrics."""
    return (config.detector or "standard") if config.metrics else None


def is_downloaded(net: str) -> bool:
    """Whether `net`, as an option names it, has to be downloaded."""
    return is_url(net) or net == "standard" or net in PERCEPTUAL.values()
