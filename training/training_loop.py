"""One training run: set up, then step and maintain until all images have been shown."""

import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dnnlib.util import UserError, format_time, open_url
from metrics import metric_main
from torch_utils import distributed, training_stats
from torch_utils.network_formats import read_networks

from . import snapshot
from .ada import build_augmentation
from .config import TrainingConfig, discriminator_kwargs, generator_kwargs, to_legacy_kwargs
from .dataset import ImageFolderDataset
from .ema import ema_beta, update_ema
from .interrupt import StopRequest
from .loader import BatchLoader, TrainingOrder
from .loss import Batch, StyleGAN2Loss
from .networks import Discriminator, Generator
from .phases import GradientGuard, Phase, build_phases
from .run_log import Progress, RunLog
from .tasks import build_tasks

_MAX_BAD_ITERATIONS = 100       # A run whose gradients stay non-finite for so long stops.
_CHECK_INTERVAL = 10            # Iterations between looks at that count, because a look waits for the device.


def run_training(config: TrainingConfig, run_dir: str) -> None:
    """Train as `config` says, leaving logs, grids and pickles in `run_dir`, which exists.

    Ctrl-C and SIGTERM finish the iteration, save, and return.

    Raises:
        UserError: Data became unreadable, or gradients stayed non-finite; what there was has been saved.
    """
    with StopRequest() as stop:
        try:
            with stop.at_once():
                trainer = Trainer(config, run_dir)
        except KeyboardInterrupt:
            print(f"Stopped while setting up: nothing was trained, and {run_dir} holds no networks.")
            return
        try:
            trainer.train(stop)
        finally:
            trainer.close()


