"""Train on two machines, cut the network between them in the middle, mend it, and resume.

    python benchmarks/two_machines.py [--timeout=10] [--rendezvous=static|c10d] [--out=FILE.json]

The machines are two network namespaces of this one, joined by a virtual cable: each has interfaces, addresses and a
loopback of its own, and they share the files, as machines with a network file system do. Needs Linux, util-linux
(unshare, nsenter), iproute2 (ip), and root or the right to make user namespaces; nothing of it is left behind. Both
run `train_scripts/cluster/several-nodes.sh` over gloo, with a tiny network. Exit status 1 if this does not hold:

    after the cut    both machines end with status 1 (137: torchrun had to be ended) and a message, within `limit_sec`
    what is left     the newest training state is good
    after mending    the same commands resume from that state, and end with status 0
    in the end       the networks are, bit for bit, those of a run that was not cut (--compare)
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import click
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from dnnlib.util import UserError  # noqa: E402

SCRIPT = ROOT / "train_scripts" / "cluster" / "several-nodes.sh"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "cable"
PORT = 29500
LINGER_SEC = 5          # With c10d's rendezvous: torchrun that was cut off is ended so long after train.py.
KIMG = 0.3
TICK_KIMG = 0.032
TRAINING = ("--cfg=auto", "--method=stylegan2", "--aug=ada", "--cbase=128", "--cmax=8", "--map-depth=1", "--batch=8",
            "--batch-gpu=4", "--mbstd-group=2", f"--kimg={KIMG}", f"--tick={TICK_KIMG}", "--snap=0", "--device=cpu",
            "--workers=0", "--metrics=none")  # fmt: skip
START_SEC = 120         # PyTorch's import, on a busy machine.
INSIDE = "GLEAD_INSIDE_NAMESPACE"


def missing() -> str | None:
    """Why two machines can't be had here; None if they can."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    try:
        with TwoMachines():
            return None
    except UserError as e:
        return str(e)


def time_limit(timeout_sec: float, rendezvous: str) -> float:
    """Seconds from the cut until both machines have ended: the --timeout that they wait for each other, a few to ask
    whose heart stopped, which the side without the store has to give up, and torchrun's own end on a busy machine,
    which `several-nodes.sh` may have to bring about."""
    return timeout_sec + 15 + (LINGER_SEC if rendezvous == "c10d" else 0)


