"""Plots of runs: a picture for whatever the runs hold, one line for mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from plot_runs import read_curves, smooth

ROOT = Path(__file__).resolve().parents[1]


def make_run(path, *, task):
    path.mkdir()
    with open(path / "stats.jsonl", "w") as f:
        for tick in range(4):
            record = {"Progress/kimg": tick * 4, "Loss/scores/real": 0.5 / (tick + 1), "Loss/scores/fake": -0.5,
                      "Metrics/fid1k@net": 100 - tick}
            if task:
                record["Loss/D/real_reconstruction"] = 10 - tick
            line = {name: dict(num=1, mean=value, std=0) for name, value in record.items()}
            f.write(json.dumps(dict(line, timestamp=tick)) + "\n")
    return path


def plot(*args):
    return subprocess.run([sys.executable, str(ROOT / "plot_runs.py"), *map(str, args)], capture_output=True, text=True,
                          timeout=120)


def test_plot_of_two_runs(tmp_path):
    runs = [make_run(tmp_path / "a", task=False), make_run(tmp_path / "b", task=True)]
    result = plot(*runs, f"--out={tmp_path / 'curves.png'}", "--labels=one,two")
    assert result.returncode == 0, result.stderr
    with PIL.Image.open(tmp_path / "curves.png") as img:
        assert img.size == (1500, 360)  # score, realness, tasks


def test_read_curves(tmp_path):
    curves = read_curves(make_run(tmp_path / "a", task=True))
    assert curves["Loss/D/real_reconstruction"] == ([0, 4, 8, 12], [10, 9, 8, 7])


def test_smoothing_keeps_constants_and_weighs_the_past():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3, 3, 3])
    assert smooth([1.0, 2.0], 0.5) == pytest.approx([1, (0.5 * 1 + 2) / 1.5])
    assert smooth([1.0, 2.0], 0) == [1, 2]


def test_mistakes_are_one_line(tmp_path):
    out = tmp_path / "curves.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "stats.jsonl").write_text("nonsense\n")
    run = make_run(tmp_path / "a", task=False)
    for args, words in [([tmp_path / "empty"], "stats.jsonl"), ([tmp_path / "odd"], "line 1 of"),
                        ([run, "--labels=a,b"], "2 names for 1 runs")]:
        result = plot(*args, f"--out={out}")
        assert result.returncode == 1 and words in result.stderr
        assert len(result.stderr.splitlines()) == 1 and not out.exists()
