"""Starting a run in this process, or in several processes that this one starts and watches."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, Callable, NamedTuple

from dnnlib.util import UserError, atomic_write, check_writable, num_cores
from training.config import schema as configs
from training.config.schema import TrainingConfig
from training.runs import interrupt, run_dir

LOST, TOLD = 75, 65         # Exit statuses: the process lost contact with the others, or has reported its error.
LAUNCHER_PID = "GLEAD_LAUNCHER_PID"
_GRACE_SEC = 5              # After one process failed, the others have this time to end by themselves.
_INSIST_SEC = 1             # A signal that is repeated within this time counts once: it was sent to a process group.
_START_WORKER = ("import sys; sys.path[0] = sys.argv[1]; "
                 "from training.jobs.worker import main; sys.exit(main(sys.argv[2]))")


class Job(NamedTuple):
    """What every process of a run needs to know."""

    config: TrainingConfig
    run_dir: str
    resume: str | None = None   # Resume from this training state, or from the "newest" one in `run_dir`.
    outcome: str | None = None  # In the end, "finished" or "stopped" is written to this file.
    command: dict[str, Any] | None = None   # Options from the command line; saved with the options of the run.
    anyway: bool = False        # Resume even if the images have changed.

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "config": configs.to_json(self.config)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Job":
        return cls(**{**data, "config": configs.from_json(data["config"])})


def run(job: Job) -> None:
    """Train in `job.config.num_gpus` processes; returns when all are done.

    Raises:
        UserError: A process failed.
    """
    if job.config.num_gpus == 1:
        run_rank(job)
    else:
        _run_processes(job)


def run_rank(job: Job, *, log_errors: bool = True) -> None:
    """Train as the only process of the run, or as one of several. The log gets what they print.

    Args:
        log_errors: Write a UserError to the log. False = the launcher does so.

    Raises:
        UserError: The run ended early, or a GPU has too little memory.
    """
    import torch

    from torch_utils import distributed
    from training.training_loop import run_training

    def begin(fingerprint: str) -> None:
        if distributed.rank() == 0:
            write_options(job, fingerprint)
        open_log()

    errors, resumes = log_errors and distributed.rank() == 0, job.resume is not None
    with run_dir.tee_output(_log_path(job), errors=errors, wait=resumes) as open_log:
        build_kernels(job.config.device)
        try:
            run_training(job.config, job.run_dir, resume=job.resume, anyway=job.anyway, begin=begin)
        except torch.OutOfMemoryError as e:
            raise UserError(f"{str(e).strip().splitlines()[0]}: give a --batch-gpu below {job.config.batch_gpu}, or "
                            "free the GPU of other programs") from e
        if distributed.rank() == 0:
            _write_outcome(job)


def write_options(job: Job, fingerprint: str | None = None) -> None:
    """Write `training_options.json`.

    Args:
        fingerprint: Of the images; None = not known yet. Then the environment is left out of the file, too.

    Raises:
        UserError: The file can't be written.
    """
    known = {} if fingerprint is None else {
        "data_fingerprint": fingerprint, "environment": run_dir.describe_machine(job.config.device)}
    more = {"run_dir": os.path.abspath(job.run_dir), "command": job.command, **known}
    try:
        run_dir.write_options(job.run_dir, configs.to_legacy_kwargs(job.config) | more)
    except OSError as e:
        raise UserError(f"can't write the options of the run: {e.filename or job.run_dir}: {e.strerror or e}") from e


def check_gpus(device: str, num_gpus: int) -> None:
    """Raise UserError if `device` is "cuda" and this machine has fewer than `num_gpus` GPUs."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("PyTorch finds no CUDA device: say --device=cpu, or check the driver and PyTorch's build")
        if num_gpus > torch.cuda.device_count():
            raise UserError(f"--gpus is {num_gpus}, but this machine has {torch.cuda.device_count()}")


def build_kernels(device: str) -> None:
    """Build the CUDA kernels in one process for all. All processes call this. Does nothing on the CPU."""
    from torch_utils import distributed
    from torch_utils.ops.build import custom_ops

    distributed.rank0_first(lambda: custom_ops.prepare(distributed.current_device(device)))


def clear_outcome(path: str | None) -> None:
    """Delete the outcome file of an earlier run, so that it is not mistaken for that of this run.

    Raises:
        UserError: The file can't be deleted or written.
    """
    if path is not None:
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as e:
            raise UserError(f"--outcome: can't delete {path}: {e.strerror or e}") from e
        check_writable(path)


