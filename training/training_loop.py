"""One training run: set up, then step and maintain until D has seen all images."""

import copy
import time
from pathlib import Path
from typing import Any, Callable

import torch

from dnnlib.util import UserError, format_time
from torch_utils import distributed, misc, training_stats
from torch_utils.state import Parts, capture

from . import snapshot
from .ada import build_augmentation, current_strength
from .build import build_networks
from .config.rivals import name_of
from .config.schema import TrainingConfig, to_json, to_legacy_kwargs
from .data.dataset import ImageFolderDataset
from .data.loader import BatchLoader, ImageBatch, TrainingOrder
from .draws import divide_batch
from .ema import ema_beta, update_ema
from .loss import StyleGAN2Loss
from .phases import CHECK_INTERVAL, GradientGuard, Phase, build_phases, optimizer_moments
from .rivals import build_extras
from .runs.checkpoints import Checkpoints, Keep, PickleNames
from .runs.evaluation import UnfinishedTick, evaluate
from .runs.interrupt import StopRequest
from .runs.run_log import Progress, RunLog
from .runs.training_state import find_state, resume_from


def run_training(config: TrainingConfig, run_dir: str, **trainer_kwargs: Any) -> None:
    """Train as `config` says. Logs, grids, pickles and training states go to `run_dir`, which must exist.

    Processes that have met by `distributed.join` share the work. On Ctrl-C, SIGTERM or SIGUSR1, the run finishes the
    iteration, saves, and returns. `trainer_kwargs` go to `Trainer`.

    Raises:
        UserError: Data became unreadable, gradients stayed non-finite, no state fits, or the last save failed.
    """
    with StopRequest(interruptible=distributed.world_size() == 1, quiet=distributed.rank() != 0) as stop:
        try:
            with stop.at_once():
                trainer = Trainer(config, run_dir, **trainer_kwargs)
        except KeyboardInterrupt:
            print(f"Stopped while setting up: nothing was trained in {run_dir} that is not saved.")
            return
        try:
            trainer.train(stop)
        finally:
            trainer.close()


