"""Calculate quality metrics of a network pickle, or of all pickles of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, get_args

import click

import cli
from dnnlib.util import UserError, atomic_write, cache_dir, check_all, check_writable, is_url, open_url, rough_time
from metrics.registry import check_metrics
from training.runs import paper_tables

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and wrong usage don't wait for it
    import torch

    from metrics.options import Shared
    from training.data.dataset import ImageFolderDataset
    from training.runs.interrupt import StopRequest
    from training.runs.run_scores import ScoreBook

_TIMEOUT_SEC = 7200     # Others wait for what one process does alone: distances of many features on a CPU, say.
_LONG_SEC = 600         # On a CPU, work that takes longer is announced.
_START_WORKER = "import sys; sys.path[0] = sys.argv[1]; from calc_metrics import work; sys.exit(work(sys.argv[2]))"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    network: str | None
    images: str | None
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
    repeats: int
    polarity: float
    candidates: int
    cache: bool
    cache_dir: str | None
    trust_pickle: bool
    trust_net: bool
    table: bool
    verbose: bool
    record_dir: str | None = None   # Where scores of networks outside of runs are noted.

    @property
    def is_run(self) -> bool:
        """Whether the network is a run directory."""
        return self.network is not None and not is_url(self.network) and os.path.isdir(self.network)

    @property
    def run_dir(self) -> str | None:
        """The run directory that the network is, or lies in."""
        if self.network is None:
            return None
        folder = self.network if self.is_run else os.path.dirname(os.path.abspath(self.network))
        inside = not is_url(self.network) and os.path.isfile(os.path.join(folder, "training_options.json"))
        return folder if inside else None


metrics_option = click.option(
    "--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
    help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, dc10k5, fidinf50k_full, fdd50k_full, "
         "is50k, ppl2_wend, ...; smaller ones such as fid5k_full for a quick look.")
detector_option = click.option(
    "--detector", type=cli.Path(), metavar="PATH|URL",
    help="Feature net: TorchScript, ONNX, DINOv2, or by feature_net.py; for path lengths also lpips-vgg:FILE. Results "
         "are named after it.  [default: the standard net of each metric]")
device_option = click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
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
@device_option
@batch_option
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True,
              help="GPUs that share the work, or processes with --device=cpu.")
@workers_option
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of latents, labels, noise and subsets.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="Score with this many seeds, from --seed on: mean and standard deviation.")
@cli.polarity_option
@cli.candidates_option
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
@cache_dir_option
@click.option("--trust-pickle", is_flag=True, help="Run the source code that the pickle carries.")
@cli.trust_net_option
@click.option("--table", is_flag=True,
              help="Print the results, of a run the best ones, above published ones on the same data set.")
@click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress on stderr.")
def main(**options: Any) -> None:
    """Calculate quality metrics of a network pickle, or of all pickles of a run.

    One JSON line per metric goes to stdout, and to metric-NAME.jsonl beside the pickle if that lies in a run directory.
    Of a run directory, those pickles are scored whose scores aren't there yet, and a table of all scores follows.

    \b
    python calc_metrics.py --network=runs/00000-church/network-snapshot-025000.pkl --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --network=net.pkl --data=church256.zip --metrics=fid5k_full --table --gpus=8
    python calc_metrics.py --network=runs/00000-church --metrics=fid50k_full --follow --device=cuda:1
    python calc_metrics.py --images=samples/ --data=church256.zip --metrics=fid50k_full
    """
    opts = Options(**options)
    check_names(opts.metrics)
    use_cache(opts.cache_dir)
    use_lpips(opts.detector)
    check_subject(opts)
    if opts.follow and not opts.is_run:
        raise UserError(f"--follow needs a run directory as --network, and {opts.network} is none")
    opts = dataclasses.replace(opts, device=kind_of_device(opts.device, opts.gpus))
    if opts.is_run:
        if score_run(opts):
            raise click.exceptions.Exit(1)  # which pickles are broken was said
    else:
        score_one(opts)


def check_names(metrics: list[str]) -> None:
    if not metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    check_metrics(metrics)


def kind_of_device(device: str | None, gpus: int) -> str | None:
    """Of several GPUs, no single one can be named."""
    if gpus == 1:
        return device
    if device not in ("cpu", "cuda", None):
        raise click.UsageError(f"--device={device} is not for --gpus={gpus}: say cuda, which takes the first ones of "
                               "CUDA_VISIBLE_DEVICES, or cpu")
    return device or "cuda"


def use_cache(folder: str | None) -> None:
    """Other processes that are started use it, too."""
    if folder is not None:
        os.environ["GLEAD_CACHE_DIR"] = os.path.abspath(folder)


def use_lpips(detector: str | None) -> None:
    """Make `lpips-vgg` and `lpips-alex` known as detectors, for path lengths."""
    if detector is not None and detector.startswith("lpips-"):
        import training.lpips_features  # noqa: F401


def check_subject(opts: Options) -> None:
    """One thing is scored, and it can be scored in this way."""
    if opts.network is None and opts.images is None:
        raise click.UsageError("Missing option '--network', or '--images'.")
    if opts.network is not None and opts.images is not None:
        raise click.UsageError("--network and --images are two things to score: give one of them.")
    if opts.images is not None and opts.data is None:
        raise UserError(f"--images={opts.images} must be compared with real images: give them with --data")
    if opts.polarity and (opts.images is not None or any(name.startswith("ppl") for name in opts.metrics)):
        raise UserError("--polarity resamples the latents of images that a network makes: it has no meaning for "
                        "--images, nor for path lengths")
    if opts.images is not None and opts.repeats > 1:
        raise UserError("--repeats draws other latents each time, and --images are always the same: leave it out")


def score_one(opts: Options) -> None:
    """Score one network, or images."""
    from metrics.published import format_table

    device = pick_device(opts)
    found: list[Subject] = []
    check_all(lambda: found.append(load_subject(opts)), lambda: check_detector(opts))
    subject, = found
    say_which_images(opts, subject.trained_on)
    dataset = open_dataset(opts, subject.trained_on, use_labels=subject.use_labels)  # before processes start
    subject.check(opts.metrics, dataset)
    protocol = protocol_of(opts, dataset, subject.trained_on, use_labels=subject.use_labels)
    if opts.gpus > 1:
        scores = share_out(opts, protocol, loss="so there are no further scores; start it again for those")
    else:
        scores = measure_one(opts, subject, dataset, protocol, device)
    if opts.table:
        print(format_table(scores["results"], dataset=dataset, std=scores["std"]))


def check_detector(opts: Options) -> None:
    from metrics import metric_main

    metric_main.check_detector(opts.metrics, opts.detector, trust=opts.trust_net)


def score_run(opts: Options) -> bool:
    """Score the pickles in a run directory that were not scored yet; with --follow those to come, too.

    Returns:
        Whether some can't be read.
    """
    from training.runs import run_scores

    device = pick_device(opts)
    trained_on = run_scores.read_options(opts.network).training_set_kwargs
    if not opts.follow and not run_scores.list_pickles(opts.network):
        raise UserError(f"{opts.network} holds no network-snapshot-KKKKKK.pkl yet: say --follow to wait for them")
    say_which_images(opts, trained_on)
    check_detector(opts)
    dataset = open_dataset_of_run(opts)
    protocol = protocol_of_run(opts, dataset)
    book = open_book(opts, protocol)
    before = book.complete()
    try:
        if opts.gpus > 1:
            broken = share_out(opts, protocol, loss="so all ended; the same command scores what is left")
        else:
            broken = measure_run(opts, dataset, protocol, device)
    except KeyboardInterrupt:
        num_scored = len(book.complete() - before)
        click.echo(f"Stopped; {num_scored} pickle(s) scored. The same command scores the others.", err=True)
        raise click.exceptions.Exit(1) from None
    print_table(opts, book, dataset)
    return bool(broken)


def print_table(opts: Options, book: ScoreBook, dataset: ImageFolderDataset) -> None:
    """All scores of a run; with --table those of its best pickle beside published ones."""
    from metrics.published import format_table
    from training.runs.run_scores import ScoreTable

    table = ScoreTable(book)
    print(table)
    best = table.best(table.first) if table.first is not None else None
    if opts.table and best is not None:
        print(f"\nThe best by {table.first}: {best.name}")
        print(format_table(best.results, dataset=dataset))


@click.command(cls=cli.Command)
@metrics_option
@click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
              help="Real images, whose statistics are computed, too; without, only feature nets are fetched.")
@click.option("--mirror", type=bool, default=False, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.")
@detector_option
@device_option
@batch_option
@workers_option
@cache_dir_option
@cli.trust_net_option
def prefetch(
    metrics: list[str], data: str | None, mirror: bool, detector: str | None, device: str | None, batch: int,
    workers: int, trust_net: bool, **place: str | None,
) -> None:
    """Fetch what metrics need into the cache: feature nets, and statistics of real images.

    The folder can then be copied to a machine without network, and be named there by --cache-dir.

    \b
    python calc_metrics.py prefetch --metrics=fid50k_full,pr50k3_full --data=church256.zip --cache-dir=cache
    """
    check_names(metrics)
    use_cache(place["cache_dir"])
    use_lpips(detector)
    from metrics import metric_main
    from torch_utils import misc
    from training.data.dataset import ImageFolderDataset

    metric_main.check_detector(metrics, detector, trust=trust_net)
    click.echo(f"The feature nets of {', '.join(metrics)} are in {cache_dir()}")
    if data is not None:
        dataset = ImageFolderDataset(data, xflip=mirror)
        for metric, count in metric_main.prefetch(metrics, dataset=dataset, detector=detector, batch_size=batch,
                                                  device=misc.pick_device(device), workers=workers):
            click.echo(f"{metric}: statistics of {count} images of {dataset.path} are there")


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.argument("name", type=click.Choice(paper_tables.NAMES))
@click.option("--models", type=cli.Path(), metavar="FILE|DIR", required=True,
              help="A folder of run directories; or a manifest in YAML or JSON: a list of entries with row, dataset, "
                   "network and perhaps data.")
@click.option("--stand-in", metavar="DATASET",
              help="Take runs on other images for runs on this data set of the table, such as FFHQ; rows say so.")
@click.option("--metrics", type=cli.CommaList(), metavar="LIST",
              help="The first one chooses the best pickle of each run.  [default: the papers']")
@click.option("--format", "form", type=click.Choice(get_args(paper_tables.Format)), default="text", show_default=True)
@click.option("--out", type=cli.Path(), metavar="FILE", help="Write the table there, too.")
@detector_option
@device_option
@batch_option
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that share the work.")
@workers_option
@cache_dir_option
@click.option("--trust-pickle", is_flag=True, help="Run the source code that the pickles carry.")
@cli.trust_net_option
def table(
    name: str, models: str, stand_in: str | None, form: paper_tables.Format, out: str | None, **options: Any
) -> None:
    """Fill a table of the papers with networks that were trained here, beside the published figures.

    What is not scored yet is scored first: all pickles of a run by the first metric, and the best one by the others.
    Scores are noted in the run directories, or beside the manifest. So the same command resumes where it was stopped.
    Runs that differ in --seed alone share a cell: mean and standard deviation. All that is calculated goes to stderr.

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
    use_cache(options["cache_dir"])
    use_lpips(options["detector"])
    folder = models if os.path.isdir(models) else os.path.dirname(os.path.abspath(models))
    opts = Options(network=None, images=None, follow=False, data=None, mirror=None, seed=0, repeats=1, polarity=0,
                   candidates=0, cache=True, table=False, verbose=True, record_dir=folder, **options)
    with contextlib.redirect_stdout(sys.stderr):
        rows = paper_tables.fill(name, found, functools.partial(score_model, opts))
    text = paper_tables.render(rows, form=form)
    print(text)
    if out is not None:
        with atomic_write(out) as f:
            f.write(f"{text}\n".encode())


