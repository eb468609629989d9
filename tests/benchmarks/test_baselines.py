"""`--baseline` means the same in all benchmarks that have it: ours and another way, in turns; ours alone without it."""

import json

import click
import pytest

from benchmarks import data, metrics, ops, scaling

NAMES = {
    data: ["DataLoader"],
    metrics: ["plain"],
    ops: ["reference", "native"],
    scaling: ["straightforward", "zero-insertion"],
}


@pytest.mark.parametrize("bench", NAMES, ids=lambda bench: bench.__name__.rpartition(".")[2])
def test_a_baseline_is_chosen_by_name_and_the_first_without_one(bench):
    def chosen(*arguments):
        return bench.main.make_context("main", list(arguments)).params["baseline"]

    assert chosen("--repeats=3") is None
    assert chosen("--baseline", "--repeats=3") == NAMES[bench][0]
    assert [chosen(f"--baseline={name}") for name in NAMES[bench]] == NAMES[bench]
    with pytest.raises(click.BadParameter, match="'other' is not"):
        chosen("--baseline=other")


def test_operations(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ops.SHAPES, "cpu", [(2, 4, 8, 8)])
    monkeypatch.setattr(ops.torch, "set_num_threads", lambda number: None)
    out = tmp_path / "ops.json"

    def rows(*arguments):
        ops.main(["--repeats=3", "--modes=forward", f"--out={out}", *arguments], standalone_mode=False)
        return json.loads(out.read_text())["rows"]

    alone, both = rows(), rows("--baseline")
    assert len(alone) == len(both) == 6
    assert all(row["ours ms"] > 0 and "reference ms" not in row for row in alone)
    assert all(row["reference ms"] > 0 and row["ours / reference"] > 0 for row in both)
    assert "ours / reference" in capsys.readouterr().out
    with pytest.raises(click.ClickException, match="on a CPU, ours is native"):
        rows("--baseline=native")


def test_loaders(tmp_path, monkeypatch):
    monkeypatch.setattr(data.torch, "set_num_threads", lambda number: None)
    out = tmp_path / "data.json"

    def row(*arguments):
        data.main(["--resolutions=16", "--containers=zip", "--workers=0", "--images=8", "--batch=4", "--repeats=1",
                   "--seconds=0.05", f"--out={out}", *arguments], standalone_mode=False)
        (only,) = json.loads(out.read_text())["rows"]
        return only

    alone, both = row(), row("--baseline")
    assert alone["ours img/s"] > 0 and not any("DataLoader" in name or "ratio" in name for name in alone)
    assert both["ratio"] > 0 and both.keys() > alone.keys() and both["DataLoader img/s"] > 0
