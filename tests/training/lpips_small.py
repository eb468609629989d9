"""The small LPIPS net with which the golden losses were made."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import Conv2d, MaxPool2d, ReLU, Sequential

from training.perceptual import LPIPS, PerceptualLoss


def small_lpips(sd: Mapping[str, np.ndarray]) -> PerceptualLoss:
    """Build it from arrays named as in the golden files, with or without `sd/` and `lpips.` in front.

    Golden's mean over a batch is this distance's mean over its [N].
    """
    state = {key.removeprefix("sd/").removeprefix("lpips."): torch.as_tensor(np.asarray(value))
             for key, value in sd.items() if "lpips." in key or key.startswith(("net.", "lin."))}
    layers = Sequential(
        Conv2d(3, 8, 3, padding=1), ReLU(), MaxPool2d(2),
        Conv2d(8, 12, 3, padding=1), ReLU(),
        Conv2d(12, 6, 3, stride=2), ReLU(),
    )
    layers.load_state_dict({key.removeprefix("net.layers."): value
                            for key, value in state.items() if key.startswith("net.layers.")})
    lpips = LPIPS(layers, (1, 4, 6), [state[f"lin.{i}.1.weight"] for i in range(3)])
    np.testing.assert_array_equal(lpips.mean, state["net.mean"])
    np.testing.assert_array_equal(lpips.std, state["net.std"])
    return lpips
