"""Processes that score pickles together. Rank 0 gives orders, and all ranks carry them out."""

import contextlib
from typing import Any, Callable

import torch

from dnnlib.util import UserError
from metrics.options import Shared
from torch_utils import distributed


class Team:
    """All processes that were joined by `distributed.join`, or a single one.

    Rank 0 calls `load`, `calculate` and `idle`, as `RunScorer` does, and finally `dismiss`. The other ranks call
    `serve` instead. They wait for rank 0 only for a limited time. So rank 0 has to call `idle` from time to time.

    Args:
        load:      Gives the generator of a pickle. Raises UserError or OSError if it can't be read.
        calculate: As `calc_metric`, called with (metric, G=, shared=).
    """

    def __init__(self, *, load: Callable[[str], torch.nn.Module], calculate: Callable[..., dict[str, Any]]):
        self._load, self._calculate = load, calculate

    def load(self, path: str) -> torch.nn.Module:
        """Have all processes load a pickle.

        Raises:
            UserError: A process can't load it. Then none of them keeps it.
        """
        distributed.from_rank0({"load": path})
        return self._load_together(path)

    def calculate(self, metric: str, *, G: torch.nn.Module, shared: Shared) -> dict[str, Any]:
        """Have all processes calculate a metric of the pickle that was loaded last."""
        distributed.from_rank0({"calculate": metric, "metrics": shared.metrics})
        return self._calculate(metric, G=G, shared=shared)

    def idle(self) -> None:
        """Tell the other ranks that rank 0 is alive."""
        distributed.from_rank0({"wait": True})

    def dismiss(self) -> None:
        """Make `serve` return on the other ranks."""
        distributed.from_rank0({"leave": True})

    def serve(self) -> None:
        """Carry out the orders of rank 0, until it dismisses this process."""
        G = shared = None
        while "leave" not in (order := distributed.from_rank0(None)):
            if "load" in order:
                G = shared = None   # Free the memory of the last generator first.
                with contextlib.suppress(UserError):    # Rank 0 reports it.
                    G = self._load_together(order["load"])
            elif "calculate" in order:
                shared = shared or Shared(order["metrics"])
                self._calculate(order["calculate"], G=G, shared=shared)

    def _load_together(self, path: str) -> torch.nn.Module:
        problem = None
        try:
            G = self._load(path)
        except (UserError, OSError) as e:
            problem = str(e)
        problem = distributed.first_given(problem)
        if problem is not None:
            raise UserError(problem)
        return G