@click.command(cls=cli.Command)
@click.option("--methods", type=cli.CommaList(), metavar="NAME,...", help="As train.py --method. The first one is what "
              "the others are compared with.  [default: the four without rivals]")
@click.option("--cfg", default="paper256", show_default=True, help="Settings, as train.py --cfg.")
@click.option("--resolution", type=click.IntRange(8, 1024), default=256, show_default=True, help="Side of the images.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Images in a step.")
@device_option
def cost(methods: list[str] | None, cfg: str, resolution: int, batch: int, device: str | None) -> None:
    """Measure what each method costs on this device, and how much more than StyleGAN2.

    Parameters, multiply-accumulates, times of forward passes and of a training step, and the memory that it takes.
    """
    if resolution & (resolution - 1):
        raise UserError(f"--resolution is {resolution}, expected a power of two")
    from torch_utils import misc
    from training import cost as costs
    from training.config.presets import METHODS

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


def score_model(opts: Options, model: paper_tables.Model) -> dict[str, float]:
    """Results of a network by name; of a run, those of its best pickle by the first metric."""
    from metrics.published import DATASETS
    from training.runs.run_scores import ScoreTable

    metrics = opts.metrics or DATASETS[model.table.dataset].metrics
    opts = dataclasses.replace(opts, network=model.network, data=model.data, metrics=metrics)
    if opts.is_run:
        first = dataclasses.replace(opts, metrics=metrics[:1])
        score_run(first)
        scores = ScoreTable(open_book(first, protocol_of_run(first, open_dataset_of_run(first))))
        best = scores.best(scores.first) if scores.first is not None else None
        if best is None:
            raise UserError(f"{model.network} has no pickle with a score: move it away, or let it train on")
        opts = dataclasses.replace(opts, network=os.path.join(model.network, best.name))
    subject = load_subject(opts)
    dataset = open_dataset(opts, subject.trained_on, use_labels=subject.use_labels)
    book = open_book(opts, protocol_of(opts, dataset, subject.trained_on, use_labels=subject.use_labels))
    name = os.path.relpath(opts.network, book.run_dir)
    known = book.read()
    missing = [metric for metric in metrics if name not in known[metric]]
    if missing:
        score_one(dataclasses.replace(opts, metrics=missing))
        known = book.read()
    return {key: value for metric in metrics for key, value in known[metric][name].items()}


