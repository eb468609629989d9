"""Calculate quality metrics of a network pickle, or of all pickles of a run."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any, Callable

import click

import cli
from dnnlib.util import UserError, is_url, open_url

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and wrong usage don't wait for it
    import torch

    from training.dataset import ImageFolderDataset
    from training.run_scores import ScoreBook


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    network: str
    metrics: list[str]
    follow: bool
    data: str | None
    mirror: bool | None
    detector: str | None
    device: str | None
    batch: int
    gpus: int
    workers: int
    seed: int
    cache: bool
    trust_pickle: bool
    table: bool
    verbose: bool


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.option("--network", metavar="PATH|URL", required=True,
              help="Network: a pickle (TensorFlow's too), safetensors, .pt or .onnx file; or a run directory.")
@click.option("--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
              help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, is50k, ppl2_wend, ...; "
                   "smaller ones such as fid5k_full for a quick look.")
@click.option("--follow", is_flag=True,
              help="With a run directory: score new pickles as training writes them, until the last one.")
@click.option("--data", metavar="FOLDER|ZIP", help="Real images.  [default: those that the network was trained on]")
@click.option("--mirror", type=bool, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.  [default: as in training]")
@click.option("--detector", metavar="PATH|URL",
              help="TorchScript feature net. Results are named after it.  [default: the standard net of each metric]")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
@click.option("--workers", type=click.IntRange(min=0), default=3, show_default=True,
              help="Processes that decode real images.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of latents, labels, noise and subsets.")
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
@click.option("--trust-pickle", is_flag=True, help="Run the source code that the pickle carries.")
@click.option("--table", is_flag=True, help="Print the results, of a run the best ones, beside published ones too.")
@click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress on stderr.")
def main(**options: Any) -> None:
    """Calculate quality metrics of a network pickle, or of all pickles of a run.

    One JSON line per metric goes to stdout, and to metric-NAME.jsonl beside the pickle if that lies in a run directory.
    Of a run directory, those pickles are scored whose scores aren't there yet, and a table of all scores follows.

    \b
    python calc_metrics.py --network=runs/00000-church/network-snapshot-025000.pkl --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --network=net.pkl --data=church256.zip --metrics=fid5k_full --table
    python calc_metrics.py --network=runs/00000-church --metrics=fid50k_full --follow --device=cuda:1
    """
    opts = Options(**options)
    if not opts.metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    is_run = not is_url(opts.network) and os.path.isdir(opts.network)
    if opts.follow and not is_run:
        raise UserError(f"--follow needs a run directory as --network, and {opts.network} is none")
    from metrics import metric_main

    metric_main.check_metrics(opts.metrics)
    if opts.gpus > 1:
        raise UserError(f"--gpus={opts.gpus}: metrics of a pickle are calculated on one GPU; leave it out")
    if is_run:
        score_run(opts)
    else:
        score_pickle(opts)


def score_pickle(opts: Options) -> None:
    """Score one network."""
    from metrics import metric_main
    from metrics.published import format_table

    device = pick_device(opts)
    G, trained_on = load_generator(opts.network, trust=opts.trust_pickle)
    dataset = open_dataset(opts, trained_on, use_labels=G.c_dim > 0)
    metric_main.check_match(G, dataset)
    metric_main.check_detector(opts.metrics, opts.detector)
    protocol = protocol_of(opts, dataset, trained_on, use_labels=G.c_dim > 0)
    run_dir = None if is_url(opts.network) else os.path.dirname(os.path.abspath(opts.network))
    if run_dir is not None and not os.path.isfile(os.path.join(run_dir, "training_options.json")):
        run_dir = None
    results = {}
    shared = {} if len(opts.metrics) > 1 else None  # FID and KID look at the same generated images
    calculate = calculation(opts, dataset, device)
    for metric in opts.metrics:
        result = calculate(metric, G=G, shared=shared)
        metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=opts.network, protocol=protocol)
        results |= result.results
    if opts.table:
        print(format_table(results, dataset_name=dataset.name))


def score_run(opts: Options) -> None:
    """Score the pickles in a run directory that were not scored yet; with --follow those to come, too."""
    from metrics import metric_main
    from training import run_scores
    from training.interrupt import StopRequest

    device = pick_device(opts)
    trained_on = run_scores.read_options(opts.network).training_set_kwargs
    if not opts.follow and not run_scores.list_pickles(opts.network):
        raise UserError(f"{opts.network} holds no network-snapshot-KKKKKK.pkl yet: say --follow to wait for them")
    use_labels, resolution = bool(trained_on.get("use_labels")), trained_on.get("resolution")
    dataset = open_dataset(opts, trained_on, use_labels=use_labels, resolution=resolution)
    metric_main.check_detector(opts.metrics, opts.detector)
    protocol = protocol_of(opts, dataset, trained_on, use_labels=use_labels)
    book = run_scores.ScoreBook(opts.network, opts.metrics, detector=opts.detector, protocol=protocol)

    def load(path: str) -> torch.nn.Module:
        return load_generator(path, trust=opts.trust_pickle)[0]

    with StopRequest(quiet=True) as stop:
        scorer = run_scores.RunScorer(
            book=book, load=load, calculate=calculation(opts, dataset, device, kept_real={}), stop=stop, warn=cli.warn,
            say=functools.partial(click.echo, err=True) if opts.verbose else lambda line: None,
        )
        try:
            scorer.follow() if opts.follow else scorer.score_all()
        except KeyboardInterrupt:
            click.echo(f"Stopped; {scorer.num_scored} pickle(s) scored. The same command scores the others.", err=True)
            raise click.exceptions.Exit(1) from None
    print_table(opts, book, dataset_name=dataset.name)
    if scorer.broken:
        raise click.exceptions.Exit(1)  # which ones was said


def print_table(opts: Options, book: ScoreBook, *, dataset_name: str) -> None:
    """All scores of a run; with --table those of its best pickle beside published ones."""
    from metrics.published import format_table
    from training.run_scores import ScoreTable

    table = ScoreTable(book)
    print(table)
    best = table.best(table.first) if table.first is not None else None
    if opts.table and best is not None:
        print(f"\nThe best by {table.first}: {best.name}")
        print(format_table(best.results, dataset_name=dataset_name))


def pick_device(opts: Options) -> torch.device:
    """Also the place for what names no device: memory of another GPU belongs to those who compute there."""
    import torch

    from torch_utils import misc

    device = misc.pick_device(opts.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def calculation(
    opts: Options, dataset: ImageFolderDataset, device: torch.device, *, kept_real: dict | None = None
) -> Callable[..., dict[str, Any]]:
    """`calc_metric` with all that the command line says, to be called with (metric, G=, shared=)."""
    from metrics import metric_main

    return functools.partial(
        metric_main.calc_metric, dataset=dataset, detector=opts.detector, device=device, batch_size=opts.batch,
        seed=opts.seed, workers=opts.workers, cache=opts.cache, kept_real=kept_real, progress=opts.verbose,
    )


def load_generator(network_pkl: str, *, trust: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """G_ema of a network pickle and what the pickle says of its training set."""
    import legacy
    from torch_utils import misc

    with open_url(network_pkl) as f:
        networks = legacy.load_network_pkl(f, trust=trust, only=("G_ema", "training_set_kwargs"))
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    misc.check_finite(networks["G_ema"], f"{network_pkl}: G_ema")
    return networks["G_ema"], dict(networks["training_set_kwargs"] or {})


def open_dataset(
    opts: Options, trained_on: dict[str, Any], *, use_labels: bool, resolution: int | None = None
) -> ImageFolderDataset:
    """The training set; or the images in --data, all of them, mirrored as in training."""
    from training.dataset import ImageFolderDataset

    xflip = opts.mirror if opts.mirror is not None else bool(trained_on.get("xflip", False))
    if opts.data is not None:
        return ImageFolderDataset(opts.data, resolution=resolution, use_labels=use_labels, xflip=xflip)
    if not trained_on.get("path"):
        raise UserError(f"{opts.network} does not say what it was trained on: give the real images with --data")
    options = {name: trained_on[name] for name in ("max_size", "random_seed") if name in trained_on}
    if not (
        isinstance(trained_on["path"], str)
        and isinstance(options.get("max_size"), int | None)
        and isinstance(options.get("random_seed", 0), int)
    ):
        raise UserError(f"{opts.network}: what it says of its training set is damaged: give the real images with "
                        "--data")
    options |= dict(resolution=resolution, use_labels=use_labels, xflip=xflip)
    try:
        return ImageFolderDataset(trained_on["path"], **options)
    except UserError as e:
        raise UserError(f"the images that {opts.network} was trained on: {e}; or give others with --data") from e


def protocol_of(
    opts: Options, dataset: ImageFolderDataset, trained_on: dict[str, Any], *, use_labels: bool
) -> dict[str, Any]:
    """What is not as when training scores its snapshots, for the records: other images, another seed."""
    protocol: dict[str, Any] = {"seed": opts.seed} if opts.seed else {}
    if opts.data is not None or opts.mirror is not None:
        training = dataclasses.replace(opts, data=None, mirror=None)
        try:
            same = open_dataset(training, trained_on, use_labels=use_labels).fingerprint
        except UserError:   # they are not here any more
            same = None
        if dataset.fingerprint != same:
            protocol["data"] = dataset.fingerprint
    return protocol


if __name__ == "__main__":
    main()
