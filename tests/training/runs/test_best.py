"""Which pickle of a run is the best, and its mark."""

import json
import os

import pytest

from training.runs.best import find_best, mark_best


def record(folder, kimg, value, *, metric="fid50k_full", result=None, **more):
    name = f"network-snapshot-{kimg:06d}.pkl"
    (folder / name).write_text(f"pickle {kimg}")
    with open(folder / f"metric-{metric}.jsonl", "a") as f:
        f.write(json.dumps({"results": {result or metric: value}, "snapshot_pkl": name, **more}) + "\n")
    return folder / name


def mark(folder, metric="fid50k_full"):
    warnings = []
    mark_best(folder, metric, warn=warnings.append)
    return warnings


def test_the_best_is_marked_and_outlives_its_other_name(tmp_path):
    assert mark(tmp_path) == [] and not list(tmp_path.iterdir())
    record(tmp_path, 0, 9.0)
    first = record(tmp_path, 200, 3.0)
    record(tmp_path, 400, 1.0, protocol={"seed": 1})            # other protocols and other nets are no comparison
    record(tmp_path, 400, 0.5, result="fid50k_full@net")
    record(tmp_path, 600, 4.0)
    assert mark(tmp_path) == []
    best = tmp_path / "network-best.pkl"
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "metric": "fid50k_full", "result": "fid50k_full", "value": 3.0, "snapshot_pkl": first.name, "kimg": 200}
    assert best.samefile(first) and mark(tmp_path) == []
    first.unlink()
    assert mark(tmp_path) == [] and best.read_text() == "pickle 200"
    record(tmp_path, 800, 2.0)
    record(tmp_path, 800, 2.0, metric="pr50k3_full")
    assert mark(tmp_path, "pr50k3_full") == [] and best.read_text() == "pickle 800"
    assert find_best(tmp_path, "fid50k_full").kimg == 800
    record(tmp_path, 600, 0.9, metric="pr50k3_full")
    assert mark(tmp_path, "pr50k3_full") == [] and best.read_text() == "pickle 800", "marks by FID stay"
    record(tmp_path, 600, 0.9, metric="fid1k_full")
    assert mark(tmp_path, "fid1k_full") == [] and best.read_text() == "pickle 800", "and by more images"
    assert sorted(p.name for p in tmp_path.iterdir() if "snapshot" not in p.name and "metric" not in p.name) == [
        "best.json", "network-best.pkl"]


def test_without_hard_links_it_is_a_copy_and_failures_are_warnings(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    first = record(tmp_path, 200, 3.0)
    assert mark(tmp_path) == [] and (tmp_path / "network-best.pkl").read_text() == "pickle 200"
    assert not (tmp_path / "network-best.pkl").samefile(first)
    record(tmp_path, 400, 2.0)
    monkeypatch.setattr("shutil.copyfile", fail)
    (warning,) = mark(tmp_path)
    assert "can't mark the best pickle" in warning and (tmp_path / "network-best.pkl").read_text() == "pickle 200"


@pytest.mark.parametrize("content", ["", "[]", '{"metric": 3}'])
def test_a_damaged_mark_is_written_anew(tmp_path, content):
    record(tmp_path, 200, 3.0)
    (tmp_path / "best.json").write_text(content)
    assert mark(tmp_path) == [] and json.loads((tmp_path / "best.json").read_text())["value"] == 3
