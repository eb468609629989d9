"""One process of a run on several, started by `training.launch`."""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from dnnlib.util import UserError
from torch_utils import distributed

from .launch import LAUNCHER_PID, LOST, TOLD, Job, run_rank


def main(path: str) -> int:
    """Train as the environment and the file at `path` say; returns the exit status.

    A UserError is handed to the launcher, which says it once for all processes.
    """
    threading.Thread(target=_end_with_launcher, daemon=True, name="launcher watch").start()
    job = Job.from_json(json.loads(Path(path).read_text()))
    try:
        distributed.join(device=job.config.device, timeout_sec=job.config.timeout_sec)
        run_rank(job, log_errors=False)
        distributed.leave()
        return 0
    except UserError as e:
        distributed.first_to_report(str(e))
        status = LOST if isinstance(e, distributed.LostRank) else TOLD
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what is in flight to other processes can't be waited for


def _end_with_launcher() -> None:
    """Nobody would end this process together with the others once the launcher is gone."""
    launcher = int(os.environ[LAUNCHER_PID])
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(LOST)
