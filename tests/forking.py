"""Programs in forked processes, which have PyTorch imported already: seconds less than a new interpreter for each."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
import traceback
import types

_gate = None    # Pipe whose end is what the processes of a run wait for.


class Forked:
    """Stands in for `subprocess.Popen` of `python -c CODE ARGUMENT...`; its output goes where this process's goes.

    Processes of a run begin when all of them have been forked. Those that are busy with the launcher's store would have
    threads of it take locks, which another one, forked meanwhile, could never get.

    Args:
        command: The interpreter, which is not used, "-c", code, arguments.
        env:     The whole environment.
        output:  File for stdout and stderr; None = those of this process.
        session: Whether it leads a session of its own.
    """

    def __init__(self, command, env, *, output=None, session=False):
        _, dash_c, code, *arguments = command
        assert dash_c == "-c"
        self.returncode = None
        sys.stdout.flush()
        sys.stderr.flush()
        gate = _open_gate(env)
        self.pid = os.fork()
        if self.pid:
            _close_gate(env)
        else:
            status = 1
            try:
                if gate is not None:
                    os.close(gate[1])
                    os.read(gate[0], 1)
                if session:
                    os.setsid()
                _start_afresh(env, output)
                sys.argv = ["-c", *arguments]
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
                status = 0
            except SystemExit as e:
                status = e.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        stop = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if stop is not None and time.monotonic() > stop:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _open_gate(env):
    global _gate
    if env.get("RANK") == "0":
        _gate = os.pipe()
    return _gate if "RANK" in env else None


def _close_gate(env):
    """After the last process of a run."""
    if "RANK" in env and int(env["RANK"]) == int(env["WORLD_SIZE"]) - 1:
        for fd in _gate:
            os.close(fd)


def _start_afresh(env, output):
    """As far as it matters, be a new interpreter: its streams and environment, no connections, no statistics."""
    import torch

    from torch_utils import training_stats

    if output is not None:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))
    os.environ.clear()
    os.environ.update(env)
    training_stats.load_state_dict({})
    torch.set_num_threads(1)  # OpenMP's threads are not there any more after a fork, and would be waited for


def fork_ranks(launch, set_attribute=setattr):
    """Have `launch`, which is given, fork the processes of a run, and wait less for those that won't end."""
    set_attribute(launch, "subprocess", types.SimpleNamespace(Popen=Forked))
    set_attribute(launch, "_GRACE_SEC", 2)
