"""Two machines, which are network namespaces, lose each other in the middle of training, and go on afterwards."""

import json
import os
import re
import subprocess
import sys

import pytest

from paths import ROOT

PROGRAM = ROOT / "benchmarks" / "two_machines.py"


def test_a_cut_network_ends_training_with_a_message_and_it_goes_on_later(tiny_dataset, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    allowed = subprocess.run([sys.executable, PROGRAM, "--check"], capture_output=True, text=True, env=env, timeout=60)
    if allowed.returncode != 0:
        pytest.skip(allowed.stderr.strip())
    out = tmp_path / "figures.json"
    command = [sys.executable, PROGRAM, "--timeout=8", "--no-compare", f"--data={tiny_dataset}", f"--out={out}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    first, second = figures["after_cut"]
    for end in (first, second):
        assert end["status"] == 1 and figures["timeout_sec"] - 2 < end["sec"] < figures["limit_sec"]
        assert "The last training state is good" in end["message"]
    assert re.search("rank 1 died.* lost the network", first["message"])  # it has the store
    assert "the machine at 10.77.0.1, where the processes met, does not answer" in second["message"]
    assert figures["state_nimg"] > 0 and figures["problems"] == []
    assert figures["after_mending"][0]["message"].startswith("Done in ")
