"""Scoring of a network, of all network pickles of a run, or of images."""

import contextlib
import dataclasses
import functools
import os
import sys
from typing import Any, Callable

import torch

from dnnlib.util import UserError, check_all, is_url, open_url, rough_time
from metrics import metric_main
from metrics.options import Shared
from metrics.polarity import Polarity
from metrics.progress import ScoreBar
from torch_utils import distributed, misc
from torch_utils.formats import read_networks
from training import lpips_features  # noqa: F401 (makes lpips-vgg and lpips-alex known as detectors)
from training.data.dataset import ImageFolderDataset
from training.estimate import LONG_SEC
from training.runs.best import mark_best
from training.runs.interrupt import StopRequest
from training.runs.run_scores import RunScorer, ScoreBook, open_training_set, read_options, recorded_fingerprint
from training.runs.score_team import Team
from training.runs.training_state import list_pickles

from . import launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What is scored, and how. Plain data, which processes can exchange."""

    metrics: list[str]
    network: str | None = None      # A network file or a run directory.
    images: str | None = None       # A folder or zip of generated images, from any program, in place of a network.
    data: str | None = None         # Real images; None = those that the network was trained on.
    mirror: bool | None = None      # Add mirrored copies of the real images; None = as in training.
    follow: bool = False            # Wait for further pickles of a run.
    detector: str | None = None     # Feature net; None = the standard one of each metric.
    device: str | None = None       # None = a GPU if there is one.
    batch: int = 64
    gpus: int = 1
    workers: int = 3
    seed: int = 0
    repeats: int = 1
    polarity: float = 0
    candidates: int = 0             # Latents that `polarity` chooses from.
    cache: bool = True
    trust_pickle: bool = False
    trust_net: bool = False
    verbose: bool = True
    record_dir: str | None = None   # Where scores are recorded for networks that belong to no run.

    @property
    def is_run(self) -> bool:
        """Whether the network is a run directory."""
        return self.network is not None and not is_url(self.network) and os.path.isdir(self.network)

    @property
    def run_dir(self) -> str | None:
        """The run directory that `network` names, or the one that holds it; None if there is none."""
        if self.network is None:
            return None
        folder = self.network if self.is_run else os.path.dirname(os.path.abspath(self.network))
        inside = not is_url(self.network) and os.path.isfile(os.path.join(folder, "training_options.json"))
        return folder if inside else None


@dataclasses.dataclass(kw_only=True)
class Scores:
    """What was measured. Plain data."""

    results: dict[str, float] = dataclasses.field(default_factory=dict)     # Scores of a network or images, by name.
    std: dict[str, float] = dataclasses.field(default_factory=dict)         # Standard deviations over several seeds.
    broken: list[str] = dataclasses.field(default_factory=list)             # Pickles of a run that can't be read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is scored: the network G, images, or, if neither is given, a run."""

    G: torch.nn.Module | None = None
    images: ImageFolderDataset | None = None
    trained_on: dict[str, Any] = dataclasses.field(default_factory=dict)    # `training_set_kwargs` of its file.
    use_labels: bool = False
    resolution: int | None = None       # Resolution of a run's networks.

    @property
    def xflip(self) -> bool:
        """Whether the training set had mirrored copies."""
        return bool(self.trained_on.get("xflip", False))


