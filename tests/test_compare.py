"""compare.py as users run it: what is there is not trained again, and mistakes are told before any training."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from paths import ROOT
from training.runs import sweep

_TINY = {"cfg": "auto", "cbase": 256, "cmax": 16, "aug": "noaug", "kimg": 0.032, "batch": 16, "device": "cpu",
         "metrics": "none", "perceptual": "l2", "subset": 40, "workers": 0, "log": "none"}


def compare(*arguments, cwd=ROOT):
    command = [sys.executable, ROOT / "compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def plan(tiny_dataset, tiny_net, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({
        "data": str(tiny_dataset), "train": _TINY, "seeds": 2, "reference": "base", "metrics": "kid1k,fid1k",
        "judges": {"net": str(tiny_net)},
        "arms": {"base": {"method": "stylegan2", "seeds": 1}, "glead": {"method": "glead"}}}))
    return path


def test_a_comparison_is_stopped_and_resumed(plan, tmp_path):
    """SIGTERM reaches the training, which saves; the same command resumes it."""
    out, only = tmp_path / "out", tmp_path / "one.yaml"
    content = yaml.safe_load(plan.read_text())
    only.write_text(yaml.safe_dump(content | {"arms": {"base": content["arms"]["base"]}}))
    command = [sys.executable, "compare.py", f"--plan={only}", f"--outdir={out}", "--kimg=100"]
    program = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("base/seed0/*/fakes_init.png")) and time.monotonic() < deadline:
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1 and "the same command resumes" in said
    states = list(out.glob("base/seed0/*/training-state-*.pt"))
    assert states and not sweep.resume.is_busy(states[0].parent)

    done = compare("--plan=one.yaml", "--outdir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs" in done.stdout and "base, seed 0: scored by net" in done.stderr
    results = json.loads((out / "results.json").read_text())
    assert [(r["arm"], r["seed"]) for r in results] == [("base", 0)] and results[0]["judgement"] is not None
    assert set(results[0]["scores"]["net"]) >= {"kid1k", "fid1k"}
    assert {path.name for path in out.iterdir()} >= {"RESULTS.md", "scores.png", "report.html"}
    assert not (out / "reconstructions.png").exists()   # StyleGAN2 rebuilds nothing
    assert re.search(r"^\| base +\| 1 +\| 0 +\| [\d.]+ +\| [\d.]+ +\| 1.00 ", (out / "RESULTS.md").read_text(), re.M)


def test_order_of_the_runs():
    plan = sweep.make_plan({"data": "x", "seeds": 2, "first_seed": 5, "train": {"kimg": 1}, "arms": {
        "a": {}, "b": {"kimg": 2}, "c": {"seeds": 3}}}, source="plan")
    cells = sweep.list_cells(plan, "out")
    assert [(cell.arm, cell.seed) for cell in cells] == [
        ("c", 5), ("c", 6), ("c", 7), ("a", 5), ("b", 5), ("a", 6), ("b", 6)]
    assert cells[4].options == {"kimg": 2, "data": "x", "seed": 5}


def test_minutes_become_images(tmp_path, monkeypatch):
    """By the speed of a short run of each arm, which is measured once; a busy run is left to whoever trains it."""
    plan = sweep.make_plan({"data": "x", "minutes": 2, "arms": {"slow": {"seeds": 1}, "fast": {}}}, source="plan")
    probed = []

    def train(self, cell):
        run_dir = cell.folder / "00000-x"
        run_dir.mkdir(parents=True)
        speed = {"slow": 30.0, "fast": 5.0}[cell.arm]
        (run_dir / "stats.jsonl").write_text(json.dumps({"Timing/sec_per_kimg": {"mean": speed}}) + "\n")
        probed.append((cell.arm, cell.options["kimg"]))

    monkeypatch.setattr(sweep.Sweep, "_train", train)
    for _ in range(2):
        found = sweep.Sweep(plan, tmp_path, jobs=1, say=lambda line: None).with_kimg()
        assert {arm: options["kimg"] for arm, options in found.arms.items()} == {"slow": 4.0, "fast": 24.0}
    assert probed == [("slow", 2), ("fast", 2)]
    monkeypatch.undo()
    cell = sweep.list_cells(found, tmp_path)[0]
    (cell.folder / "00000-x").mkdir(parents=True)
    with sweep.resume.locked(str(cell.folder / "00000-x")), pytest.raises(sweep.UserError, match="still being trained"):
        sweep.Sweep(found, tmp_path, jobs=1, say=print)._train(cell)


@pytest.mark.parametrize("change, words", [
    ({"arms": {}}, "arms: Dictionary should have at least 1 item"),
    ({"arms": {"a/b": {}}}, "'a/b' names a folder"),
    ({"arms": {"base": {"seeds": 0}}}, "arms.base.seeds is 0"),
    ({"reference": "z"}, "reference is 'z', which is none of the arms"),
    ({"data": "$NO_SUCH_FOLDER/x.zip"}, "names $NO_SUCH_FOLDER, which is not set"),
    ({"train": {"trust-net": True}}, "trust-net is no option of a plan"),
    ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
])
def test_bad_plans_are_one_line(plan, change, words, tmp_path):
    with pytest.raises(sweep.UserError) as e:
        sweep.make_plan(yaml.safe_load(plan.read_text()) | change, source="plan.yaml")
    assert words in str(e.value) and str(e.value).startswith("plan.yaml")


def test_bad_options_are_told_before_any_training(plan, tmp_path):
    done = compare(f"--plan={plan}", f"--outdir={tmp_path / 'out'}", "--batch=5")
    assert done.returncode == 1 and "arm glead: " in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*/seed*"))
    done = compare(f"--outdir={tmp_path}")
    assert done.returncode == 2 and "Give --plan or --methods." in done.stderr
