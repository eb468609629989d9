"""Calculate quality metrics of a network pickle, or of all pickles of a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import click

import cli
from dnnlib.util import UserError, check_all, is_url, open_url, rough_time

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
    trust_net: bool
    table: bool
    verbose: bool

    @property
    def is_run(self) -> bool:
        """Whether the network is a run directory."""
        return not is_url(self.network) and os.path.isdir(self.network)

    @property
    def run_dir(self) -> str | None:
        """The run directory that the network is, or lies in."""
        folder = self.network if self.is_run else os.path.dirname(os.path.abspath(self.network))
        inside = not is_url(self.network) and os.path.isfile(os.path.join(folder, "training_options.json"))
        return folder if inside else None


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.option("--network", type=cli.Path(), metavar="PATH|URL", required=True,
              help="Network: a pickle (TensorFlow's too), safetensors, .pt or .onnx file; or a run directory.")
@click.option("--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
              help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, is50k, ppl2_wend, ...; "
                   "smaller ones such as fid5k_full for a quick look.")
@click.option("--follow", is_flag=True,
              help="With a run directory: score new pickles as training writes them, until the last one.")
@click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
              help="Real images.  [default: those that the network was trained on]")
@click.option("--mirror", type=bool, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.  [default: as in training]")
@click.option("--detector", type=cli.Path(), metavar="PATH|URL",
              help="Feature net: TorchScript, ONNX, or by feature_net.py. Results are named after it.  [default: the "
                   "standard net of each metric]")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True,
              help="GPUs that share the work, or processes with --device=cpu.")
@click.option("--workers", type=click.IntRange(min=0), default=3, show_default=True,
              help="Processes that decode real images, for each GPU.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of latents, labels, noise and subsets.")
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
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
    """
    opts = Options(**options)
    if not opts.metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    if opts.follow and not opts.is_run:
        raise UserError(f"--follow needs a run directory as --network, and {opts.network} is none")
    if opts.gpus > 1:
        opts = dataclasses.replace(opts, device=opts.device or "cuda")
        if opts.device not in ("cpu", "cuda"):
            raise click.UsageError(f"--device={opts.device} is not for --gpus={opts.gpus}: say cuda, which takes the "
                                   "first ones of CUDA_VISIBLE_DEVICES, or cpu")
    from metrics import metric_main

    metric_main.check_metrics(opts.metrics)
    if opts.is_run:
        score_run(opts)
    else:
        score_pickle(opts)


def score_pickle(opts: Options) -> None:
    """Score one network."""
    from metrics import metric_main
    from metrics.published import format_table

    device = pick_device(opts)
    found: list[tuple[torch.nn.Module, dict[str, Any]]] = []
    check_all(lambda: found.append(load_generator(opts.network, trust=opts.trust_pickle)),
              lambda: check_detector(opts))
    (G, trained_on), = found
    say_which_images(opts, trained_on)
    dataset = open_dataset(opts, trained_on, use_labels=G.c_dim > 0)    # mistakes are found before processes start
    metric_main.check_match(G, dataset)
    protocol = protocol_of(opts, dataset, trained_on, use_labels=G.c_dim > 0)
    if opts.gpus > 1:
        results = share_out(opts, protocol, loss="so there are no further scores; start it again for those")
    else:
        results = measure_pickle(opts, G, dataset, protocol, device)
    if opts.table:
        print(format_table(results, dataset=dataset))


def check_detector(opts: Options) -> None:
    from metrics import metric_main

    metric_main.check_detector(opts.metrics, opts.detector, trust=opts.trust_net)


def score_run(opts: Options) -> None:
    """Score the pickles in a run directory that were not scored yet; with --follow those to come, too."""
    from training.runs import run_scores

    device = pick_device(opts)
    trained_on = run_scores.read_options(opts.network).training_set_kwargs
    if not opts.follow and not run_scores.list_pickles(opts.network):
        raise UserError(f"{opts.network} holds no network-snapshot-KKKKKK.pkl yet: say --follow to wait for them")
    say_which_images(opts, trained_on)
    check_detector(opts)
    dataset = open_dataset_of_run(opts)
    protocol = protocol_of(opts, dataset, trained_on, use_labels=bool(trained_on.get("use_labels")))
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
    if broken:
        raise click.exceptions.Exit(1)  # which ones was said


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


