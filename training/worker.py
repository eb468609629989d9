"""One process of a run on several, started by `training.launch`."""

import json
import os
import sys
import threading
import time
from pathlib import Path

from dnnlib.util import UserError
from torch_utils import distributed

from .launch import LOST, Job, run_rank


def main(path: str) -> int:
    """Train as the environment and the file at `path` say; returns the exit status."""
    _end_with_launcher()
    job = Job.from_json(json.loads(Path(path).read_text()))
    try:
        distributed.join(device=job.config.device, timeout_sec=job.config.timeout_sec)
        run_rank(job)
    except distributed.LostRank as e:
        distributed.first_to_report(str(e))  # the launcher says it
        sys.stdout.flush()
        os._exit(LOST)  # what is in flight to lost processes can't be waited for
    except UserError as e:
        print(f"Error: {e}", file=sys.stderr, flush=True)
        os._exit(1)
    distributed.leave()
    return 0


def _end_with_launcher() -> None:
    """Nobody would end this process together with the others once the launcher is gone."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True, name="launcher watch").start()
