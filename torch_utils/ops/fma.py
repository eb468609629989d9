"""Fused multiply-add with broadcasting."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """`a * b + c` with broadcasting; differentiable any number of times."""
    return torch.addcmul(c, a, b)
