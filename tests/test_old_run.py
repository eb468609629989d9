"""A run that version 0.1 left, as `fixtures/run-0.1.zip`: it resumes, and its network pickle opens.

It is one of `--method=glead+ggdr` at 16x16, whose images lay at a relative path. Large tensors are zero but for their
first numbers, to keep the file small. `images.npz` is what version 0.1 made of G_ema.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import legacy
from training.runs.training_state import list_states, read_state

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(ROOT / "tests/fixtures/run-0.1.zip") as f:
        f.extractall(tmp_path)
    return tmp_path


def test_it_resumes(folder):
    (old,) = list_states(folder / "run")
    before = read_state(old.path)
    result = subprocess.run([sys.executable, ROOT / "train.py", "--resume=run", "--kimg=0.024"], cwd=folder,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "names its --data by a relative path: taking" in result.stderr
    after = read_state(list_states(folder / "run")[0].path)
    assert (before["progress"]["nimg"], after["progress"]["nimg"]) == (16, 24)
    for name, tensors in before["networks"].items():
        assert tensors.keys() == after["networks"][name].keys()
    steps = [state["optimizers"]["D"][0]["step"].item() for state in (before, after)]
    assert steps[1] == steps[0] + 1     # Dmain of one iteration
    kimg = [json.loads(line)["Progress/kimg"]["mean"] for line in (folder / "run/stats.jsonl").read_text().splitlines()]
    assert kimg == [0.008, 0.016, 0.024]


def test_its_networks_make_the_same_images(folder):
    with open(folder / "run/network-snapshot-000000.pkl", "rb") as f:
        networks = legacy.load_network_pkl(f)
    assert networks["D"].has_heads
    z = torch.from_numpy(np.random.RandomState(0).randn(2, 512)).float()
    img = networks["G_ema"](z, torch.zeros([2, 0]), noise_mode="const")
    np.testing.assert_allclose(img, np.load(folder / "images.npz")["img"], rtol=0, atol=1e-5)
