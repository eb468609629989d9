"""Runs train.py with faults in its processes: python faulty.py FAULT ARGUMENTS. FAULT is none, or RANK:WHEN:KIND.

WHEN is the number of an iteration, or of a call of what a kind is about. Each process writes `RANK PID` lines and the
dataset indices that it reads to the folder $FAULTY_NOTES, if that is set.
"""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

START_WORKER = ("import sys; sys.path[0] = sys.argv[1]; sys.path.insert(1, {folder!r}); import faulty; "
                "faulty.install({fault!r}); from training.jobs.worker import main; sys.exit(main(sys.argv[2]))")


def note(name, text):
    folder = os.environ.get("FAULTY_NOTES")
    if folder:
        with open(Path(folder, name), "a") as f:
            f.write(text + "\n")


def install(fault):
    """Have this process notice what it reads, and fail as `fault` says."""
    from training import snapshot
    from training.data import loader

    snapshot._MAX_CELLS = 2  # pictures take most of the time of a small run
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
    rank, when, kind = fault.split(":")
    if me == int(rank):
        before(*place(kind), act=lambda number: fail(kind, number - int(when)))


def place(kind):
    """The function in which a fault happens."""
    from metrics import detectors
    from training import training_loop
    from training.data import loader

    if kind == "image":
        return loader.BatchLoader, "__next__"
    if kind == "metric":
        return detectors, "load_feature_net"
    if kind == "setup":
        return training_loop.Trainer, "_build_networks"
    return training_loop.Trainer, "step"


def fail(kind, late):
    """Called each time; `late` is 0 when it is time."""
    from dnnlib.util import UserError

    if kind == "metric":  # fails, and hangs the next time
        if late == 0:
            raise UserError("the feature net is gone")
        late -= 1
    if late == 0:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind in ("sleep", "setup", "metric"):
            time.sleep(1000)
        if kind == "bug":
            raise ZeroDivisionError("a bug")
        if kind == "image":
            raise UserError("can't read 00000/img00000007.png: it is gone")


def before(owner, name, *, act):
    """Have `act` called before each call of a function, with how many there were before it."""
    original, calls = getattr(owner, name), []

    def replacement(*args, **kwargs):
        calls.append(name)
        act(len(calls) - 1)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def main(fault, *arguments, forks):
    """Args: forks: processes are forked, not started."""
    from training.jobs import launch

    launch._START_WORKER = START_WORKER.format(folder=str(Path(__file__).parent), fault=fault)
    if forks:
        import forking

        forking.fork_ranks(launch)
    if "RANK" in os.environ or "--gpus=1" in arguments:
        install(fault)  # started by torchrun, or to train in this process
    import train

    train.main(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:], forks=False)
