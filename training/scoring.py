"""Scores of a network, of all network pickles of a run, or of images."""

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
from training import launch, lpips_features  # noqa: F401 (the latter makes lpips-vgg and lpips-alex known as detectors)
from training.data.dataset import ImageFolderDataset
from training.runs.best import mark_best
from training.runs.interrupt import StopRequest
from training.runs.run_scores import RunScorer, ScoreBook, open_training_set, read_options, recorded_fingerprint
from training.runs.score_team import Team
from training.runs.training_state import list_pickles

_LONG_SEC = 600         # On a CPU, work that takes longer is announced.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What is scored, and how; plain data."""

    metrics: list[str]
    network: str | None = None      # A network file or a run directory.
    images: str | None = None       # In place of a network: a folder or zip of images that any program generated.
    data: str | None = None         # Real images; None = those that the network was trained on.
    mirror: bool | None = None      # Add mirrored copies of them; None = as in training.
    follow: bool = False            # Wait for further pickles of a run.
    detector: str | None = None
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


@dataclasses.dataclass(kw_only=True)
class Scores:
    """What was measured; plain data."""

    results: dict[str, float] = dataclasses.field(default_factory=dict)     # Of a network or of images, by name.
    std: dict[str, float] = dataclasses.field(default_factory=dict)         # Of several seeds, likewise.
    broken: list[str] = dataclasses.field(default_factory=list)             # Pickles of a run that can't be read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is scored: a network, images, or else a run."""

    G: torch.nn.Module | None = None
    images: ImageFolderDataset | None = None
    trained_on: dict[str, Any] = dataclasses.field(default_factory=dict)    # What its file says of its training set.
    use_labels: bool = False
    resolution: int | None = None       # Of a run's networks.

    @property
    def xflip(self) -> bool:
        """Whether it was trained with mirrored copies."""
        return bool(self.trained_on.get("xflip", False))


class Scorer:
    """Scores one network, images, or all network pickles of a run, beside real images.

    Args:
        opts: What the user wants.
        warn: Called with lines about problems.

    Raises:
        UserError: Something is not there, or does not fit the real images or the metrics.
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
        """All images at `path`, or the training set, with labels if the networks take some."""
        subject = self.subject
        options: dict[str, Any] = dict(use_labels=subject.use_labels, resolution=subject.resolution, xflip=xflip)
        if path is not None:
            return ImageFolderDataset(path, **options)
        return open_training_set(self.opts.network, subject.trained_on, instead="--data", **options)

    @functools.cached_property
    def protocol(self) -> dict[str, Any]:
        """What is not as when training scores its snapshots, for the records: other images, another seed.

        Raises:
            UserError: What lies where the images of a run were is something else.
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
        """Of the training set; None if it is not recorded and not here any more."""
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
        """The scores of the run, or those in `record_dir`, that were measured in this way."""
        opts = self.opts
        folder = opts.network if opts.is_run else opts.run_dir or opts.record_dir
        return ScoreBook(folder, opts.metrics, detector=opts.detector, protocol=self.protocol)

    def measure(self, device: torch.device) -> Scores:
        """Report scores, in this process or in several that call this together; rank 0 prints and notes them."""
        return self._measure_run(device) if self.opts.is_run else self._measure_one(device)

    def _measure_one(self, device: torch.device) -> Scores:
        opts, scores, shared = self.opts, Scores(), Shared(self.opts.metrics)
        calculate = self._calculation(device)
        with _stop_request() as stop:
            for metric in opts.metrics:
                with stop.at_once():
                    result = calculate(metric, G=self.subject.G, shared=shared)    # FID and KID look at the same images
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
        """`calc_metric` with all that the user said, to be called with (metric, G=, shared=)."""
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
    """A scorer whose feature nets and images have been checked, before processes start and long work begins.

    Raises:
        UserError: Something is missing or does not fit; it tells of all of it.
    """
    found: list[Scorer] = []
    check_all(lambda: found.append(Scorer(opts, warn=warn)),
              lambda: metric_main.check_detector(opts.metrics, opts.detector, trust=opts.trust_net))
    scorer, = found
    if opts.is_run and not opts.follow and not list_pickles(opts.network):
        raise UserError(f"{opts.network} holds no network-snapshot-KKKKKK.pkl yet: say --follow to wait for them")
    path = scorer.subject.trained_on.get("path")
    if opts.data is None and not os.path.isabs(path):   # as earlier versions and other programs tell it
        warn(f"{opts.network} names its images by a relative path: taking {os.path.abspath(path)}")
    _ = scorer.protocol     # It raises its error now.
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
    """G_ema of a network file and what the file says of its training set."""
    with open_url(network_pkl) as f:
        networks = read_networks(f, trust=trust, only=("G_ema", "training_set_kwargs"))
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    misc.check_network(networks["G_ema"], network_pkl, "G_ema")
    return networks["G_ema"], dict(networks["training_set_kwargs"] or {})


def warn_if_long(sec: float, *, warn: Callable[[str], None]) -> None:
    if sec > _LONG_SEC:
        warn(f"on the CPU this will take about {rough_time(sec)}: a GPU is much faster (--device=cuda), and metrics of "
             "fewer images, such as fid5k_full, give a first impression")


def _stop_request() -> StopRequest:
    """Ctrl-C comes to all processes of a terminal, and once more from the one that started them."""
    return StopRequest(quiet=True, once=distributed.world_size() > 1)


def pick_device(opts: ScoringOptions) -> torch.device:
    """Also the place for what names no device: memory of another GPU belongs to those who compute there.

    Of several processes each one has its own; this one then keeps away from GPUs.
    """
    if opts.gpus > 1:
        launch.check_gpus(opts.device, opts.gpus)
        return torch.device("cpu")
    device = misc.pick_device(opts.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