# ----------------------------------------------------------------------------------------------------------------------
# The work itself, in this process or in several alike; the first of them reports.


def measure_pickle(
    opts: Options, G: torch.nn.Module, dataset: ImageFolderDataset, protocol: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """Report all metrics of a network, and return their results by name."""
    from metrics import metric_main
    from metrics.options import Shared
    from torch_utils import distributed

    results, run_dir = {}, opts.run_dir
    shared = Shared(opts.metrics)   # FID and KID look at the same images
    calculate = calculation(opts, dataset, device)
    with stop_request() as stop:
        for metric in opts.metrics:
            with stop.at_once():
                result = calculate(metric, G=G, shared=shared)
            if distributed.rank() == 0:
                metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=opts.network, protocol=protocol)
            results |= result.results
    return results


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
        launch.run_together([sys.executable, "-c", _START_WORKER, str(root), str(job)], size=opts.gpus, loss=loss,
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
        device = distributed.current_device(opts.device)
        launch.build_kernels(opts.device)
        try:
            if opts.is_run:
                answer = measure_run(opts, open_dataset_of_run(opts), protocol, device)
            else:
                G, trained_on = load_generator(opts.network, trust=opts.trust_pickle)
                dataset = open_dataset(opts, trained_on, use_labels=G.c_dim > 0)
                answer = measure_pickle(opts, G, dataset, protocol, device)
        except BrokenPipeError as e:
            cli.silence_stdout()
            raise UserError("nobody reads the scores that are printed any more, so no others were calculated") from e
        if distributed.rank() == 0:
            Path(content["answer"]).write_text(json.dumps(answer))

    return take_part(measure, device=opts.device, timeout_sec=_TIMEOUT_SEC,
                     advice="What was printed is good; the same command goes on")


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

    return ScoreBook(opts.network, opts.metrics, detector=opts.detector, protocol=protocol)


def calculation(
    opts: Options, dataset: ImageFolderDataset, device: torch.device
) -> Callable[..., dict[str, Any]]:
    """`calc_metric` with all that the command line says, to be called with (metric, G=, shared=)."""
    import torch

    from metrics import metric_main
    from metrics.progress import ScoreBar
    from torch_utils import distributed

    kept_real: dict = {}
    on_cpu = torch.device(device).type == "cpu"
    progress = ScoreBar(show=opts.verbose, begun=warn_if_long if on_cpu else None) if opts.verbose or on_cpu else None

    def calculate(metric: str, *, G: torch.nn.Module, shared: Shared) -> dict[str, Any]:
        try:
            result = metric_main.calc_metric(
                metric, G=G, dataset=dataset, detector=opts.detector, device=device, batch_size=opts.batch,
                num_gpus=distributed.world_size(), rank=distributed.rank(), seed=opts.seed, workers=opts.workers,
                cache=opts.cache, shared=shared, kept_real=kept_real, progress=progress,
            )
        except torch.OutOfMemoryError as e:
            raise UserError(f"{str(e).strip().splitlines()[0]}: give a --batch below {opts.batch}, or free the GPU of "
                            "other programs") from e
        result["data"] = os.path.abspath(dataset.path)
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


def protocol_of(
    opts: Options, dataset: ImageFolderDataset, trained_on: dict[str, Any], *, use_labels: bool
) -> dict[str, Any]:
    """What is not as when training scores its snapshots, for the records: other images, another seed.

    Raises:
        UserError: What lies where the images of a run were is something else.
    """
    from training.runs.run_scores import recorded_fingerprint

    protocol: dict[str, Any] = {"seed": opts.seed} if opts.seed else {}
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
    main()
