"""Runs train.py with faults in its processes: python faulty.py FAULT ARGUMENTS. FAULT is RANK:ITERATION:KIND, or none.

Each process writes `RANK PID` lines and the dataset indices that it reads to the folder $FAULTY_NOTES, if that is set.
"""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

START_WORKER = ("import sys; sys.path[0] = sys.argv[1]; sys.path.insert(1, {folder!r}); import faulty; "
                "faulty.install({fault!r}); from training.worker import main; sys.exit(main(sys.argv[2]))")


def note(name, text):
    folder = os.environ.get("FAULTY_NOTES")
    if folder:
        with open(Path(folder, name), "a") as f:
            f.write(text + "\n")


def install(fault):
    """Have this process notice what it reads, and fail as `fault` says."""
    from dnnlib.util import UserError
    from training import loader, snapshot, training_loop

    snapshot._MIN_CELLS, snapshot._GRID_PIXELS = (2, 2), (32, 32)  # pictures take most of the time of a small run
    me = int(os.environ.get("RANK", "0"))
    note("pids", f"{me} {os.getpid()}")
    original_indices = loader.BatchLoader._next_indices

    def next_indices(self):
        position = self._position
        indices = original_indices(self)
        note("indices", f"{position} {' '.join(map(str, indices))}")
        return indices

    loader.BatchLoader._next_indices = next_indices
    if fault == "none":
        return
    rank, iteration, kind = fault.split(":")
    original_step = training_loop.Trainer.step

    def step(self):
        if me == int(rank) and self.progress.iteration == int(iteration):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "sleep":
                time.sleep(1000)
            if kind == "bug":
                raise ZeroDivisionError("a bug")
            if kind == "image":
                raise UserError("can't read 00000/img00000007.png: it is gone")
        original_step(self)

    training_loop.Trainer.step = step


if __name__ == "__main__":
    from training import launch

    launch._START_WORKER = START_WORKER.format(folder=str(Path(__file__).parent), fault=sys.argv[1])
    if "RANK" in os.environ or "--gpus=1" in sys.argv:
        install(sys.argv[1])  # started by torchrun, or to train in this process
    import train

    train.main(sys.argv[2:])
