"""Processes that score together stay in step, whatever fails on one of them."""

import json

import pytest

import forking
from dnnlib.util import UserError
from metrics.options import Shared
from training.jobs import launch
from training.runs.score_team import Team

WORKER = """
import json, os, sys
from dnnlib.util import UserError
from metrics.options import Shared
from torch_utils import distributed
from training.runs.score_team import Team
from training.jobs.worker import take_part
notes = sys.argv[1]

def note(*what):
    with open(notes, "a") as f:
        f.write(json.dumps([distributed.rank(), *what]) + "\\n")

def load(path):
    if path == f"unreadable for {distributed.rank()}":
        raise FileNotFoundError(2, "gone", path)
    return path

def calculate(metric, *, G, shared):
    note(metric, G, shared.metrics, shared.generated)
    shared.generated[metric] = G
    if metric == "fails":
        raise UserError(f"rank {distributed.rank()} can't do it")

def work():
    team = Team(load=load, calculate=calculate)
    if distributed.rank() > 0:
        return team.serve()
    for name in ("unreadable for 0", "unreadable for 1", "good"):
        try:
            G = team.load(name)
        except UserError as e:
            note(str(e))
    shared = Shared(["fid", "kid"])
    team.calculate("fid", G=G, shared=shared)
    team.idle()
    team.calculate("kid", G=G, shared=shared)
    G = team.load("better")
    team.calculate(sys.argv[2], G=G, shared=Shared(["ppl"]))
    team.dismiss()

sys.exit(take_part(work, device="cpu", timeout_sec=60))
"""


@pytest.fixture
def run_team(tmp_path, monkeypatch):
    def run(last):
        forking.fork_ranks(launch, monkeypatch.setattr)
        notes = tmp_path / "notes"
        try:
            launch.run_together(["python", "-c", WORKER, str(notes), last], size=2, at_once=True)
        finally:
            run.notes = [json.loads(line) for line in notes.read_text().splitlines()]
        return run.notes

    return run


def test_what_one_cannot_load_none_scores(run_team):
    notes = run_team("ppl")
    both = ["fid", "kid"]
    calculated = [["fid", "good", both, {}], ["kid", "good", both, {"fid": "good"}], ["ppl", "better", ["ppl"], {}]]
    assert [note[1:] for note in notes if note[0] == 0] == [
        ["[Errno 2] gone: 'unreadable for 0'"], ["[Errno 2] gone: 'unreadable for 1'"],
        *calculated]
    assert [note[1:] for note in notes if note[0] == 1] == calculated


def test_a_metric_that_fails_ends_all(run_team):
    with pytest.raises(UserError, match=r"^rank [01] can't do it$"):
        run_team("fails")


def test_a_single_process_needs_nobody():
    asked = []
    team = Team(load=lambda path: asked.append(path) or path, calculate=lambda *args, **kwargs: (args, kwargs))
    assert team.load("a") == "a" == asked[0]
    shared = Shared(["fid"])
    assert team.calculate("fid", G="a", shared=shared) == (("fid",), {"G": "a", "shared": shared})
    team.idle()
    team.dismiss()
    with pytest.raises(UserError, match="nowhere"):
        Team(load=lambda path: open(path), calculate=None).load("nowhere")