class Scorer:
    """Scores one network, images, or all network pickles of a run, in comparison with real images.

    Args:
        opts: The options of the user.
        warn: Called with one line about each problem.

    Raises:
        UserError: Something is missing, or does not fit the real images or the metrics.
    """

    def __init__(self, opts: ScoringOptions, *, warn: Callable[[str], None]):
        self.opts, self._warn = opts, warn
        self.subject = _load_subject(opts)
        xflip = self.subject.xflip if opts.mirror is None else opts.mirror
        self.dataset = self._open_dataset(opts.data, xflip=xflip)
        if self.subject.G is not None:
            metric_main.check_match(self.subject.G, self.dataset)
        elif self.subject.images is not None:
            metric_main.check_images(opts.metrics, self.subject.images, self.dataset)

    def _open_dataset(self, path: str | None, *, xflip: bool) -> ImageFolderDataset:
        """Open all images at `path`, or the training set. They have labels if the networks take labels."""
        subject = self.subject
        options: dict[str, Any] = dict(use_labels=subject.use_labels, resolution=subject.resolution, xflip=xflip)
        if path is not None:
            return ImageFolderDataset(path, **options)
        return open_training_set(self.opts.network, subject.trained_on, instead="--data", **options)

    @functools.cached_property
    def protocol(self) -> dict[str, Any]:
        """How this differs from the scoring of snapshots in training, for the records: other images, another seed.

        Raises:
            UserError: The data set of a run has changed since.
        """
        opts = self.opts
        protocol: dict[str, Any] = {"seed": opts.seed} if opts.seed else {}
        if opts.repeats > 1:
            protocol["repeats"] = opts.repeats
        if opts.polarity:
            protocol |= {"polarity": opts.polarity, "candidates": opts.candidates}
        if self.dataset.fingerprint != self._training_fingerprint():
            protocol["data"] = self.dataset.fingerprint
        return protocol

    def _training_fingerprint(self) -> str | None:
        """Fingerprint of the training set; None if it is neither recorded nor available."""
        opts, xflip = self.opts, self.subject.xflip
        recorded = None if opts.run_dir is None else recorded_fingerprint(opts.run_dir)
        if opts.data is None:
            here = self.dataset.replace(xflip=xflip).fingerprint
            if recorded not in (None, here):
                raise UserError(f"the images in {self.dataset.path} are not those that {opts.run_dir} was trained on: "
                                "give the right ones with --data; if they are others, each score notes that")
            return here
        if recorded is None:
            with contextlib.suppress(UserError):
                return self._open_dataset(None, xflip=xflip).fingerprint
        return recorded

    @functools.cached_property
    def book(self) -> ScoreBook:
        """The scores of the run, or those in `record_dir`, that were measured by the same protocol."""
        opts = self.opts
        folder = opts.network if opts.is_run else opts.run_dir or opts.record_dir
        return ScoreBook(folder, opts.metrics, detector=opts.detector, protocol=self.protocol)

    def measure(self, device: torch.device) -> Scores:
        """Compute scores in this process, or in several that all call this. Rank 0 prints and records them."""
        return self._measure_run(device) if self.opts.is_run else self._measure_one(device)

    def _measure_one(self, device: torch.device) -> Scores:
        opts, scores, shared = self.opts, Scores(), Shared(self.opts.metrics)
        calculate = self._calculation(device)
        with _stop_request() as stop:
            for metric in opts.metrics:
                with stop.at_once():
                    result = calculate(metric, G=self.subject.G, shared=shared)    # FID and KID share images
                if distributed.rank() == 0:
                    metric_main.report_metric(result, run_dir=opts.run_dir or opts.record_dir,
                                              snapshot_pkl=opts.network, protocol=self.protocol)
                scores.results.update(result["results"])
                scores.std.update(result.get("std", {}))
        if opts.run_dir is not None and distributed.rank() == 0:
            mark_best(opts.run_dir, opts.metrics[0], warn=self._warn)
        return scores

    def _measure_run(self, device: torch.device) -> Scores:
        opts = self.opts

        def load(path: str) -> torch.nn.Module:
            return _load_generator(path, trust=opts.trust_pickle)[0]

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        team = Team(load=load, calculate=self._calculation(device))
        with _stop_request() as stop:
            if distributed.rank() > 0:
                with stop.at_once():
                    team.serve()
                return Scores()
            scorer = RunScorer(
                book=self.book, load=team.load, calculate=team.calculate, idle=team.idle, stop=stop,
                say=say if opts.verbose else lambda line: None, warn=self._warn,
            )
            scorer.follow() if opts.follow else scorer.score_all()
            team.dismiss()
        return Scores(broken=list(scorer.broken))

    def _calculation(self, device: torch.device) -> Callable[..., dict[str, Any]]:
        """`calc_metric` with the options of the user. It is called with (metric, G=, shared=)."""
        opts, dataset, images, on_cpu = self.opts, self.dataset, self.subject.images, device.type == "cpu"
        polarity = Polarity(opts.polarity, opts.candidates) if opts.polarity else None
        kept_real: dict = {}
        announce = functools.partial(warn_if_long, warn=self._warn) if on_cpu else None
        progress = ScoreBar(show=opts.verbose, begun=announce) if opts.verbose or on_cpu else None

        def calculate(metric: str, *, G: torch.nn.Module | None, shared: Shared) -> dict[str, Any]:
            try:
                result = metric_main.calc_metric(
                    metric, G=G, dataset=dataset, gen_images=images, detector=opts.detector, device=device,
                    batch_size=opts.batch, seed=opts.seed, polarity=polarity, repeats=opts.repeats,
                    workers=opts.workers, cache=opts.cache, shared=shared, kept_real=kept_real, progress=progress,
                )
            except torch.OutOfMemoryError as e:
                raise UserError(f"{str(e).strip().splitlines()[0]}: give a --batch below {opts.batch}, or free the GPU "
                                "of other programs") from e
            result["data"] = os.path.abspath(dataset.path)
            if images is not None:
                result["images"] = os.path.abspath(images.path)
            return result

        return calculate


