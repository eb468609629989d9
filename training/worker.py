"""One process of several that work together, started by `training.launch`."""

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
    """Train as the environment and the file at `path` say; returns the exit status."""
    job = Job.from_json(json.loads(Path(path).read_text()))
    return take_part(lambda: run_rank(job, log_errors=False), device=job.config.device,
                     timeout_sec=job.config.timeout_sec)


def take_part(work: Callable[[], None], **meeting: Any) -> int:
    """Meet the other processes, work, and leave; returns the exit status.

    A UserError is handed to the launcher, which says it once for all processes.

    Args:
        work:    What all processes do together.
        meeting: How they meet, for `distributed.join`.
    """
    threading.Thread(target=_end_with_launcher, daemon=True, name="launcher watch").start()
    try:
        distributed.join(**meeting)
        work()
        distributed.leave()
        return 0
    except KeyboardInterrupt:  # the launcher was asked, too, and says so
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
    os._exit(status)  # what is in flight to other processes can't be waited for


def _end_with_launcher() -> None:
    """End this process when the launcher is gone, which would otherwise end it together with the others."""
    launcher = int(os.environ[LAUNCHER_PID])
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(LOST)
