"""Calculate quality metrics of a network, of all network pickles of a run, or of a folder of images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import cli
from dnnlib.util import UserError, atomic_write, cache_dir, check_writable, is_url
from metrics.registry import check_metrics
from training.runs import paper_tables

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    from training.jobs.scoring import Scorer, Scores, ScoringOptions

_TIMEOUT_SEC = 7200     # The first process works alone at times, such as on distances of many features; others wait.
_START_WORKER = "import sys; sys.path[0] = sys.argv[1]; from calc_metrics import work; sys.exit(work(sys.argv[2]))"


metrics_option = click.option(
    "--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
    help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, dc10k5, fidinf50k_full, fdd50k_full, "
         "is50k, ppl2_wend, ...; smaller ones such as fid5k_full for a quick look.")
detector_option = click.option(
    "--detector", type=cli.Path(), metavar="PATH|URL",
    help="Feature net: TorchScript, ONNX, DINOv2, or by feature_net.py; for path lengths also lpips-vgg:FILE. Results "
         "are named after it.  [default: the standard net of each metric]")
batch_option = click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True,
                            help="Images per forward pass.")
workers_option = click.option("--workers", type=click.IntRange(min=0), default=3, show_default=True,
                              help="Processes that decode real images, for each GPU.")
cache_dir_option = click.option("--cache-dir", type=cli.Path(), metavar="DIR",
                                help="Where downloads and statistics are kept.  [default: $GLEAD_CACHE_DIR]")


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.option("--network", type=cli.Path(), metavar="PATH|URL",
              help="Network: a pickle (TensorFlow's too), safetensors, .pt or .onnx file; or a run directory.")
@click.option("--images", type=cli.Path(), metavar="DIR|ZIP",
              help="In place of a network: images that any program generated.")
@metrics_option
@click.option("--follow", is_flag=True,
              help="With a run directory: score new pickles as training writes them, until the last one.")
@click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
              help="Real images.  [default: those that the network was trained on]")
@click.option("--mirror", type=bool, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.  [default: as in training]")
@detector_option
@cli.device_option
@batch_option
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True,
              help="GPUs that share the work, or processes with --device=cpu.")
@workers_option
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Draws latents, labels, noise and subsets.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="Score with this many seeds, from --seed on: mean and standard deviation.")
@cli.polarity_option
@cli.candidates_option
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
@cache_dir_option
@cli.trust_option
@cli.trust_net_option
@click.option("--table", is_flag=True,
              help="Print the results (of a run, those of its best pickle) above published ones on the same data set.")
@click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress on stderr.")
def main(**options: Any) -> None:
    """Calculate quality metrics of a network, of all network pickles of a run, or of a folder of images.

    One JSON line per metric goes to stdout, and to metric-NAME.jsonl beside the pickle if that lies in a run directory.
    Given a run directory, the command scores those pickles that have no scores yet, then prints a table of all scores.

    \b
    python calc_metrics.py --network=runs/00000-church/network-snapshot-025000.pkl --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --network=net.pkl --data=church256.zip --metrics=fid5k_full --table --gpus=8
    python calc_metrics.py --network=runs/00000-church --metrics=fid50k_full --follow --device=cuda:1
    python calc_metrics.py --images=samples/ --data=church256.zip --metrics=fid50k_full
    """
    check_names(options["metrics"])
    check_subject(options)
    options["device"] = kind_of_device(options["device"], options["gpus"])
    use_cache(options.pop("cache_dir"))
    from training.jobs.scoring import ScoringOptions

    table = options.pop("table")
    if not score(ScoringOptions(**options), table=table):
        raise click.exceptions.Exit(1)  # the damaged pickles were named before


def check_names(metrics: list[str]) -> None:
    if not metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    check_metrics(metrics)


def kind_of_device(device: str | None, gpus: int) -> str | None:
    """The device of the processes. With several, it is a kind, cpu or cuda: naming one GPU is an error."""
    if gpus == 1:
        return device
    if device not in ("cpu", "cuda", None):
        raise click.UsageError(f"--device={device} is not for --gpus={gpus}: say cuda, which takes the first ones of "
                               "CUDA_VISIBLE_DEVICES, or cpu")
    return device or "cuda"


def use_cache(folder: str | None) -> None:
    """Keep downloads and statistics in this folder, in this process and in those that it starts."""
    if folder is not None:
        os.environ["GLEAD_CACHE_DIR"] = os.path.abspath(folder)


def check_subject(options: dict[str, Any]) -> None:
    """Check that either a network or images are given, and that the other options suit them."""
    network, images = options["network"], options["images"]
    if network is None and images is None:
        raise click.UsageError("Missing option '--network', or '--images'.")
    if network is not None and images is not None:
        raise click.UsageError("give --network or --images, not both")
    if images is not None and options["data"] is None:
        raise UserError(f"--images={images} must be compared with real images: give them with --data")
    if options["polarity"] and (images is not None or any(name.startswith("ppl") for name in options["metrics"])):
        raise UserError("--polarity resamples the latents of images that a network makes: it has no meaning for "
                        "--images, nor for path lengths")
    if images is not None and options["repeats"] > 1:
        raise UserError("--repeats draws new latents each time, but --images are always the same: leave it out")
    if options["follow"] and (images is not None or is_url(network) or not os.path.isdir(network)):
        raise UserError(f"--follow needs a run directory as --network, and {images or network} is none")


def score(opts: ScoringOptions, *, table: bool = False) -> bool:
    """Score a network, images, or those pickles of a run that have no scores yet. --follow waits for new pickles.

    Returns:
        True if all pickles could be read.
    """
    from metrics.published import format_table
    from training.jobs import scoring

    device = scoring.pick_device(opts)
    scorer = scoring.prepare(opts, warn=cli.warn)
    before = scorer.book.complete() if opts.is_run else set()
    try:
        scores = measure_in_processes(opts) if opts.gpus > 1 else scorer.measure(device)
    except KeyboardInterrupt:
        if not opts.is_run:
            raise
        num_scored = len(scorer.book.complete() - before)
        click.echo(f"Stopped; {num_scored} pickle(s) scored. The same command scores the others.", err=True)
        raise click.exceptions.Exit(1) from None
    if opts.is_run:
        print_run(scorer, table=table)
    elif table:
        print(format_table(scores.results, dataset=scorer.dataset, std=scores.std))
    return not scores.broken


def print_run(scorer: Scorer, *, table: bool) -> None:
    """Print all scores of a run, and with `table` those of its best pickle above published ones."""
    from metrics.published import format_table
    from training.runs.run_scores import ScoreTable

    scores = ScoreTable(scorer.book)
    print(scores)
    best = scores.best(scores.first) if scores.first is not None else None
    if table and best is not None:
        print(f"\nThe best by {scores.first}: {best.name}")
        print(format_table(best.results, dataset=scorer.dataset))


@click.command(cls=cli.Command)
@metrics_option
@click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
              help="Real images: compute their statistics, too.  [default: only fetch feature nets]")
@click.option("--mirror", type=bool, default=False, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.")
@detector_option
@cli.device_option
@batch_option
@workers_option
@cache_dir_option
@cli.trust_net_option
def prefetch(**options: Any) -> None:
    """Fetch what metrics need into the cache: feature nets, and statistics of real images.

    The folder can then be copied to a machine without network. There, --cache-dir names it.

    \b
    python calc_metrics.py prefetch --metrics=fid50k_full,pr50k3_full --data=church256.zip --cache-dir=cache
    """
    opts = cli.Arguments(**options)
    check_names(opts.metrics)
    use_cache(opts.cache_dir)
    from metrics import metric_main
    from torch_utils import misc
    from training import lpips_features  # noqa: F401 (makes lpips-vgg and lpips-alex known as detectors)
    from training.data.dataset import ImageFolderDataset

    metric_main.check_detector(opts.metrics, opts.detector, trust=opts.trust_net)
    click.echo(f"The feature nets of {', '.join(opts.metrics)} are in {cache_dir()}")
    if opts.data is not None:
        dataset = ImageFolderDataset(opts.data, xflip=opts.mirror)
        counts = metric_main.prefetch(opts.metrics, dataset=dataset, detector=opts.detector, batch_size=opts.batch,
                                      device=misc.pick_device(opts.device), workers=opts.workers)
        for metric, count in counts:
            click.echo(f"{metric}: statistics of {count} images of {dataset.path} are there")


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.argument("name", type=click.Choice(paper_tables.NAMES))
@click.option("--models", type=cli.Path(), metavar="FILE|DIR", required=True,
              help="A folder of run directories; or a manifest in YAML or JSON: a list of entries with row, dataset, "
                   "network and optionally data.")
@click.option("--stand-in", metavar="DATASET",
              help="Treat runs on other images as runs on this data set of the table, such as FFHQ; rows say so.")
@click.option("--metrics", type=cli.CommaList(), metavar="LIST",
              help="The first one chooses the best pickle of each run.  [default: the papers']")
@click.option("--format", "form", type=click.Choice(get_args(paper_tables.TableFormat)), default="text",
              show_default=True)
@click.option("--out", type=cli.Path(), metavar="FILE", help="Write the table there, too.")
@detector_option
@cli.device_option
@batch_option
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that share the work.")
@workers_option
@cache_dir_option
@cli.trust_option
@cli.trust_net_option
def table(
    name: str, models: str, stand_in: str | None, form: paper_tables.TableFormat, out: str | None, **options: Any
) -> None:
    """Fill a table of the papers with scores of your own networks, beside the published ones.

    Networks without scores are scored first: all pickles of a run by the first metric, and the best one by the others.
    Scores are kept in the run directories, or beside the manifest, so the same command resumes after an interruption.
    Runs that differ only in --seed share a cell: mean and standard deviation. The table alone goes to stdout.

    \b
    python calc_metrics.py table glead-1 --models=runs
    python calc_metrics.py table glead-2 --models=runs --stand-in="LSUN Church" --metrics=fid5k_full --format=markdown
    """
    if options["metrics"]:
        check_names(options["metrics"])
    options["device"] = kind_of_device(options["device"], options["gpus"])
    if out is not None:
        check_writable(out)
    found = paper_tables.find_models(name, models, stand_in=stand_in)
    use_cache(options.pop("cache_dir"))
    from training.jobs.scoring import ScoringOptions

    folder = models if os.path.isdir(models) else os.path.dirname(os.path.abspath(models))
    opts = ScoringOptions(record_dir=folder, **options)
    with contextlib.redirect_stdout(sys.stderr):
        rows = paper_tables.fill(name, found, functools.partial(score_model, opts))
    text = paper_tables.render(rows, form=form)
    print(text)
    if out is not None:
        with atomic_write(out) as f:
            f.write(f"{text}\n".encode())


@click.command(cls=cli.Command)
@click.option("--methods", type=cli.CommaList(), metavar="NAME,...",
              help="Methods, as train.py --method. The others are compared with the first one.  [default: the four "
                   "without rivals]")
@click.option("--cfg", default="paper256", show_default=True, help="Settings, as train.py --cfg.")
@click.option("--resolution", type=click.IntRange(8, 1024), default=256, show_default=True, help="Side of the images.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images per training step.")
@cli.device_option
def cost(methods: list[str] | None, cfg: str, resolution: int, batch: int, device: str | None) -> None:
    """Measure the cost of each method on this device, and compare it with that of the first method.

    The columns are parameters, multiply-accumulates, times of forward passes and of a training step, and its memory.
    """
    if resolution & (resolution - 1):
        raise UserError(f"--resolution is {resolution}, expected a power of two")
    from torch_utils import misc
    from training.config.presets import METHODS
    from training.jobs import cost as costs

    place = misc.pick_device(device)
    if methods == []:
        raise UserError("--methods is empty: give names, as in --methods=stylegan2,glead")
    found, all_methods = [], methods or METHODS
    configs = [costs.configure(method, cfg=cfg, resolution=resolution, batch=batch, device=place.type)
               for method in all_methods]
    for method, config in zip(all_methods, configs):
        click.echo(f"Measuring {method} on {place} ...", err=True)
        found.append(costs.measure(config))
    print(costs.format_costs(found))


def score_model(opts: ScoringOptions, model: paper_tables.TrainedModel) -> dict[str, float]:
    """Scores of a network by name, or of the best pickle of a run by the first metric. Missing scores are measured."""
    from metrics.published import DATASETS
    from training.jobs import scoring
    from training.runs.run_scores import ScoreTable

    metrics = opts.metrics or DATASETS[model.table.dataset].metrics
    opts = dataclasses.replace(opts, network=model.network, data=model.data, metrics=metrics)
    if opts.is_run:
        first = dataclasses.replace(opts, metrics=metrics[:1])
        score(first)
        scores = ScoreTable(scoring.Scorer(first, warn=cli.warn).book)
        best = scores.best(scores.first) if scores.first is not None else None
        if best is None:
            raise UserError(f"{model.network} has no pickle with a score: move it away, or let it train on")
        opts = dataclasses.replace(opts, network=os.path.join(model.network, best.name))
    book = scoring.prepare(opts, warn=cli.warn).book
    name = os.path.relpath(opts.network, book.run_dir)
    known = book.read()
    missing = [metric for metric in metrics if name not in known[metric]]
    if missing:
        score(dataclasses.replace(opts, metrics=missing))
        known = book.read()
    return {key: value for metric in metrics for key, value in known[metric][name].items()}


# ----------------------------------------------------------------------------------------------------------------------
# Several processes.


def measure_in_processes(opts: ScoringOptions) -> Scores:
    """Measure in `opts.gpus` processes, and return the result of the first one.

    Raises:
        UserError:         A process failed.
        KeyboardInterrupt: The user asked to stop.
    """
    from training.jobs import launch, scoring

    meaning = ("so all ended; the same command scores what is left" if opts.is_run else
               "so there are no further scores; start it again for those")
    with tempfile.TemporaryDirectory(prefix="glead-") as folder:
        job, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        job.write_text(json.dumps(dict(options=dataclasses.asdict(opts), answer=str(answer))))
        root = Path(__file__).resolve().parent  # which need not be the current folder
        launch.run_together([sys.executable, "-c", _START_WORKER, str(root), str(job)], size=opts.gpus,
                            meaning=meaning, at_once=True)
        return scoring.Scores(**json.loads(answer.read_text()))


def work(job: str) -> int:
    """The work of one of the processes that `measure_in_processes` starts.

    Args:
        job: Path of the JSON file with the options and the path for the result.

    Returns:
        The exit status.
    """
    from torch_utils import distributed
    from training.jobs import launch, scoring
    from training.jobs.worker import take_part

    content = json.loads(Path(job).read_text())
    opts = scoring.ScoringOptions(**content["options"])

    @cli.plain_errors()
    def measure() -> None:
        launch.build_kernels(opts.device)
        try:
            scores = scoring.Scorer(opts, warn=cli.warn).measure(distributed.current_device(opts.device))
        except BrokenPipeError as e:
            cli.silence_stdout()
            raise UserError("nobody reads the scores that are printed any more, so no others were calculated") from e
        if distributed.rank() == 0:
            Path(content["answer"]).write_text(json.dumps(dataclasses.asdict(scores)))

    return take_part(measure, device=opts.device, timeout_sec=_TIMEOUT_SEC,
                     advice="What was printed is good; the same command resumes")


if __name__ == "__main__":
    cli.DefaultGroup(main, prefetch, table, cost)()