# ----------------------------------------------------------------------------------------------------------------------
# The work itself, in this process or in several alike; the first of them reports.


def measure_one(
    opts: Options, subject: Subject, dataset: ImageFolderDataset, protocol: dict[str, Any], device: torch.device
) -> dict[str, dict[str, float]]:
    """Report all metrics of a network or of images; returns "results" by name, and of several seeds "std" likewise."""
    from metrics import metric_main
    from metrics.options import Shared
    from torch_utils import distributed
    from training.runs.best import mark_best

    scores: dict[str, dict[str, float]] = {"results": {}, "std": {}}
    shared = Shared(opts.metrics)   # FID and KID look at the same images
    calculate = calculation(opts, dataset, device, gen_images=subject.images)
    with stop_request() as stop:
        for metric in opts.metrics:
            with stop.at_once():
                result = calculate(metric, G=subject.G, shared=shared)
            if distributed.rank() == 0:
                metric_main.report_metric(result, run_dir=opts.run_dir or opts.record_dir, snapshot_pkl=opts.network,
                                          protocol=protocol)
            for part, values in scores.items():
                values |= result.get(part, {})
    if opts.run_dir is not None and distributed.rank() == 0:
        mark_best(opts.run_dir, opts.metrics[0], warn=cli.warn)
    return scores


