"""Copies of a GPU's tensors on the host. Neither the host nor the GPU waits while they are made."""

import copy
import math
from typing import Any, Iterator, NamedTuple

import torch

from dnnlib.util import say_once


class HostCopies(NamedTuple):
    """Copies that may not be complete yet. Any thread may wait for them."""

    content: Any
    arrival: torch.cuda.Event | None    # None = they are complete.

    def wait(self) -> Any:
        """Wait until the copies are complete, but not for later work of the GPU, and return them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.content


def host_copy(value: Any) -> HostCopies:
    """A deep copy of dicts, lists, tensors and modules, with all tensors on the CPU.

    `value` may be a single tensor. Tensors of a GPU are copied to one block of page-locked memory. The GPU does so
    before any operation that is launched later.
    """
    tensors = {id(tensor): tensor for tensor in _tensors(value)}
    elsewhere = {key: tensor for key, tensor in tensors.items() if tensor.is_cuda or tensor.is_meta}
    memory = _HostMemory(sum(map(_HostMemory.room, elsewhere.values())))
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        copied = memory.take(tensor.detach()) if key in elsewhere else tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[key] = torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    on_gpu = any(tensor.is_cuda for tensor in elsewhere.values())
    return HostCopies(copy.deepcopy(value, memo), torch.cuda.current_stream().record_event() if on_gpu else None)


class _HostMemory:
    """Page-locked memory for many tensors. Each has its own storage, because files store whole storages."""

    def __init__(self, num_bytes: int):
        try:
            memory = torch.empty([num_bytes], dtype=torch.uint8, pin_memory=num_bytes > 0)
        except RuntimeError as e:  # a limit of the container or the machine
            say_once("pinned", f"Warning: can't lock {num_bytes:,} bytes of memory for copies of what is saved "
                               f"({str(e).strip().splitlines()[0]}): training waits for these copies")
            memory = torch.empty([num_bytes], dtype=torch.uint8)
        self._bytes = memory.numpy()
        self._used = 0

    @staticmethod
    def room(tensor: torch.Tensor) -> int:
        """Bytes for a tensor, including the padding before the next one."""
        return math.ceil(tensor.numel() * tensor.element_size() / 64) * 64

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy with the same layout. Its values are valid once the device has made it."""
        part = self._bytes[self._used : self._used + tensor.numel() * tensor.element_size()]
        self._used += self.room(tensor)
        layout = torch.empty_like(tensor, device="meta").stride()
        host = torch.from_numpy(part).view(tensor.dtype).as_strided(tensor.shape, layout)
        return host.copy_(tensor, non_blocking=True)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, torch.nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
