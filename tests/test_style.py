"""The source keeps the rules of ruff and the types of mypy that pyproject.toml sets."""

import importlib.util
import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.parametrize("tool, arguments", [("ruff", ["check"]), ("mypy", [])])
def test_source_passes(tool, arguments):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install -r requirements.txt")
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