def measure_run(
    opts: Options, dataset: ImageFolderDataset, protocol: dict[str, Any], device: torch.device
) -> list[str]:
    """Report the scores that a run lacks, and return the names of pickles that can't be read."""
    from torch_utils import distributed
    from training.runs.run_scores import RunScorer
    from training.runs.score_team import Team

    def load(path: str) -> torch.nn.Module:
        return load_generator(path, trust=opts.trust_pickle)[0]

    team = Team(load=load, calculate=calculation(opts, dataset, device))
    with stop_request() as stop:
        if distributed.rank() > 0:
            with stop.at_once():
                team.serve()
            return []
        scorer = RunScorer(
            book=open_book(opts, protocol), load=team.load, calculate=team.calculate, idle=team.idle, stop=stop,
            say=functools.partial(click.echo, err=True) if opts.verbose else lambda line: None, warn=cli.warn,
        )
        scorer.follow() if opts.follow else scorer.score_all()
        team.dismiss()
    return list(scorer.broken)


def stop_request() -> StopRequest:
    """Ctrl-C comes to all processes of a terminal, and once more from the one that started them."""
    from torch_utils import distributed
    from training.runs.interrupt import StopRequest

    return StopRequest(quiet=True, once=distributed.world_size() > 1)


def share_out(opts: Options, protocol: dict[str, Any], *, loss: str) -> Any:
    """Have `opts.gpus` processes do the work; what the first of them returns.

    Raises:
        UserError:         One failed.
        KeyboardInterrupt: Requested to stop.
    """
    from training import launch

    with tempfile.TemporaryDirectory(prefix="glead-") as folder:
        job, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        job.write_text(json.dumps(dict(options=dataclasses.asdict(opts), protocol=protocol, answer=str(answer))))
        root = Path(__file__).resolve().parent  # which need not be the current folder
        launch.run_together([sys.executable, "-c", _START_WORKER, str(root), str(job)], size=opts.gpus, meaning=loss,
                            at_once=True)
        return json.loads(answer.read_text())


