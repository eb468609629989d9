"""One training run: set up, then step and maintain until all images have been shown."""

import copy
import time
from pathlib import Path
from typing import Any, Callable

import torch
from tqdm import tqdm

from dnnlib.util import UserError, format_time
from torch_utils import distributed, misc, training_stats

from . import run_state, snapshot
from .ada import build_augmentation, current_strength
from .build import build_networks
from .config.schema import TrainingConfig, to_legacy_kwargs
from .data.dataset import ImageFolderDataset
from .data.loader import BatchLoader, ImageBatch, TrainingOrder
from .draws import draw_part
from .ema import ema_beta, update_ema
from .loss import StyleGAN2Loss
from .phases import CHECK_INTERVAL, GradientGuard, Phase, build_phases
from .runs.checkpoints import Checkpoints, Keep
from .runs.evaluation import Scores, evaluate
from .runs.interrupt import StopRequest
from .runs.run_log import Progress, RunLog
from .runs.training_state import PickleNames
from .tasks import build_tasks


def run_training(config: TrainingConfig, run_dir: str, **begins: Any) -> None:
    """Train as `config` says, leaving logs, grids, pickles and training states in `run_dir`, which exists.

    Several processes that have met by `distributed.join` share the work. Ctrl-C, SIGTERM and SIGUSR1 finish the
    iteration, save, and return. `begins` is for the `Trainer`.

    Raises:
        UserError: Data became unreadable, gradients stayed non-finite, no state fits, or the last save failed.
    """
    with StopRequest(interruptible=distributed.world_size() == 1, quiet=distributed.rank() != 0) as stop:
        try:
            with stop.at_once():
                trainer = Trainer(config, run_dir, **begins)
        except KeyboardInterrupt:
            print(f"Stopped while setting up: nothing was trained in {run_dir} that is not saved.")
            return
        try:
            trainer.train(stop)
        finally:
            trainer.close()