class TwoMachines:
    """Two network namespaces and the cable between them; they end with this object."""

    def __init__(self) -> None:
        self._keepers: list[subprocess.Popen] = []

    def __enter__(self) -> "TwoMachines":
        try:
            for _ in ADDRESSES:
                self._keepers.append(self._keep())
            first, second = (str(keeper.pid) for keeper in self._keepers)
            self._ip(0, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
            for node, address in enumerate(ADDRESSES):
                self._ip(node, "addr", "add", f"{address}/24", "dev", INTERFACE)
                self._ip(node, "link", "set", "lo", "up")
                self._ip(node, "link", "set", INTERFACE, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for keeper in self._keepers:
            keeper.kill()
            keeper.wait()

    @staticmethod
    def _keep() -> subprocess.Popen:
        """A process that holds a new network namespace open, for as long as this program lives."""
        command = ["unshare", "--net", "sh", "-c", "echo; read line"]
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if not keeper.stdout.readline():
            raise UserError(f"no network namespace here: {keeper.communicate()[1].decode().strip()}")
        return keeper

    def inside(self, node: int, *command: str) -> list[str]:
        """The command line that runs `command` on a machine."""
        return ["nsenter", f"--net=/proc/{self._keepers[node].pid}/ns/net", *command]

    def _ip(self, node: int, *arguments: str) -> None:
        done = subprocess.run(self.inside(node, "ip", *arguments), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"no virtual network here: ip {' '.join(arguments)}: {done.stderr.strip()}")

    def cut(self) -> None:
        self._ip(1, "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        self._ip(1, "link", "set", INTERFACE, "up")


class End(NamedTuple):
    """How the command of one machine ended."""

    status: int
    sec: float      # Since the cut or, without one, since the start.
    message: str    # The last error line, or what was trained.


class Run:
    """The commands of both machines, running."""

    def __init__(self, machines: TwoMachines, folder: Path, name: str, arguments: list[str], *, rendezvous: str):
        self._logs = [folder / f"{name}-node{node}.log" for node in range(len(ADDRESSES))]
        self._start = time.monotonic()
        self._processes = []
        env = {**os.environ, "GLEAD_PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": INTERFACE}
        for node, log in enumerate(self._logs):
            meet = [f"--node={node}"]
            if rendezvous == "c10d":  # both have one host name: say who keeps the store, and how each is reached
                meet = [f"--linger={LINGER_SEC}", f"--torchrun=--rdzv-conf=is_host={node == 0:d}",
                        f"--torchrun=--local-addr={ADDRESSES[node]}"]
            command = ["bash", str(SCRIPT), "--nodes=2", f"--master={ADDRESSES[0]}:{PORT}", "--per-node=1", *meet,
                       *arguments]
            with open(log, "wb") as f:
                self._processes.append(subprocess.Popen(machines.inside(node, *command), env=env, stdout=f,
                                                        stderr=subprocess.STDOUT, start_new_session=True))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                family = psutil.Process(process.pid)
                for member in (*family.children(recursive=True), family):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
            process.wait()

    def text(self, node: int) -> str:
        return self._logs[node].read_text(errors="replace")

    def wait_for_tick(self, tick: int) -> None:
        while not re.search(rf"^tick {tick} ", self.text(0), re.MULTILINE):
            if any(process.poll() is not None for process in self._processes):
                raise UserError(f"training ended before tick {tick}:\n{self.text(0)[-2000:]}\n{self.text(1)[-2000:]}")
            if time.monotonic() - self._start > START_SEC:
                raise UserError(f"no tick {tick} within {START_SEC} s:\n{self.text(0)[-2000:]}\n{self.text(1)[-2000:]}")
            time.sleep(0.05)

    def wait(self, *, since: float | None = None, limit_sec: float) -> list[End]:
        """How both ended; what has not ended within the limit is ended, with status None."""
        since = self._start if since is None else since
        times: list[float | None] = [None] * len(self._processes)
        while None in times and time.monotonic() - since < limit_sec:
            for node, process in enumerate(self._processes):
                if times[node] is None and process.poll() is not None:
                    times[node] = time.monotonic() - since
            time.sleep(0.05)
        statuses = [process.poll() for process in self._processes]
        self.__exit__()
        return [End(status, sec if sec is not None else limit_sec, self._last_message(node))
                for node, (status, sec) in enumerate(zip(statuses, times))]

    def _last_message(self, node: int) -> str:
        lines = [line for line in self.text(node).splitlines() if line.startswith(("Error: ", "Done in "))]
        return lines[-1] if lines else ""


def networks_digest(outdir: Path) -> str:
    """Digest of all tensors of the networks in the newest training state under `outdir`."""
    state = newest_state(outdir)
    digest = hashlib.sha256()
    for name, tensors in sorted(state["networks"].items()):
        for key, tensor in sorted(tensors.items()):
            digest.update(f"{name}.{key}".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def newest_state(outdir: Path) -> dict[str, Any]:
    """The newest training state of the only run under `outdir`; it must be good, older ones don't count."""
    from training.runs.training_state import list_states, read_state

    (run_dir,) = outdir.iterdir()
    return read_state(list_states(run_dir)[0].path)


def observe(
    machines: TwoMachines, folder: Path, *, data: str, timeout_sec: float, rendezvous: str, compare: bool
) -> dict[str, Any]:
    """Train, cut, mend, resume. Returns the figures, and under "problems" what did not hold."""
    problems: list[str] = []
    common = [f"--data={data}", f"--timeout={timeout_sec:g}", *TRAINING]

    def start(name: str) -> Run:
        outdir = folder / ("whole" if name == "whole" else "cut")
        return Run(machines, folder, name, [f"--outdir={outdir}", *common], rendezvous=rendezvous)

    print("Training on two machines", flush=True)
    with start("first") as run:
        run.wait_for_tick(2)
        machines.cut()
        cut_time = time.monotonic()
        print("Cut the cable", flush=True)
        after_cut = run.wait(since=cut_time, limit_sec=time_limit(timeout_sec, rendezvous))
    _show(after_cut)
    failed = (1, 128 + signal.SIGKILL) if rendezvous == "c10d" else (1,)
    for node, end in enumerate(after_cut):
        if end.status not in failed or not end.message.startswith("Error: "):
            problems.append(f"machine {node} ended with status {end.status} and the message {end.message!r}")
            print(f"The last lines of machine {node}:\n{run.text(node)[-3000:]}", flush=True)
    nimg = newest_state(folder / "cut")["progress"]["nimg"]
    print(f"The newest training state is good, of {nimg} images", flush=True)

    machines.mend()
    print("Mended the cable, same commands again", flush=True)
    with start("second") as run:
        after_mending = run.wait(limit_sec=START_SEC)
        log = run.text(0)
    _show(after_mending)
    went_on = re.findall(r"^Resuming from .*training-state-0*(\d+)\.pt$", log, re.MULTILINE)
    if went_on != [str(nimg)]:
        problems.append(f"resumed from {went_on} images, expected {nimg}")
    problems += [f"after mending, machine {node} ended with status {end.status}"
                 for node, end in enumerate(after_mending) if end.status != 0]
    figures = dict(timeout_sec=timeout_sec, limit_sec=time_limit(timeout_sec, rendezvous), rendezvous=rendezvous,
                   after_cut=[end._asdict() for end in after_cut], state_nimg=nimg,
                   after_mending=[end._asdict() for end in after_mending])
    if compare:
        with start("whole") as run:
            run.wait(limit_sec=START_SEC)
        figures["same_as_uncut"] = networks_digest(folder / "cut") == networks_digest(folder / "whole")
        print(f"Networks are those of a run that was not cut: {figures['same_as_uncut']}", flush=True)
        if not figures["same_as_uncut"]:
            problems.append("the networks differ from those of a run that was not cut")
    return dict(figures, problems=problems)


def _show(ends: list[End]) -> None:
    for node, end in enumerate(ends):
        print(f"  machine {node}: status {end.status} after {end.sec:.1f} s: {end.message}", flush=True)


@contextlib.contextmanager
def _dataset(path: str | None, folder: Path) -> Iterator[str]:
    if path is None:
        path = str(folder / "scenes.zip")
        subprocess.run([sys.executable, str(ROOT / "dataset_tool.py"), "--source=synthetic", "--resolution=16",
                        "--max-images=64", f"--dest={path}"], check=True, capture_output=True)
    yield path


@click.command()
@click.option("--data", type=click.Path(exists=True), help="Train on this dataset.  [default: drawn scenes of 16x16]")
@click.option("--timeout", default=10.0, show_default=True, type=click.FloatRange(min=1), help="train.py's --timeout.")
@click.option("--rendezvous", default="static", show_default=True, type=click.Choice(["static", "c10d"]))
@click.option("--compare/--no-compare", default=True, show_default=True, help="Also train without a cut.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
@click.option("--check", is_flag=True, help="Say whether two machines can be had here, and stop.")
def main(data: str | None, timeout: float, rendezvous: str, compare: bool, out: str | None, check: bool) -> None:
    if os.geteuid() != 0 and INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--net", sys.executable, *sys.argv])
    reason = missing()
    if reason is not None:
        raise click.ClickException(reason)
    if check:
        return
    with tempfile.TemporaryDirectory(prefix="glead-") as folder, TwoMachines() as machines:
        with _dataset(data, Path(folder)) as path:
            figures = observe(machines, Path(folder), data=path, timeout_sec=timeout, rendezvous=rendezvous,
                              compare=compare)
    from benchmarks.measuring import save_results  # imports PyTorch, which only this process needs, and late

    save_results(out, machines="two network namespaces", **figures)
    if figures["problems"]:
        raise click.ClickException("; ".join(figures["problems"]))


if __name__ == "__main__":
    main()
