"""Meeting the other processes of a run; what they do together is in tests/training/test_faults.py."""

import pytest
import torch

from dnnlib.util import UserError
from torch_utils import distributed


@pytest.mark.parametrize("local_rank, found", [(1, 1), (8, 8), (0, 0)])
def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch, local_rank, found):
    """As where each process is shown one GPU alone, or there are more processes than GPUs."""
    for name, value in dict(RANK=9, WORLD_SIZE=16, LOCAL_RANK=local_rank).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(distributed, "_group", None)
    with pytest.raises(UserError, match=rf"rank 9 is process {local_rank} of its machine.* finds {found} GPU\(s\)"):
        distributed.join(device="cuda", timeout_sec=1)