def prepare(opts: ScoringOptions, *, warn: Callable[[str], None]) -> Scorer:
    """Make a scorer, and check its feature nets and images before processes start and long work begins.

    Raises:
        UserError: Something is missing or does not fit. The error lists all such problems.
    """
    found: list[Scorer] = []
    check_all(lambda: found.append(Scorer(opts, warn=warn)),
              lambda: metric_main.check_detector(opts.metrics, opts.detector, trust=opts.trust_net))
    scorer, = found
    if opts.is_run and not opts.follow and not list_pickles(opts.network):
        raise UserError(f"{opts.network} holds no network-snapshot-KKKKKK.pkl yet: say --follow to wait for them")
    path = scorer.subject.trained_on.get("path")
    if opts.data is None and not os.path.isabs(path):   # earlier versions and other programs wrote relative paths
        warn(f"{opts.network} names its images by a relative path: taking {os.path.abspath(path)}")
    _ = scorer.protocol     # raises its error now
    return scorer


def _load_subject(opts: ScoringOptions) -> Subject:
    if opts.images is not None:
        return Subject(images=ImageFolderDataset(opts.images))
    assert opts.network is not None
    if opts.is_run:
        trained_on = read_options(opts.network).training_set_kwargs
        return Subject(trained_on=trained_on, use_labels=bool(trained_on.get("use_labels")),
                       resolution=trained_on.get("resolution"))
    G, trained_on = _load_generator(opts.network, trust=opts.trust_pickle)
    return Subject(G=G, trained_on=trained_on, use_labels=bool(G.c_dim))


def _load_generator(network_pkl: str, *, trust: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Read G_ema of a network file, and the `training_set_kwargs` of the file."""
    with open_url(network_pkl) as f:
        networks = read_networks(f, trust=trust, only=("G_ema", "training_set_kwargs"))
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    misc.check_network(networks["G_ema"], network_pkl, "G_ema")
    return networks["G_ema"], dict(networks["training_set_kwargs"] or {})


def warn_if_long(sec: float, *, warn: Callable[[str], None]) -> None:
    if sec > LONG_SEC:
        warn(f"on the CPU this will take about {rough_time(sec)}: a GPU is much faster (--device=cuda), and metrics of "
             "fewer images, such as fid5k_full, give a first impression")


def _stop_request() -> StopRequest:
    """Several processes get Ctrl-C twice: from the terminal, and from the process that started them."""
    return StopRequest(quiet=True, once=distributed.world_size() > 1)


def pick_device(opts: ScoringOptions) -> torch.device:
    """The device for scoring, which also becomes PyTorch's current CUDA device, so that no other GPU's memory is used.

    With several processes, each has its own device, and this one stays on the CPU.
    """
    if opts.gpus > 1:
        launch.check_gpus(opts.device, opts.gpus)
        return torch.device("cpu")
    device = misc.pick_device(opts.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
