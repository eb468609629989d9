"""What all tests share: optional data, golden numbers, small inputs. Tests that need a GPU are skipped without one."""

import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from paths import ROOT, SHARED

BUNDLED_GOLDEN = ROOT / "tests/golden"     # A part of the golden numbers, which every checkout has.


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: programs would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: so would they this
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionstart() -> None:
    """Compute a gradient first, so that processes that are forked later can compute some, too.

    PyTorch starts threads for devices with the first one. Once an ONNX export has made a further kind of device known,
    it would do so on machines without GPUs as well, and refuses gradients in forked processes from then on.
    """
    torch.ones([1], requires_grad=True).sum().backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, whichever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


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
def golden():
    """`golden("ops/bias_act.npz")` opens a file of golden numbers; the test is skipped where that is not at hand."""

    def load(name: str) -> Golden:
        places = [SHARED / "golden" / name, BUNDLED_GOLDEN / name]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            folder = SHARED / "golden"
            pytest.skip(f"golden numbers {name} are neither in {folder} (set GLEAD_SHARED) nor in tests/golden")
        arrays = np.load(path, allow_pickle=False)
        return Golden(arrays, json.loads(str(arrays["meta"])) if "meta" in arrays.files else {})

    return load


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 48 labelled images of 16x16 pixels: coloured discs, one colour for each of 3 classes."""
    import io
    import zipfile

    import PIL.Image

    rng = np.random.RandomState(0)
    path = tmp_path_factory.mktemp("data") / "tiny.zip"
    labels = []
    with zipfile.ZipFile(path, "w") as z:
        for i in range(48):
            y, x = np.mgrid[:16, :16]
            cx, cy, r = rng.uniform(5, 11), rng.uniform(5, 11), rng.uniform(3, 5)
            inside = ((x - cx) ** 2 + (y - cy) ** 2 < r**2)[:, :, None]
            colour = np.eye(3)[i % 3] * 200 + 40
            img = np.where(inside, colour, rng.uniform(0, 80, [1, 1, 3])).astype(np.uint8)
            buffer = io.BytesIO()
            PIL.Image.fromarray(img).save(buffer, format="PNG")
            name = f"00000/img{i:08d}.png"
            z.writestr(name, buffer.getvalue())
            labels.append([name, i % 3])
        z.writestr("dataset.json", json.dumps(dict(labels=labels)))
    return path


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of four images: a thousand take most of the time of a small run."""
    _shrink_grids(monkeypatch)


def _shrink_grids(patch: pytest.MonkeyPatch) -> None:
    from training import snapshot

    patch.setattr(snapshot, "_MAX_CELLS", 2)


@pytest.fixture(scope="session")
def warm(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What PyTorch does once is done, so that processes that are forked from this one save two seconds each."""
    from benchmarks.soak import small_config
    from training.training_loop import run_training

    config = small_config(tiny_dataset, "--method=glead+ggdr", "--reg_loss_fake=cos", "--aug=ada", "--kimg=0.008")
    with pytest.MonkeyPatch.context() as patch:
        _shrink_grids(patch)
        run_training(config, str(tmp_path_factory.mktemp("warm")))


@pytest.fixture(scope="session")
def tiny_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random net as feature_net.py writes them: a detector and a perceptual net."""
    from torch_utils.formats.classifier_net import ClassifierNet
    from torch_utils.formats.feature_nets import save_classifier

    path = tmp_path_factory.mktemp("nets") / "tiny-net.pt"
    torch.manual_seed(0)
    net = ClassifierNet(5, width=2, resolution=8)
    net.fold()
    save_classifier(net, path, metadata={})
    return path
