"""Runs in several processes, whose processes die, hang, fail or are told to stop. With -s, prints a table of them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import forking
from dnnlib.util import UserError
from training.data.loader import TrainingOrder
from training.jobs import launch
from training.runs.training_state import list_states, read_state

FAULTY = Path(__file__).with_name("faulty.py")
FORKED = f"import sys; sys.path[:0] = [{str(FAULTY.parent)!r}]; import faulty; faulty.main(*sys.argv[1:], forks=True)"
TIMEOUT_SEC = 6     # Processes wait so long for one that hangs.
ROWS = []


pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    if ROWS:
        widths = [max(len(str(row[i])) for row in ROWS) for i in range(3)]
        print("\n" + "\n".join(" | ".join(str(cell).ljust(w) for cell, w in zip(row, widths)) for row in ROWS))


def arguments(data, outdir, *more):
    return ["--outdir", str(outdir), "--data", str(data), "--cfg=auto", "--cbase=64", "--cmax=8", "--map-depth=1",
            "--batch=8", "--batch-gpu=4", "--mbstd-group=4", "--kimg=0.064", "--tick=0.016", "--snap=0",
            "--device=cpu", "--workers=1", "--method=stylegan2", "--metrics=none", "--aug=noaug", "--timeout=60", *more]


class Running:
    """train.py in `num_processes` processes; they are forked, unless `command` starts new interpreters."""

    def __init__(self, tiny_dataset, folder, *more, fault="none", num_processes=2, command=None):
        self.outdir, self.notes, self.num_processes = folder / "runs", folder / "notes", num_processes
        self.notes.mkdir(exist_ok=True)
        self.log = folder / "printed.txt"
        env = dict(os.environ, OMP_NUM_THREADS="1", FAULTY_NOTES=str(self.notes), PYTHONUNBUFFERED="1")
        gpus = [] if command == TORCHRUN else [f"--gpus={num_processes}"]
        said = [fault, *arguments(tiny_dataset, self.outdir, *gpus, *more)]
        if command is None:
            self.log.touch()
            self.process = forking.Forked(["python", "-c", FORKED, *said], env, output=self.log, session=True)
            return
        with open(self.log, "w") as f:
            self.process = subprocess.Popen([*command, FAULTY, *said], stdout=f, stderr=f, env=env,
                                            start_new_session=True)

    @property
    def run_dir(self):
        (run_dir,) = [p for p in self.outdir.iterdir() if p.is_dir()]
        return run_dir

    @property
    def printed(self):
        return self.log.read_text()

    def wait_for(self, text):
        stop = time.monotonic() + 90
        while text not in self.printed:
            assert self.process.poll() is None and time.monotonic() < stop, self.printed
            time.sleep(0.05)

    def pids(self):
        """Of the ranks, by rank."""
        return {int(r): int(p) for r, p in map(str.split, (self.notes / "pids").read_text().splitlines())}

    def end(self, *, status):
        """Wait for the end; nobody may be left."""
        assert self.process.wait(120) == status, self.printed
        stop = time.monotonic() + 5
        while any(Path("/proc", str(pid)).exists() for pid in self.pids().values()) and time.monotonic() < stop:
            time.sleep(0.05)
        left = [pid for pid in self.pids().values() if Path("/proc", str(pid)).exists()]
        assert not left, (left, self.printed)
        return self.printed


PYTHON = (sys.executable, "-u")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=2",
            "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")


def errors(printed):
    return [line for line in printed.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("number, target, command", [
    (signal.SIGTERM, "launcher", None), (signal.SIGINT, "group", PYTHON), (signal.SIGUSR1, "rank 1", None)])
def test_a_signal_to_any_of_them_saves_and_ends_all(tiny_dataset, tmp_path, number, target, command):
    outcome = tmp_path / "outcome.txt"
    running = Running(tiny_dataset, tmp_path, "--kimg=1000", f"--outcome={outcome}", command=command)
    running.wait_for("tick 1 ")
    if target == "group":
        os.killpg(running.process.pid, number)
    else:
        os.kill(running.process.pid if target == "launcher" else running.pids()[1], number)
    printed = running.end(status=0)
    (stopped,) = re.findall(r"Stopped at ([0-9.]+) kimg, saved \S+ To resume: python train.py --resume=(\S+)", printed)
    assert outcome.read_text() == "stopped\n"
    assert stopped[1] == str(running.run_dir) and printed.count("Stopping after this iteration") <= 1
    assert "Traceback" not in printed and "resource_tracker" not in printed and not errors(printed)
    state = list_states(running.run_dir)[0]
    assert f"{state.nimg / 1000:.1f}" == stopped[0] and read_state(state.path)["progress"]["nimg"] == state.nimg
    ROWS.append((f"{number.name} to {target}, 2 processes", "iteration finished, saved, exit status 0", "nothing"))


def test_a_signal_while_processes_start(tiny_dataset, tmp_path):
    running = Running(tiny_dataset, tmp_path, "--kimg=1000", command=PYTHON)
    while not (running.notes / "pids").exists():
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    printed = running.end(status=0)
    assert "Stopped" in printed and not errors(printed) and "Traceback" not in printed
    ROWS.append(("SIGTERM while 2 processes start", "set-up finished, saved, exit status 0", "nothing"))


FAULTS = {  # What is said, where it happened, and the training state that is left.
    "1:3:kill": ("rank 1 of 2 was ended by SIGKILL, so the run ended; the same command resumes", "rank 1: SIGKILL", 24),
    "1:3:stop": ("rank 1 died, was stopped, or lost the network: rank 0 lost contact", "rank 1: SIGSTOP", 24),
    "0:3:sleep": (f"rank 0 did not answer within {TIMEOUT_SEC} s", "rank 0: sleeps for ever", 24),
    "1:3:bug": ("rank 1 of 2 failed with status 1, so the run ended", "rank 1: bug in the program", 24),
    "1:4:image": ("can't read 00000/img00000007.png", "rank 1: image unreadable", 32),
    "1:0:setup": (f"rank 1 did not answer within {TIMEOUT_SEC} s", "rank 1: hangs in set-up", None),
    "1:0:metric": (f"rank 1 did not answer within {TIMEOUT_SEC} s", "rank 1: hangs in a metric", 24),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_message_names_the_rank_that_failed(tiny_dataset, tiny_net, tmp_path, fault):
    said, what, nimg = FAULTS[fault]
    kind = fault.rpartition(":")[2]
    more = [f"--timeout={TIMEOUT_SEC}"] if kind in ("stop", "sleep", "setup", "metric") else []
    more += [f"--detector={tiny_net}", "--metrics=fid1k", "--snap=1"] if kind == "metric" else []
    running = Running(tiny_dataset, tmp_path, *more, fault=fault)
    running.wait_for("Training for" if kind == "setup" else "tick 1 " if kind == "metric" else "tick 0 ")
    begin = time.monotonic()
    printed = running.end(status=1)
    took = time.monotonic() - begin
    (error,) = errors(printed)
    assert said in error
    assert took < TIMEOUT_SEC + 2 + 5 + 2 + 10, "timeout, naming, grace, SIGTERM; and some for a busy machine"
    log = (running.run_dir / "log.txt").read_text()
    assert error in log and "resource_tracker" not in printed
    assert printed.count("Traceback") == (1 if kind == "bug" else 0), printed
    assert ("ZeroDivisionError: a bug" in log) == (kind == "bug")
    if kind == "metric":  # the first time it failed, on one process, and training went on
        assert printed.count("Warning: no fid1k for ") == 1 and ": the feature net is gone\n" in printed
    states = list_states(running.run_dir)
    assert (states[0].nimg if states else None) == nimg and (nimg is None or read_state(states[0].path))
    lost = dict(image="nothing", setup="nothing").get(kind, "since the last tick")
    ROWS.append((what, f"ended after {took:.0f} s: {error[:70]} ...", lost))


def test_ranks_end_with_their_launcher(tiny_dataset, tmp_path):
    running = Running(tiny_dataset, tmp_path, "--kimg=1000")
    running.wait_for("tick 1 ")
    running.process.kill()
    running.end(status=-signal.SIGKILL)
    assert read_state(list_states(running.run_dir)[0].path)
    ROWS.append(("launcher: SIGKILL", "ranks end within 2 s", "since the last tick"))


def test_two_runs_at_once_and_a_run_that_goes_on_with_other_numbers(tiny_dataset, tmp_path):
    """Every image of the training order is read once, whatever the number of processes."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    both = [Running(tiny_dataset, folder, "--kimg=0.024", "--workers=0", "--batch-gpu=2") for folder in folders]
    for running in both:
        running.end(status=0)
    continued = []
    for running, size in zip(both, (1, 4)):
        (running.outdir.parent / "more").mkdir()
        continued.append(Running(tiny_dataset, running.outdir.parent / "more", f"--resume={running.run_dir}",
                                 "--kimg=0.048", "--workers=0", "--batch-gpu=2", num_processes=size))
    for running, more in zip(both, continued):
        assert more.process.wait(120) == 0, more.printed
        read = {}
        for notes in (running.notes, more.notes):
            for line in (notes / "indices").read_text().splitlines():
                position, *indices = map(int, line.split())
                for offset, index in enumerate(indices):
                    assert position + offset not in read, "read twice"
                    read[position + offset] = index
        assert [read[k] for k in range(48)] == TrainingOrder(48, 0).take(0, 48).tolist() and len(read) == 48
    ROWS.append(("2 processes, going on with 1 or 4", "the next images follow", "nothing"))


