"""Trackers: programs that show statistics and pictures of a run while it trains. They don't change the run."""

import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, Sequence

import PIL.Image

from dnnlib.util import UserError

_PROJECT = "glead"      # The project name of runs in hosted trackers.


class Tracker(Protocol):
    """The interface of a tracker. Exceptions of any kind are reported, and training continues."""

    def scalars(self, values: Mapping[str, float], *, nimg: int) -> None:
        """Show the statistics of a tick that ended after `nimg` images."""

    def picture(self, name: str, img: PIL.Image.Image, *, nimg: int) -> None:
        """Show a small RGB picture. Another thread may call this, after the statistics of later ticks."""

    def close(self) -> None:
        """End with the process. The run may resume in another process."""


class TensorBoard:
    """Event files in the run directory.

    Args:
        start_nimg: Number of images where the run starts or resumes.
        step_nimg:  Images for each step on the axis.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], *, start_nimg: int, step_nimg: int):
        self._run_dir, self._step_nimg = run_dir, step_nimg
        self._open(start_nimg)

    def _open(self, start_nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # Here, because it takes a second to import.

        step = start_nimg // self._step_nimg
        self._writer = SummaryWriter(self._run_dir, purge_step=step + 1 if step else None)

    def scalars(self, values: Mapping[str, float], *, nimg: int) -> None:
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, global_step=nimg // self._step_nimg)
            self._writer.flush()
        except OSError:
            self._open(nimg)    # A writer that failed once can't be used again.
            raise

    def picture(self, name: str, img: PIL.Image.Image, *, nimg: int) -> None:
        import numpy as np

        self._writer.add_image(name, np.asarray(img), global_step=nimg // self._step_nimg, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases. $WANDB_MODE=offline keeps the run on this machine. A resumed run is continued there, too."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], **_: Any):
        wandb = importlib.import_module("wandb")
        self._image = wandb.Image
        # By default, wandb would capture what the run prints.
        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", _PROJECT), name=run_dir.name, id=_id(run_dir),
                               resume="allow", dir=str(run_dir), config=dict(config), settings={"console": "off"})
        self._run.define_metric("*", step_metric="Progress/kimg")   # wandb's own steps can't go back after resuming.

    def scalars(self, values: Mapping[str, float], *, nimg: int) -> None:
        self._run.log({**values, "Progress/kimg": nimg / 1000})

    def picture(self, name: str, img: PIL.Image.Image, *, nimg: int) -> None:
        self._run.log({name: self._image(img), "Progress/kimg": nimg / 1000})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio, which keeps runs on this machine, in $TRACKIO_DIR. `trackio show` opens them. Steps are images."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], **_: Any):
        trackio = importlib.import_module("trackio")
        self._image = trackio.Image
        self._run = trackio.init(project=_PROJECT, name=_id(run_dir), config=dict(config), resume="allow")

    def scalars(self, values: Mapping[str, float], *, nimg: int) -> None:
        self._run.log(dict(values), step=nimg)

    def picture(self, name: str, img: PIL.Image.Image, *, nimg: int) -> None:
        self._run.log({name: self._image(img)}, step=nimg)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def _id(run_dir: Path) -> str:
    """An identifier of a run. It stays when the run resumes, and runs of the same name in other folders have others."""
    return f"{run_dir.name}-{hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:8]}"


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if a tracker is unknown, or its package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--log is {','.join(names)}, expected a list of {', '.join(TRACKERS)}, or none")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--log names {name}, which is not installed: pip install {name}, or leave it out of --log")


class Trackers:
    """All trackers of a run. If a tracker fails, the others and the run continue. Its first failure gives a warning.

    Args:
        names:  Keys of `TRACKERS`.
        config: The run's configuration, as plain data.
        more:   `start_nimg` and `step_nimg`, as for `TensorBoard`.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any], **more: int):
        self._warned: set[str] = set()
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._guarded(name, self._start, name, run_dir, config, **more)

    def __bool__(self) -> bool:
        return bool(self._open)

    def _start(self, name: str, *args: Any, **more: int) -> None:
        self._open[name] = TRACKERS[name](*args, **more)

    def _guarded(self, name: str, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as e:  # Other people's programs may raise anything.
            if name not in self._warned:
                self._warned.add(name)
                reason = " ".join(str(e).split())[:300] or type(e).__name__
                print(f"Warning: {name} lacks a part of this run: {reason}; training continues", flush=True)

    def scalars(self, values: Mapping[str, float], *, nimg: int) -> None:
        for name, tracker in self._open.items():
            self._guarded(name, tracker.scalars, values, nimg=nimg)

    def picture(self, title: str, img: PIL.Image.Image, *, nimg: int) -> None:
        for name, tracker in self._open.items():
            self._guarded(name, tracker.picture, title, img, nimg=nimg)

    def close(self) -> None:
        trackers, self._open = self._open, {}   # Pictures that come later are not shown.
        for name, tracker in trackers.items():
            self._guarded(name, tracker.close)