def _write_outcome(job: Job) -> None:
    from training.runs.resume import is_finished

    if job.outcome is not None:
        word = "finished" if is_finished(job.run_dir, job.config.total_kimg) else "stopped"
        try:
            with atomic_write(job.outcome) as f:
                f.write(f"{word}\n".encode())
        except OSError as e:
            raise UserError(f"--outcome: can't write {job.outcome}: {e.strerror or e}") from e


def _log_path(job: Job) -> str:
    return os.path.join(job.run_dir, "log.txt")


def _run_processes(job: Job) -> None:
    options = Path(job.run_dir, run_dir.OPTIONS_NAME)
    before, resumes = options.stat().st_mtime_ns, job.resume is not None
    with (tempfile.TemporaryDirectory(prefix="glead-") as folder,
          run_dir.tee_output(_log_path(job), wait=resumes) as open_log):
        path = Path(folder, "job.json")
        path.write_text(json.dumps(job.to_json()))
        root = Path(__file__).resolve().parents[2]  # which need not be the current folder
        try:
            run_together([sys.executable, "-c", _START_WORKER, str(root), str(path)], size=job.config.num_gpus)
        finally:
            if options.stat().st_mtime_ns != before:    # rank 0 rewrites the file once the state is restored
                open_log()


def run_together(
    command: list[str], *, size: int,
    meaning: str = "so the run ended; the same command resumes from its last training state", at_once: bool = False,
) -> None:
    """Run `size` processes, which meet by `distributed.join`, until all end. If one fails, the others are ended.

    Args:
        meaning: The end of the message that a process died: what this means for the user.
        at_once: End all processes by SIGTERM on a request to stop. False = pass the signal on; they end by themselves.

    Raises:
        UserError:         A process failed.
        KeyboardInterrupt: A request to stop came, with `at_once`; all processes have ended.
    """
    import torch

    from torch_utils import distributed

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port
    threads = max(num_cores() // size, 1)   # by default, every process would start one thread per core
    common = {
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", LAUNCHER_PID: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # Python cleans up the shared memory of a killed process, and would print a warning about it.
        "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"),
                                                 "ignore:resource_tracker:UserWarning"))),
    }
    if sys.platform == "linux":
        common["GLOO_SOCKET_IFNAME"] = "lo"     # by default, Gloo looks up the host's name, which may fail
    with _Processes(meaning=meaning, at_once=at_once) as processes:
        for rank in range(size):
            processes.start(command, {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        processes.wait(lambda: distributed.reported(store))


class _Processes:
    """Child processes that end together. Signals are passed on to them; with `at_once`, the first one ends them."""

    def __init__(self, *, meaning: str, at_once: bool) -> None:
        self._meaning, self._at_once = meaning, at_once
        self._children: list[subprocess.Popen] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._first_signal_sec: float | None = None

    def __enter__(self) -> "_Processes":
        for number in interrupt.SIGNALS:
            self._previous[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def start(self, command: list[str], env: dict[str, str]) -> None:
        # Signals stay blocked in the new process until it can handle them.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.SIGNALS)
        try:
            self._children.append(subprocess.Popen(command, env=env))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on. Children that got it, too, because it was sent to the process group, count it once."""
        now = time.monotonic()
        if self._first_signal_sec is None:
            self._first_signal_sec = now
            if self._at_once:
                raise KeyboardInterrupt
        elif self._at_once:
            return  # the children are being ended already
        elif now - self._first_signal_sec > _INSIST_SEC:
            raise UserError("stopped at once, as asked twice; the same command resumes from the last training state")
        for child in self._children:
            child.send_signal(number)

    def wait(self, reported: Callable[[], str | None]) -> None:
        """Wait until all have ended. The first failure ends the others.

        Args:
            reported: Returns the error that a process with the status LOST or TOLD reported.

        Raises:
            UserError: A process failed.
        """
        while True:
            codes = [child.poll() for child in self._children]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                self._end(_GRACE_SEC)  # the others notice the failure and end by themselves
                guilty = [rank for rank in failed if codes[rank] not in (LOST, TOLD)]
                message = None if guilty else reported()
                raise UserError(message or self._describe((guilty or failed)[0]))
            if None not in codes:
                return
            time.sleep(0.1)

    def _describe(self, rank: int) -> str:
        code = self._children[rank].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
        return f"rank {rank} of {len(self._children)} {how}, {self._meaning}"

    def _end(self, grace_sec: float = 0) -> None:
        stop = time.monotonic() + grace_sec
        for act in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
            for child in self._children:
                if act is not None and child.poll() is None:
                    act(child)
            while time.monotonic() < stop and any(child.poll() is None for child in self._children):
                time.sleep(0.05)
            stop = time.monotonic() + 2
        for child in self._children:
            child.wait()