def test_torchrun_heals_a_run_that_lost_a_process(tiny_dataset, tmp_path):
    outcome = tmp_path / "outcome.txt"
    running = Running(tiny_dataset, tmp_path, "--kimg=0.16", f"--outcome={outcome}", command=TORCHRUN)
    running.wait_for("tick 2 ")
    killed = running.pids()[1]
    os.kill(killed, signal.SIGKILL)
    printed = running.end(status=0)
    assert running.pids()[1] != killed and "Resuming from" in printed and "Done in" in printed
    assert list_states(running.run_dir)[0].nimg == 160 and outcome.read_text() == "finished\n"
    ROWS.append(("torchrun --max-restarts, rank 1: SIGKILL", "goes on by itself to the end", "since the last tick"))


# ----------------------------------------------------------------------------------------------------------------------
# Work that the first process of each machine does before the others.

FIRST = """
import os, sys, time
from dnnlib.util import UserError
from torch_utils import distributed
from training.jobs.launch import LOST
notes, kind, per_machine = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
os.environ.update(LOCAL_RANK=str(rank % per_machine), GROUP_RANK=str(rank // per_machine),
                  GROUP_WORLD_SIZE=str(size // per_machine))
distributed.join(device="cpu", timeout_sec=60)

def note(what):
    with open(notes, "a") as f:
        f.write(f"{what} {rank}\\n")

def work():
    note("begins")
    if kind == "dies" and rank == 0:
        os.kill(os.getpid(), 9)
    time.sleep(0.5 * (rank + 1) if rank % per_machine == 0 else 0)
    note("ends")

try:
    for _ in range(2):
        distributed.rank0_first(work)
        note("goes on")
except UserError as e:
    distributed.first_to_report(str(e))
    os._exit(LOST)
distributed.leave()
"""


