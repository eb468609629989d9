"""Placeholder until the runtime is merged."""

import ctypes
from typing import NamedTuple, Protocol

import torch


class Kernel(NamedTuple):
    name: str
    macros: tuple[tuple[str, str | int], ...]


class Launcher(Protocol):
    def __call__(self, grid: int, params: ctypes.Structure) -> None: ...


def load(kernel: Kernel, device: torch.device) -> Launcher | None:
    return None
