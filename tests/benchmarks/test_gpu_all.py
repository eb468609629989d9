"""The script that tries everything on a GPU: steps that fail or take too long don't stop the others."""

import os
import re
import subprocess

from paths import ROOT

FAKE_PYTHON = """#!/usr/bin/env bash
echo "called: $*"
for last; do :; done
case "$*" in
    *benchmarks/ops.py*) exit 3 ;;
    *benchmarks/profile_step.py*) sleep 100 ;;
    *benchmarks/metrics.py*) echo '{}' >"${last#--out=}" ;;
esac
"""


def run(*arguments, **env):
    command = ["bash", "benchmarks/gpu_all.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


def test_steps_are_independent_and_summarised(tmp_path):
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    out = tmp_path / "out"
    done = run("--cpu-rehearsal", "--only=versions,ops,profile,metrics,data", PYTHON=str(python), OUT=str(out),
               TOTAL_SEC="6")
    assert done.returncode == 1 and done.stderr == ""
    summary = done.stdout.rpartition("step  ")[2]
    states = {m[1]: m[2].strip() for m in re.finditer(r"^(\S+) +(\D[^0-9]*(?:\(\d+\))?) +\d+$", summary, re.MULTILINE)}
    assert states == {"versions": "ok", "ops": "failed (3)", "profile": "out of time", "metrics": "no time left",
                      "data": "no time left"}
    assert "called: benchmarks/ops.py --device=cpu" in done.stdout
    assert (out / "gpu_all-cpu-rehearsal.txt").read_text() == done.stdout

    done = run("--cpu-rehearsal", "--only=metrics", PYTHON=str(python), OUT=str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "metrics-cpu-rehearsal.json").exists()


def test_unknown_arguments_and_no_gpu_are_told(tmp_path):
    done = run("--rehearsal")
    assert done.returncode == 2 and done.stderr.startswith("Unknown argument: --rehearsal\n")
    done = run(PYTHON="false", OUT=str(tmp_path / "out"))
    assert done.returncode == 1 and "sees a GPU" in done.stderr and not (tmp_path / "out").exists()
