"""One of several processes that `training.jobs.launch` starts."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from dnnlib.util import UserError
from torch_utils import distributed

from .launch import LAUNCHER_PID, LOST, TOLD, Job, run_rank


def main(path: str) -> int:
    """Run the `Job` in the JSON file at `path`; returns the exit status."""
    job = Job.from_json(json.loads(Path(path).read_text()))
    return take_part(lambda: run_rank(job, log_errors=False), device=job.config.device,
                     timeout_sec=job.config.timeout_sec)


def take_part(work: Callable[[], None], **join_kwargs: Any) -> int:
    """Join the other processes, work, and leave; returns the exit status.

    A UserError is reported to the launcher, which prints it once for all processes.

    Args:
        work:        What all processes do together.
        join_kwargs: Arguments of `distributed.join`.
    """
    threading.Thread(target=_end_with_launcher, daemon=True, name="launcher watch").start()
    try:
        distributed.join(**join_kwargs)
        work()
        distributed.leave()
        return 0
    except KeyboardInterrupt:  # the launcher got the request, too, and prints a message
        status = 128 + signal.SIGINT
    except Exception as e:
        problem = e if isinstance(e, UserError) else distributed.lost_rank(e)
        if problem is None:
            traceback.print_exc()
            status = 1
        else:
            distributed.first_to_report(str(problem))
            status = LOST if isinstance(problem, distributed.LostRank) else TOLD
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an ordinary exit would wait for communication with lost processes


def _end_with_launcher() -> None:
    """End this process when the launcher is gone, because nobody else would."""
    launcher = int(os.environ[LAUNCHER_PID])
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(LOST)