class Trainer:
    """Everything that a run holds. `step` is one iteration; `maintain` is what happens between ticks.

    Args:
        resume: Resume from this training state, or from the "newest" good one in `run_dir`; None = start anew.
        anyway: Resume even if the images have changed.
        begin:  Called on all ranks with the fingerprint of the images, before anything in `run_dir` is changed.
    """

    def __init__(self, config: TrainingConfig, run_dir: str, *, resume: str | None = None, anyway: bool = False,
                 begin: Callable[[str], None] = lambda fingerprint: None):
        self.config, self.run_dir = config, Path(run_dir)
        self.device = distributed.current_device(config.device)
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        self.total_nimg = int(config.total_kimg * 1000)
        self.stopping = False               # Asked to stop, or a rank can't continue ...
        self.problem: str | None = None     # ... for this reason.
        state = None if resume is None else find_state(self.run_dir, resume)
        self._open_data()
        self._build_networks(start_from=None if state else config.resume)
        self._build_records()
        if state is not None:
            resume_from(state, self.parts(), run_dir=self.run_dir, dataset=self.dataset, anyway=anyway)
        self.saved_nimg = self.progress.nimg    # Position of the last training state.
        begin(self.dataset.fingerprint)
        self._start_logs(first_start=state is None)
        self._start_loader()

    def _open_data(self) -> None:
        c = self.config.dataset
        self.dataset = ImageFolderDataset(c.path, resolution=c.resolution, use_labels=c.use_labels, max_size=c.max_size,
                                          xflip=c.xflip, random_seed=c.random_seed)
        shapes = f"{self.dataset.image_shape}, labels {self.dataset.label_shape}"
        distributed.print0(f"Training on {len(self.dataset)} images {shapes}")

    def _build_networks(self, *, start_from: str | None) -> None:
        c = self.config
        torch.manual_seed(c.random_seed)
        self.G, self.D = (net.train().requires_grad_(False).to(self.device) for net in build_networks(c))
        self.G_ema = copy.deepcopy(self.G).eval()
        if start_from is not None:
            snapshot.start_from(start_from, self.G, self.D, self.G_ema)
        self.augment_pipe, self.ada = build_augmentation(c, self.device)
        self.loss = StyleGAN2Loss(
            self.G, self.D, config=c.loss, **build_extras(c, self.G, self.D),
            augment=getattr(self.ada or self.augment_pipe, "run", None),
            observe_real=self.ada.observe if self.ada else None,
        )
        self.phases = build_phases(c, self.loss)
        self.division = divide_batch(c, self.device)
        self.guard = GradientGuard(self.device)
        self.networks = {"G": self.G, "D": self.D, "G_ema": self.G_ema, "augment_pipe": self.augment_pipe}
        counts = {n: sum(p.numel() for p in self.networks[n].parameters()) / 1e6 for n in ("G", "D")}
        distributed.print0(f"Networks on {self.device.type}: G {counts['G']:.2f} M, D {counts['D']:.2f} M parameters")

    def _build_records(self) -> None:
        c = self.config
        self.progress = Progress()
        self.pickles = PickleNames(self.run_dir)
        self.tick = UnfinishedTick(self.run_dir, c.metrics)
        self.log = RunLog(self.run_dir, config=c, device=self.device, progress=self.progress)
        self.checkpoints = Checkpoints(self.run_dir, keep=Keep.parse(c.keep), metric=next(iter(c.metrics), None),
                                       snapshot_kimg=c.kimg_per_tick * max(c.snapshot_ticks, 1), method=name_of(c))

    def parts(self) -> Parts:
        """Everything with state, by its name in a training state, in the order in which it is restored."""
        return {
            "progress": self.progress,
            "networks": self.networks,
            "optimizers": optimizer_moments(self.phases),
            "loss": self.loss,
            "ada": self.ada,
            "guard": self.guard,
            "stats": training_stats,
            "log": self.log,
            "pickles": self.pickles,
            "tick": self.tick,
        }

    def _start_logs(self, *, first_start: bool) -> None:
        c, first_rank = self.config, distributed.rank() == 0
        self.grid = snapshot.choose_grid(self.dataset, z_dim=self.G.z_dim, seed=c.random_seed,
                                         size=c.grid_size) if first_rank else None
        self.log.open()
        if first_rank and first_start:
            snapshot.save_first_pictures(self.run_dir, self.G_ema, self.grid, batch_gpu=c.batch_gpu,
                                         save=self.log.shown(self.checkpoints.save_file))

    def _start_loader(self) -> None:
        self.loader = BatchLoader(
            self.dataset, order=TrainingOrder(len(self.dataset), self.config.random_seed),
            batch_size=self.config.batch_size, start_index=self.progress.nimg, rank=distributed.rank(),
            num_ranks=distributed.world_size(), num_workers=self.config.workers, pin_memory=self.device.type == "cuda",
        )

    def close(self) -> None:
        self.loader.close()
        self.log.close()
        self.checkpoints.close()

    def train(self, stop: StopRequest) -> None:
        """Train tick by tick until D has seen all images, or the run is stopped."""
        distributed.print0(f"Training for {self.config.total_kimg:g} kimg ...")
        try:
            if self.tick.pending:   # the run was ended in the middle of maintenance
                self._resume_tick(stop)
            while not self.stopping and self.progress.nimg < self.total_nimg:
                self._train_tick(stop)
                if self.stopping:
                    self._save_within_tick()
                else:
                    self.maintain(stop)
        except KeyboardInterrupt:  # in the middle of work: the run resumes from the last saved state
            self.stopping = True
        self._end()

    def _train_tick(self, stop: StopRequest) -> None:
        """Step until the tick is over, or the run is stopping."""
        over = False
        with self.log.progress_bar() as bar:
            while not over and not self.stopping:
                agreed = stop.agree(self.next_batch)
                if agreed.result is None:
                    self.stopping = True
                    self.problem = agreed.problem
                else:
                    self.step(agreed.result)
                    bar.update(self.config.batch_size)
                    over = self.log.is_tick_over()

    def _end(self) -> None:
        problems = self.checkpoints.wait() + self.log.problems()
        if self.stopping and not problems:
            saved = "" if self.pickles.last is None else f", saved {self.pickles.last}"
            distributed.print0(f"Stopped at {self.saved_nimg / 1000:.1f} kimg{saved}. To resume: "
                               f"python train.py --resume={self.run_dir}", flush=True)
        elif not problems:
            distributed.print0(f"Done in {format_time(time.monotonic() - self.log.start_time)}: {self.pickles.last}")
        if self.problem is not None:
            distributed.any_rank(False)     # wait until rank 0 has saved, because a failing rank ends the run
            problems.insert(0, self.problem)
        if problems:
            raise UserError("; ".join(problems))

    def next_batch(self) -> ImageBatch:
        """The images for `step`. Raises UserError if one is unreadable, or if training has diverged."""
        if self.progress.iteration % CHECK_INTERVAL == 0:
            self.guard.check()
        return next(self.loader)

    def step(self, batch: ImageBatch) -> None:
        """One iteration: the phases that are due, then the moving average of G."""
        c = self.config
        real_img = misc.upload(batch.images, self.device).to(torch.float32) / 127.5 - 1
        real_c = misc.upload(batch.labels, self.device)
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
        """Accumulate the gradients of the batch, and update the phase's network."""
        phase.module.requires_grad_(True)
        while not self._accumulate(index, phase, real_img, real_c):
            self.loss.forget_parts()    # the batch is computed again in smaller parts
        phase.module.requires_grad_(False)
        phase.finish()
        self.guard.process(phase.module)
        phase.opt.step()

    def _accumulate(self, index: int, phase: Phase, real_img: torch.Tensor, real_c: torch.Tensor) -> bool:
        """Compute the gradients of the batch part by part. Returns False if the GPU ran out of memory."""
        key = (self.config.random_seed, self.progress.nimg + distributed.rank() * len(real_img), index)
        batches = self.division.draw(real_img, real_c, key=key, z_dim=self.G.z_dim, dataset=self.dataset)
        try:
            phase.backward(batches, num=len(self.division.parts))
        except torch.OutOfMemoryError:
            if not self.config.fill_gpu or not self.division.halve():
                raise
            return False
        return True

    def maintain(self, stop: StopRequest) -> None:
        """End a tick: status line, grids, pickle, training state, metrics, statistics."""
        c, progress = self.config, self.progress
        self.log.end_tick(training_stats.collect(), augment_p=current_strength(self.augment_pipe, self.ada))
        self.checkpoints.report()
        at_end = progress.nimg >= self.total_nimg
        due = at_end or bool(c.snapshot_ticks) and progress.tick % c.snapshot_ticks == 0
        write = distributed.any_rank(due or self.checkpoints.overdue)
        if write:
            self.pickles.choose(progress.nimg, None if due else self.log.next_due_nimg())
            self._write_snapshot()
        self.tick.begin(self.pickles.last if write else None)
        self._save_state()      # before metrics, which take long
        self._finish_tick(stop)

    def _resume_tick(self, stop: StopRequest) -> None:
        """Finish the tick after which the state was saved. Its network pickle may be missing if the disk was full."""
        if self.tick.snapshot_pkl is not None and not self.tick.snapshot_pkl.exists():
            self._write_snapshot()
        self._finish_tick(stop)

    def _finish_tick(self, stop: StopRequest) -> None:
        if self.tick.snapshot_pkl is not None:
            with stop.at_once():
                evaluate(self.config, self.G_ema, self.dataset, self.device, tick=self.tick, log=self.log, stop=stop,
                         settle=self.checkpoints.settle)
            if distributed.rank() == 0:
                self.checkpoints.prune()    # the scores are known now
        self.log.start_tick()
        self.progress.tick += 1
        self.tick.end()

    def _save_within_tick(self) -> None:
        """Save before the run stops: first the state, which resuming needs, then an extra network pickle."""
        self.pickles.choose(self.progress.nimg, self.log.next_due_nimg())
        self._save_state()
        self._write_snapshot()

    def _write_snapshot(self) -> None:
        if distributed.rank() != 0:
            return
        pkl = self.pickles.last
        self.checkpoints.overdue = False
        snapshot.save_pictures(pkl, self.G, self.D, self.G_ema, self.grid, config=self.config,
                               save=self.log.shown(self.checkpoints.save_file))
        kwargs = to_legacy_kwargs(self.config)["training_set_kwargs"]
        self.checkpoints.save_networks(pkl, networks=self.networks, training_set_kwargs=kwargs)

    def _save_state(self) -> None:
        """All ranks call this together."""
        state = {"config": to_json(self.config), "dataset": self.dataset.fingerprint, **capture(self.parts())}
        if distributed.rank() == 0:
            self.checkpoints.save_state(state, nimg=self.progress.nimg)
        self.saved_nimg = self.progress.nimg
