"""One process of a run on several: `python -m training.worker JOB.json`, started by `training.launch`."""

import json
import os
import sys
from pathlib import Path

from dnnlib.util import UserError
from torch_utils import distributed

from .launch import LOST, Job, run_rank


def main(path: str) -> int:
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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
