"""Statistics of runs: what is damaged is left out and counted; seeds of one command belong together."""

import json

import numpy as np
import pytest

from analysis.curves import Curve, band, group_runs, read_curves, unique_ends, unique_labels


def write_options(path, *, method="glead", **command):
    path.mkdir()
    (path / "training_options.json").write_text(json.dumps({"config": {"method": method}, "command": command}))
    return path


def tick(kimg):
    return json.dumps({name: {"num": 1, "mean": value, "std": 0} for name, value in
                       {"Progress/kimg": kimg, "Loss/scores/real": -kimg}.items()} | {"timestamp": 0})


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    damaged = [tick(4)[:50], "[" * 100_000, "null", '{"Progress/kimg": {"mean": "8"}}', '{"a": {"b": 1}}']
    lines = [tick(0), *damaged, tick(12)]
    (tmp_path / "stats.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    with pytest.warns(UserWarning, match=r"left out 6 of 8 lines, which are damaged; the first one is line 2"):
        assert read_curves(tmp_path)["Loss/scores/real"] == ([0, 12], [0, -12])


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path):
    runs = [write_options(tmp_path / "00000-a", data="x", seed=0),
            write_options(tmp_path / "00001-a", data="x", gamma=1),
            write_options(tmp_path / "00002-a", data="x", seed=5, kimg=9),  # the length does not change what is learnt
            write_options(tmp_path / "00003-a", method="ggdr", data="x")]
    (runs[3] / "training_options.json").write_text("[")
    groups = group_runs(runs)
    assert [group.runs for group in groups] == [[runs[0], runs[2]], [runs[1]], [runs[3]]]
    assert [group.label for group in groups] == ["00000-a", "00001-a", "00003-a"]     # glead twice, and unknown


def test_labels_are_unique_and_short(tmp_path):
    a, b = write_options(tmp_path / "a"), write_options(tmp_path / "b", method="ggdr")
    assert unique_labels([a, b]) == ["glead", "ggdr"]
    assert unique_labels([a / "1.pkl", a / "2.pkl", b / "2.pkl"]) == ["1", "a/2", "ggdr"]
    assert unique_ends([a, b]) == ["a", "b"] and unique_ends(["s0/run", "s1/run"]) == ["s0/run", "s1/run"]
    assert unique_labels([a / "1.pkl", a / "1.pkl"]) == [str(a / "1.pkl")] * 2


def test_bands_cover_the_common_range():
    found = band([Curve([0, 2, 4], [0, 2, 4]), Curve([1, 3], [3, 3])])
    np.testing.assert_allclose(found, ([1, 2, 3], [2, 2.5, 3], [1, 2, 3], [3, 3, 3]))