class Trainer:
    """Everything that a run holds; `step` is one iteration, `maintain` what happens between ticks."""

    def __init__(self, config: TrainingConfig, run_dir: str):
        self.config = config
        self.run_dir = Path(run_dir)
        self.device = torch.device(config.device)
        self.progress = Progress()
        self.saved: Path | None = None
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        self._open_data()
        self._build_networks()
        self._start_logs()

    def _open_data(self) -> None:
        c = self.config.dataset
        self.dataset = ImageFolderDataset(
            c.path, resolution=c.resolution, use_labels=c.use_labels, max_size=c.max_size, xflip=c.xflip,
            random_seed=c.random_seed,
        )
        print(f"Training on {len(self.dataset)} images {self.dataset.image_shape}, labels {self.dataset.label_shape}")
        self.loader = BatchLoader(
            self.dataset, order=TrainingOrder(len(self.dataset), self.config.random_seed),
            batch_size=self.config.batch_size, start_index=self.progress.nimg, rank=distributed.rank(),
            num_ranks=distributed.world_size(), num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _build_networks(self) -> None:
        c = self.config
        torch.manual_seed(c.random_seed)
        self.G = Generator(**generator_kwargs(c)).train().requires_grad_(False).to(self.device)
        self.D = Discriminator(**discriminator_kwargs(c)).train().requires_grad_(False).to(self.device)
        self.G_ema = copy.deepcopy(self.G).eval()
        if c.resume is not None:
            self._start_from(c.resume)
        real_tasks, fake_tasks = build_tasks(c, self.G)
        self.augment_pipe, self.ada = build_augmentation(c, self.device)
        self.loss = StyleGAN2Loss(
            self.G, self.D, config=c.loss, real_tasks=real_tasks, fake_tasks=fake_tasks,
            augment=self.augment_pipe and self.augment_pipe.run, observe_real=self.ada and self.ada.observe,
        )
        self.phases = build_phases(c, self.loss)
        self.guard = GradientGuard(self.device)
        counts = {n: sum(p.numel() for p in getattr(self, n).parameters()) / 1e6 for n in ("G", "D")}
        print(f"Networks on {self.device}: G {counts['G']:.2f} M, D {counts['D']:.2f} M parameters")

    def _start_from(self, source: str) -> None:
        """Transfer learning: take over whatever fits from a network pickle, which may lack networks."""
        with open_url(source) as f:
            networks = read_networks(f, only=("G", "D", "G_ema"))
        snapshot.copy_matching(networks["G"] or networks["G_ema"], self.G, label=f"G of {source}")
        snapshot.copy_matching(networks["G_ema"] or networks["G"], self.G_ema, label=f"G_ema of {source}")
        if networks["D"] is None:
            print(f"{source} holds no D: it starts anew")
        else:
            snapshot.copy_matching(networks["D"], self.D, label=f"D of {source}")

    def _start_logs(self) -> None:
        self.grid = snapshot.choose_grid(self.dataset, z_dim=self.G.z_dim, seed=self.config.random_seed)
        snapshot.save_image_grid(self.run_dir / "reals.png", self.grid.images, columns=self.grid.columns)
        snapshot.save_fakes(self.run_dir / "fakes_init.png", self.G_ema, self.grid, batch_gpu=self.config.batch_gpu)
        self.log = RunLog(self.run_dir, total_kimg=self.config.total_kimg, device=self.device)

    def close(self) -> None:
        self.loader.close()
        self.log.close()

    def train(self, stop: StopRequest) -> None:
        """Step until all images have been shown or a stop is requested, with maintenance after each tick."""
        c = self.config
        total_nimg = int(c.total_kimg * 1000)
        print(f"Training for {c.total_kimg:g} kimg ...")
        bar = self._bar()
        try:
            while self.progress.nimg < total_nimg and not stop.requested:
                self.step()
                bar.update(c.batch_size)
                done = self.progress.nimg >= total_nimg
                tick_nimg = self.progress.nimg - self.log.tick_start_nimg
                if done or self.progress.tick == 0 or tick_nimg >= c.kimg_per_tick * 1000:
                    bar.close()
                    self.maintain(stop, done=done)
                    bar = self._bar()
        except KeyboardInterrupt:  # asked twice, or in the middle of a metric
            stop.requested = True
        except UserError:
            bar.close()
            self.save()
            raise
        bar.close()
        if stop.requested:
            self.save()
        else:
            print(f"Done in {format_time(time.monotonic() - self.log.start_time)}: {self.saved}")

    def _bar(self) -> tqdm:
        """Progress within a tick, on a terminal only; ticks have lines of their own."""
        return tqdm(total=int(self.config.kimg_per_tick * 1000), desc=f"tick {self.progress.tick}", unit="img",
                    leave=False, disable=None)

    def step(self) -> None:
        """One iteration: every phase whose turn it is, then the moving average."""
        c = self.config
        images, labels = next(self.loader)
        real_img = images.to(self.device, non_blocking=True).to(torch.float32) / 127.5 - 1
        real_c = labels.to(self.device, non_blocking=True)
        for index, phase in enumerate(self.phases):
            if self.progress.iteration % phase.interval == 0:
                self._run_phase(index, phase, real_img, real_c)
        beta = ema_beta(batch_size=c.batch_size, cur_nimg=self.progress.nimg, ema_kimg=c.ema_kimg,
                        ema_rampup=c.ema_rampup)
        update_ema(self.G_ema, self.G, beta)
        training_stats.report("Progress/nonfinite_gradients", self.guard.end_iteration())
        self.progress.nimg += c.batch_size
        self.progress.iteration += 1
        if self.ada is not None and self.progress.iteration % c.augment.interval == 0:
            self.ada.adjust()
        if self.progress.iteration % _CHECK_INTERVAL == 0:
            self._check_gradients()

    def _run_phase(self, index: int, phase: Phase, real_img: torch.Tensor, real_c: torch.Tensor) -> None:
        """Accumulate the gradients of the batch, part by part, and update the phase's network."""
        parts = list(zip(real_img.split(self.config.batch_gpu), real_c.split(self.config.batch_gpu)))
        phase.opt.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        for number, (img, c) in enumerate(parts):
            # Keyed by position, so that an interrupted run, or one on another number of GPUs, draws the same.
            part = distributed.rank() * len(parts) + number
            key = np.random.SeedSequence((self.config.random_seed, self.progress.nimg, index, part)).generate_state(2)
            torch.manual_seed(int(key[0]))
            gen_z = torch.randn([len(img), self.G.z_dim], device=self.device)
            batch = Batch(img, c, gen_z, self._draw_labels(len(img), int(key[1])))
            for term in phase.loss(batch):
                (term * (phase.gain / len(parts))).backward()
        phase.module.requires_grad_(False)
        self.guard.process(phase.module)
        phase.opt.step()

    def _draw_labels(self, n: int, seed: int) -> torch.Tensor:
        """Labels of random training images [n, c_dim]."""
        if self.G.c_dim == 0:
            return torch.zeros([n, 0], device=self.device)
        indices = np.random.RandomState(seed).randint(len(self.dataset), size=n)
        labels = torch.from_numpy(np.stack([self.dataset.get_label(int(i)) for i in indices]))
        return labels.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else labels

    def _check_gradients(self) -> None:
        bad = self.guard.consecutive_bad()
        if bad >= _MAX_BAD_ITERATIONS:
            raise UserError(
                f"gradients have been non-finite for {bad} iterations in a row: training has diverged. Start again "
                "from an earlier snapshot (--resume) with a higher --gamma, or with --fp32=true"
            )

    def maintain(self, stop: StopRequest, *, done: bool) -> None:
        """End a tick: status line, grids, pickle, metrics, statistics."""
        c, progress = self.config, self.progress
        strength = 0.0 if self.augment_pipe is None else float(self.augment_pipe.p)
        self.log.end_tick(progress, training_stats.collect(), augment_p=strength)
        if done or (c.snapshot_ticks and progress.tick % c.snapshot_ticks == 0):
            self._write_snapshot()
            with stop.at_once():  # weights are safe by now, and metrics take long
                self._evaluate()
        self.log.start_tick(progress)
        progress.tick += 1

    def _evaluate(self) -> None:
        """Score the averaged generator; a metric that can't be had is no reason to stop training."""
        c, shared = self.config, {}
        for metric in c.metrics:
            try:
                result = metric_main.calc_metric(
                    metric, G=self.G_ema, dataset=self.dataset, detector=c.detector, device=self.device,
                    batch_size=c.batch_gpu, num_gpus=distributed.world_size(), rank=distributed.rank(),
                    workers=c.workers, shared=shared, progress=sys.stderr.isatty(),
                )
            except UserError as e:
                print(f"Warning: no {metric} for {self.saved}: {e}")
                continue
            metric_main.report_metric(result, run_dir=self.run_dir, snapshot_pkl=str(self.saved))
            self.log.add_metrics(result.results)

    def _write_snapshot(self) -> None:
        kimg, c = f"{self.progress.nimg // 1000:06d}", self.config
        snapshot.save_fakes(self.run_dir / f"fakes{kimg}.png", self.G_ema, self.grid, batch_gpu=c.batch_gpu)
        if self.D.has_heads:
            path = self.run_dir / f"reconstructions{kimg}.png"
            snapshot.save_reconstructions(path, self.G, self.G_ema, self.D, self.grid, res_g=c.D.res_g)
        self.saved = snapshot.save_networks(
            self.run_dir, nimg=self.progress.nimg, training_set_kwargs=to_legacy_kwargs(c)["training_set_kwargs"],
            networks=dict(G=self.G, D=self.D, G_ema=self.G_ema, augment_pipe=self.augment_pipe),
        )

    def save(self) -> None:
        """Save the networks as they are, before the end, and say so."""
        self._write_snapshot()
        kimg = self.progress.nimg / 1000
        print(f"Stopped at {kimg:.1f} kimg. Saved {self.saved}; --resume={self.saved} starts from it.", flush=True)
