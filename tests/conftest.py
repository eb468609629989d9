"""What all tests share: the path, optional data, golden numbers, and the marker for tests that need a GPU."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHARED = Path(os.environ.get("GLEAD_SHARED") or ROOT / "../shared").resolve()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def shared() -> Path:
    """The folder with optional data; a test that asks for it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"optional data not found at {SHARED} (set GLEAD_SHARED)")
    return SHARED


class Golden(NamedTuple):
    """One file of golden numbers. `get("in/x")` gives a tensor, `sub("sd/G.")` a dict without the prefix."""

    arrays: Any
    meta: dict

    def get(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[key])).to(dtype=dtype)

    def sub(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        return {k[len(prefix):]: self.get(k, dtype) for k in self.arrays.files if k.startswith(prefix)}

    def has(self, key: str) -> bool:
        return key in self.arrays.files

    def compare(self, key: str, actual: torch.Tensor, *, factor: float = 1) -> None:
        """|error| <= 1e-5 max|out| + 1e-7, times `factor` where the file lists a wider tolerance."""
        expected = self.get(key).double()
        actual = actual.detach().double()
        assert actual.shape == expected.shape, f"{key}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        if expected.numel():
            bound = factor * (1e-5 * expected.abs().max().item() + 1e-7)
            error = (actual - expected).abs().max().item()
            assert error <= bound, f"{key}: error {error:.3g} > {bound:.3g}"


@pytest.fixture
def golden(shared: Path):
    """`golden("ops/bias_act.npz")` opens a file of golden numbers."""

    def load(name: str) -> Golden:
        arrays = np.load(shared / "golden" / name, allow_pickle=False)
        return Golden(arrays, json.loads(str(arrays["meta"])) if "meta" in arrays.files else {})

    return load
