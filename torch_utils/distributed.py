"""The few things that differ between one process and several. Without an initialised process group: rank 0 of 1."""

from typing import Any

import torch


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if is_distributed() else 1


def print0(*args: Any, **kwargs: Any) -> None:
    """Print on rank 0 only."""
    if rank() == 0:
        print(*args, **kwargs)


def all_reduce_mean_(tensor: torch.Tensor) -> torch.Tensor:
    """Average over all ranks, in place."""
    if world_size() > 1:
        torch.distributed.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place."""
    if world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