@pytest.fixture
def run_first(tmp_path, monkeypatch):
    def run(kind, *, size, per_machine):
        forking.fork_ranks(launch, monkeypatch.setattr)
        launch.run_together(["python", "-c", FIRST, str(tmp_path / "order"), kind, str(per_machine)], size=size)
        return [(line[:-2], int(line[-1])) for line in (tmp_path / "order").read_text().splitlines()]

    return run


def test_the_first_process_of_each_machine_is_first(run_first):
    order = run_first("is slow", size=4, per_machine=2)
    for turn in range(2):
        places = {note: [i for i, other in enumerate(order) if other == note][turn] for note in set(order)}
        firsts = [places["ends", 0], places["ends", 2]]
        assert max(places["begins", 0], places["begins", 2]) < min(firsts), "both machines at once"
        for rank in (1, 3):
            assert max(firsts) < places["begins", rank] < places["ends", rank] < places["goes on", rank]
        assert max(firsts) < min(places["goes on", rank] for rank in range(4)), "all firsts before any other"


def test_a_first_process_that_is_lost_ends_all(run_first, tmp_path):
    with pytest.raises(UserError, match="rank 0 of 2 was ended by SIGKILL"):
        run_first("dies", size=2, per_machine=2)
    assert (tmp_path / "order").read_text() == "begins 0\n"