class Trainer:
    """Everything that a run holds; `step` is one iteration, `maintain` what happens between ticks.

    Args:
        resume: Go on from this training state, or from the "newest" good one in `run_dir`; None = from the start.
        anyway: Resume although the images are not those of the run.
        begin:  Called on all ranks with the fingerprint of the images, before anything in `run_dir` is changed.
    """

    def __init__(self, config: TrainingConfig, run_dir: str, *, resume: str | None = None, anyway: bool = False,
                 begin: Callable[[str], None] = lambda fingerprint: None):
        self.config, self.run_dir = config, Path(run_dir)
        self.device = distributed.current_device(config.device)
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        state = None if resume is None else run_state.find(self.run_dir, resume)
        self.progress = Progress(**state["progress"]) if state else Progress()
        self.unfinished_tick: bool | None = None    # A tick to finish first; is a snapshot due in it?
        self.pickles = PickleNames(self.run_dir)
        self.saved_nimg = self.progress.nimg        # Position of the last training state.
        self.known_scores: Scores = {}              # Of the unfinished tick.
        self.problem: str | None = None             # Why no rank can go on.
        self._open_data()
        self._build_networks(start_from=None if state else config.resume)
        if state:
            run_state.restore(self, state, anyway=anyway)
        begin(self.dataset.fingerprint)
        self._start_logs(state and state["log"])

    def _open_data(self) -> None:
        c = self.config.dataset
        self.dataset = ImageFolderDataset(c.path, resolution=c.resolution, use_labels=c.use_labels, max_size=c.max_size,
                                          xflip=c.xflip, random_seed=c.random_seed)
        distributed.print0(f"Training on {len(self.dataset)} images {self.dataset.image_shape}, labels "
                           f"{self.dataset.label_shape}")
        self.loader = BatchLoader(
            self.dataset, order=TrainingOrder(len(self.dataset), self.config.random_seed),
            batch_size=self.config.batch_size, start_index=self.progress.nimg, rank=distributed.rank(),
            num_ranks=distributed.world_size(), num_workers=self.config.workers, pin_memory=self.device.type == "cuda",
        )

    def _build_networks(self, *, start_from: str | None) -> None:
        c = self.config
        torch.manual_seed(c.random_seed)
        self.G, self.D = (net.train().requires_grad_(False).to(self.device) for net in build_networks(c))
        self.G_ema = copy.deepcopy(self.G).eval()
        if start_from is not None:
            snapshot.start_from(start_from, self.G, self.D, self.G_ema)
        real_tasks, fake_tasks = build_tasks(c, self.G)
        self.augment_pipe, self.ada = build_augmentation(c, self.device)
        self.loss = StyleGAN2Loss(
            self.G, self.D, config=c.loss, real_tasks=real_tasks, fake_tasks=fake_tasks,
            augment=getattr(self.ada or self.augment_pipe, "run", None),
            observe_real=self.ada.observe if self.ada else None,
        )
        self.phases = build_phases(c, self.loss)
        self.guard = GradientGuard(self.device)
        self.parts = {"G": self.G, "D": self.D, "G_ema": self.G_ema, "augment_pipe": self.augment_pipe}
        counts = {n: sum(p.numel() for p in self.parts[n].parameters()) / 1e6 for n in ("G", "D")}
        distributed.print0(f"Networks on {self.device.type}: G {counts['G']:.2f} M, D {counts['D']:.2f} M parameters")

    def _start_logs(self, state: dict[str, Any] | None) -> None:
        c, first = self.config, distributed.rank() == 0
        self.grid = snapshot.choose_grid(self.dataset, z_dim=self.G.z_dim, seed=c.random_seed,
                                         size=c.grid_size) if first else None
        self.log = RunLog(self.run_dir, config=c, device=self.device, state=state)
        self.checkpoints = Checkpoints(self.run_dir, keep=Keep.parse(c.keep), metric=next(iter(c.metrics), None),
                                       snapshot_kimg=c.kimg_per_tick * max(c.snapshot_ticks, 1))
        if first and state is None:
            snapshot.save_first_pictures(self.run_dir, self.G_ema, self.grid, batch_gpu=c.batch_gpu,
                                         save=self.checkpoints.save_file)

    def close(self) -> None:
        self.loader.close()
        self.log.close()
        self.checkpoints.close()

    def train(self, stop: StopRequest) -> None:
        """Step until all images have been shown or a stop is requested, with maintenance after each tick."""
        c = self.config
        total_nimg, tick_nimg = int(c.total_kimg * 1000), c.kimg_per_tick * 1000
        distributed.print0(f"Training for {c.total_kimg:g} kimg ...")
        bar = self._bar()
        stopping = False
        try:
            if self.unfinished_tick is not None:
                if self.unfinished_tick and not self.pickles.last.exists():
                    self._write_snapshot()  # that could not be saved before
                self._finish_tick(stop)
            while self.progress.nimg < total_nimg:
                batch, self.problem = stop.agree(self.next_batch)
                if stopping := batch is None:
                    self.pickles.choose(self.progress.nimg, self.log.next_due_nimg(self.progress.tick))
                    self._save_state()  # what going on needs comes first
                    self._write_snapshot()
                    break
                self.step(batch)
                bar.update(c.batch_size)
                done = self.progress.nimg >= total_nimg
                if done or self.progress.tick == 0 or self.progress.nimg - self.log.tick_start_nimg >= tick_nimg:
                    bar.close()
                    self.maintain(stop, done=done)
                    bar = self._bar()
        except KeyboardInterrupt:  # in the middle of something: only what was saved before it is good
            stopping = True
        finally:
            bar.close()
        self._end(stopping=stopping)

    def next_batch(self) -> ImageBatch:
        """What `step` takes."""
        if self.progress.iteration % CHECK_INTERVAL == 0:
            self.guard.check()
        return next(self.loader)

    def _end(self, *, stopping: bool) -> None:
        problems = self.checkpoints.wait() + self.log.problems()
        if stopping and not problems:
            distributed.print0(f"Stopped at {self.saved_nimg / 1000:.1f} kimg, saved {self.pickles.last}. To resume: "
                               f"python train.py --resume={self.run_dir}", flush=True)
        elif not problems:
            distributed.print0(f"Done in {format_time(time.monotonic() - self.log.start_time)}: {self.pickles.last}")
        if self.problem is not None:
            distributed.any_rank(False)     # a rank that fails ends the run: rank 0 has saved first
            problems.insert(0, self.problem)
        if problems:
            raise UserError("; ".join(problems))

    def _bar(self) -> tqdm:
        """Progress within a tick, on a terminal only; ticks have lines of their own."""
        return tqdm(total=int(self.config.kimg_per_tick * 1000), desc=f"tick {self.progress.tick}", unit="img",
                    leave=False, disable=None if distributed.rank() == 0 else True)

    def step(self, batch: ImageBatch) -> None:
        """One iteration: every phase whose turn it is, then the moving average."""
        c = self.config
        images, labels = batch
        real_img = misc.upload(images, self.device).to(torch.float32) / 127.5 - 1
        real_c = misc.upload(labels, self.device)
        for index, phase in enumerate(self.phases):
            if self.progress.iteration % phase.interval == 0:
                self._run_phase(index, phase, real_img, real_c)
        if getattr(self.G, "w_avg", None) is not None:
            distributed.all_reduce_mean_(self.G.w_avg)
        update_ema(self.G_ema, self.G, ema_beta(batch_size=c.batch_size, cur_nimg=self.progress.nimg,
                                                ema_kimg=c.ema_kimg, ema_rampup=c.ema_rampup))
        training_stats.report("Progress/nonfinite_gradients", self.guard.end_iteration())
        training_stats.flush()
        self.progress.nimg += c.batch_size
        self.progress.iteration += 1
        if self.ada is not None and self.progress.iteration % c.augment.interval == 0:
            self.ada.adjust()

    def _run_phase(self, index: int, phase: Phase, real_img: torch.Tensor, real_c: torch.Tensor) -> None:
        """Accumulate the gradients of the batch, part by part, and update the phase's network."""
        parts = list(zip(real_img.split(self.config.batch_gpu), real_c.split(self.config.batch_gpu)))
        first_nimg = self.progress.nimg + distributed.rank() * len(real_img)
        phase.opt.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        for number, (img, c) in enumerate(parts):
            # Keyed by position, so that an interrupted run, or one on another number of GPUs, draws the same.
            key = (self.config.random_seed, first_nimg + number * self.config.batch_gpu, index)
            for term in phase.loss(draw_part(key, img, c, z_dim=self.G.z_dim, dataset=self.dataset)):
                (term * (phase.gain / len(parts))).backward()
        phase.module.requires_grad_(False)
        if phase.finish is not None:
            phase.finish()
        self.guard.process(phase.module)
        phase.opt.step()

    def maintain(self, stop: StopRequest, *, done: bool) -> None:
        """End a tick: status line, grids, pickle, training state, metrics, statistics."""
        c, progress = self.config, self.progress
        self.log.end_tick(progress, training_stats.collect(),
                          augment_p=current_strength(self.augment_pipe, self.ada))
        self.checkpoints.report()
        due = done or bool(c.snapshot_ticks) and progress.tick % c.snapshot_ticks == 0
        self.unfinished_tick = distributed.any_rank(due or self.checkpoints.overdue)
        if self.unfinished_tick:
            self.pickles.choose(progress.nimg, None if due else self.log.next_due_nimg(progress.tick))
            self._write_snapshot()
        self._save_state()      # before metrics, which take long
        self._finish_tick(stop)

    def _finish_tick(self, stop: StopRequest) -> None:
        if self.unfinished_tick:
            with stop.at_once():
                evaluate(self.config, self.G_ema, self.dataset, self.device, snapshot_pkl=self.pickles.last,
                         log=self.log, known=self.known_scores, stop=stop, settle=self.checkpoints.settle)
            if distributed.rank() == 0:
                self.checkpoints.prune()    # the scores are known now
        self.log.start_tick(self.progress)
        self.progress.tick += 1
        self.unfinished_tick, self.known_scores = None, {}

    def _write_snapshot(self) -> None:
        if distributed.rank() != 0:
            return
        c, pkl, self.checkpoints.overdue = self.config, self.pickles.last, False
        snapshot.save_pictures(pkl, self.G, self.D, self.G_ema, self.grid, config=c, save=self.checkpoints.save_file)
        kwargs = to_legacy_kwargs(c)["training_set_kwargs"]
        self.checkpoints.save_networks(pkl, networks=self.parts, training_set_kwargs=kwargs)

    def _save_state(self) -> None:
        state = run_state.capture(self)
        if distributed.rank() == 0:
            self.checkpoints.save_state(state, nimg=self.progress.nimg)
        self.saved_nimg = self.progress.nimg