def work(job: str) -> int:
    """As one of the processes that `share_out` starts, do what the file `job` says; returns the exit status."""
    from torch_utils import distributed
    from training import launch
    from training.worker import take_part

    content = json.loads(Path(job).read_text())
    opts, protocol = Options(**content["options"]), content["protocol"]

    @cli.plain_errors()
    def measure() -> None:
        use_lpips(opts.detector)
        device = distributed.current_device(opts.device)
        launch.build_kernels(opts.device)
        try:
            if opts.is_run:
                answer = measure_run(opts, open_dataset_of_run(opts), protocol, device)
            else:
                subject = load_subject(opts)
                dataset = open_dataset(opts, subject.trained_on, use_labels=subject.use_labels)
                answer = measure_one(opts, subject, dataset, protocol, device)
        except BrokenPipeError as e:
            cli.silence_stdout()
            raise UserError("nobody reads the scores that are printed any more, so no others were calculated") from e
        if distributed.rank() == 0:
            Path(content["answer"]).write_text(json.dumps(answer))

    return take_part(measure, device=opts.device, timeout_sec=_TIMEOUT_SEC,
                     advice="What was printed is good; the same command resumes")


# ----------------------------------------------------------------------------------------------------------------------
# What it needs.


def pick_device(opts: Options) -> torch.device:
    """Also the place for what names no device: memory of another GPU belongs to those who compute there.

    Of several processes each one has its own; this one then keeps away from GPUs.
    """
    import torch

    from torch_utils import misc
    from training import launch

    if opts.gpus > 1:
        launch.check_gpus(opts.device, opts.gpus)
        return torch.device("cpu")
    device = misc.pick_device(opts.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def open_book(opts: Options, protocol: dict[str, Any]) -> ScoreBook:
    from training.runs.run_scores import ScoreBook

    folder = opts.network if opts.is_run else opts.run_dir or opts.record_dir
    return ScoreBook(folder, opts.metrics, detector=opts.detector, protocol=protocol)


def calculation(
    opts: Options, dataset: ImageFolderDataset, device: torch.device, *, gen_images: ImageFolderDataset | None = None
) -> Callable[..., dict[str, Any]]:
    """`calc_metric` with all that the command line says, to be called with (metric, G=, shared=)."""
    import torch

    from metrics import metric_main
    from metrics.polarity import Polarity
    from metrics.progress import ScoreBar
    from torch_utils import distributed

    polarity = Polarity(opts.polarity, opts.candidates) if opts.polarity else None
    kept_real: dict = {}
    on_cpu = torch.device(device).type == "cpu"
    progress = ScoreBar(show=opts.verbose, begun=warn_if_long if on_cpu else None) if opts.verbose or on_cpu else None

    def calculate(metric: str, *, G: torch.nn.Module | None, shared: Shared) -> dict[str, Any]:
        try:
            result = metric_main.calc_metric(
                metric, G=G, dataset=dataset, gen_images=gen_images, detector=opts.detector, device=device,
                batch_size=opts.batch, num_gpus=distributed.world_size(), rank=distributed.rank(), seed=opts.seed,
                polarity=polarity, repeats=opts.repeats, workers=opts.workers, cache=opts.cache, shared=shared,
                kept_real=kept_real, progress=progress,
            )
        except torch.OutOfMemoryError as e:
            raise UserError(f"{str(e).strip().splitlines()[0]}: give a --batch below {opts.batch}, or free the GPU of "
                            "other programs") from e
        result["data"] = os.path.abspath(dataset.path)
        if gen_images is not None:
            result["images"] = os.path.abspath(gen_images.path)
        return result

    return calculate


def warn_if_long(sec: float) -> None:
    if sec > _LONG_SEC:
        cli.warn(f"on the CPU this will take about {rough_time(sec)}: a GPU is much faster (--device=cuda), and "
                 "metrics of fewer images, such as fid5k_full, give a first impression")


def load_generator(network_pkl: str, *, trust: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """G_ema of a network pickle and what the pickle says of its training set."""
    import legacy
    from torch_utils import misc

    with open_url(network_pkl) as f:
        networks = legacy.load_network_pkl(f, trust=trust, only=("G_ema", "training_set_kwargs"))
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    misc.check_network(networks["G_ema"], network_pkl, "G_ema")
    return networks["G_ema"], dict(networks["training_set_kwargs"] or {})


class Subject(NamedTuple):
    """What is scored: a network, or images that any program generated."""

    G: torch.nn.Module | None
    images: ImageFolderDataset | None
    trained_on: dict[str, Any]      # What a network's file says of its training set.

    @property
    def use_labels(self) -> bool:
        return self.G is not None and self.G.c_dim > 0

    def check(self, metrics: list[str], dataset: ImageFolderDataset) -> None:
        """Raises UserError where it doesn't fit the real images, or the metrics."""
        from metrics import metric_main

        if self.G is not None:
            metric_main.check_match(self.G, dataset)
        else:
            metric_main.check_images(metrics, self.images, dataset)


def load_subject(opts: Options) -> Subject:
    if opts.network is not None:
        G, trained_on = load_generator(opts.network, trust=opts.trust_pickle)
        return Subject(G, None, trained_on)
    from training.data.dataset import ImageFolderDataset

    return Subject(None, ImageFolderDataset(opts.images), {})


def say_which_images(opts: Options, trained_on: dict[str, Any]) -> None:
    """Earlier versions and other programs name the images as it was said when training started, somewhere."""
    path = trained_on.get("path")
    if opts.data is None and isinstance(path, str) and not os.path.isabs(path) and os.path.exists(path):
        cli.warn(f"{opts.network} names its images by a relative path: taking {os.path.abspath(path)}")


def open_dataset(
    opts: Options, trained_on: dict[str, Any], *, use_labels: bool, resolution: int | None = None
) -> ImageFolderDataset:
    """The training set; or the images in --data, all of them, mirrored as in training."""
    from training.data.dataset import ImageFolderDataset
    from training.runs.run_scores import open_training_set

    xflip = opts.mirror if opts.mirror is not None else bool(trained_on.get("xflip", False))
    if opts.data is not None:
        return ImageFolderDataset(opts.data, resolution=resolution, use_labels=use_labels, xflip=xflip)
    return open_training_set(opts.network, trained_on, use_labels=use_labels, resolution=resolution, xflip=xflip)


def open_dataset_of_run(opts: Options) -> ImageFolderDataset:
    """As `open_dataset`, with the labels and the resolution of the run's networks."""
    from training.runs.run_scores import read_options

    trained_on = read_options(opts.network).training_set_kwargs
    return open_dataset(opts, trained_on, use_labels=bool(trained_on.get("use_labels")),
                        resolution=trained_on.get("resolution"))


def protocol_of_run(opts: Options, dataset: ImageFolderDataset) -> dict[str, Any]:
    from training.runs.run_scores import read_options

    trained_on = read_options(opts.network).training_set_kwargs
    return protocol_of(opts, dataset, trained_on, use_labels=bool(trained_on.get("use_labels")))


def protocol_of(
    opts: Options, dataset: ImageFolderDataset, trained_on: dict[str, Any], *, use_labels: bool
) -> dict[str, Any]:
    """What is not as when training scores its snapshots, for the records: other images, another seed.

    Raises:
        UserError: What lies where the images of a run were is something else.
    """
    from training.runs.run_scores import recorded_fingerprint

    protocol: dict[str, Any] = {"seed": opts.seed} if opts.seed else {}
    if opts.repeats > 1:
        protocol["repeats"] = opts.repeats
    if opts.polarity:
        protocol |= {"polarity": opts.polarity, "candidates": opts.candidates}
    same = recorded_fingerprint(opts.run_dir) if opts.run_dir is not None else None
    if opts.data is None:
        here = dataset.replace(xflip=bool(trained_on.get("xflip", False))).fingerprint
        if same not in (None, here):
            raise UserError(f"the images in {dataset.path} are not those that {opts.run_dir} was trained on: give the "
                            "right ones with --data; if they are others, each score notes that")
        same = here
    elif same is None:
        try:
            same = open_dataset(dataclasses.replace(opts, data=None, mirror=None), trained_on,
                                use_labels=use_labels).fingerprint
        except UserError:   # they are not here any more
            pass
    if dataset.fingerprint != same:
        protocol["data"] = dataset.fingerprint
    return protocol


if __name__ == "__main__":
    cli.DefaultGroup(main, prefetch, table, cost)()
