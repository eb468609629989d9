"""Trackers: what they are told, and that a failing one does not concern the run."""

import sys
import types

import PIL.Image
import pytest

from dnnlib.util import UserError
from training.runs import trackers
from training.runs.trackers import Trackers, check_trackers


class FakeRun:
    def __init__(self):
        self.logged, self.open = [], True

    def log(self, values, step=None):
        self.logged.append((values, step))

    def define_metric(self, name, *, step_metric):
        assert (name, step_metric) == ("*", "Progress/kimg")

    def finish(self):
        self.open = False


@pytest.fixture
def hosted(monkeypatch):
    """Runs of wandb and trackio by name, and what they were opened with."""
    runs = {name: (FakeRun(), {}) for name in ("wandb", "trackio")}
    for name, (run, said) in runs.items():
        def init(said=said, run=run, **options):
            said.update(options)
            return run

        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Image=lambda img: img.size, init=init))
    return runs


def test_hosted_trackers_get_statistics_and_pictures_and_continue_a_run(tmp_path, hosted, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "cats")
    opened = Trackers(["wandb", "trackio"], tmp_path / "00000-a", {"batch": 4}, start_nimg=0, step_nimg=1000)
    opened.scalars({"loss": 2.0}, nimg=3500)
    opened.picture("fakes", PIL.Image.new("RGB", (8, 4)), nimg=3500)
    opened.close()
    opened.picture("fakes", PIL.Image.new("RGB", (8, 4)), nimg=4000)   # too late: left out
    (wandb, with_wandb), (trackio, with_trackio) = hosted["wandb"], hosted["trackio"]
    assert wandb.logged == [({name: value, "Progress/kimg": 3.5}, None)
                            for name, value in (("loss", 2.0), ("fakes", (8, 4)))]
    assert trackio.logged == [({"loss": 2.0}, 3500), ({"fakes": (8, 4)}, 3500)]
    assert not wandb.open and not trackio.open
    assert with_wandb["config"] == {"batch": 4} and with_wandb["resume"] == with_trackio["resume"] == "allow"
    assert with_wandb["project"] == "cats" and with_wandb["dir"] == str(tmp_path / "00000-a")
    first = with_wandb["id"]
    Trackers(["wandb"], tmp_path / "00000-a", {}, start_nimg=0, step_nimg=1000)
    assert with_wandb["id"] == first
    Trackers(["wandb"], tmp_path / "else/00000-a", {}, start_nimg=0, step_nimg=1000)
    assert with_wandb["id"] != first


def test_a_tracker_that_fails_is_warned_of_once(tmp_path, hosted, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(hosted["wandb"][0], "log", fail)
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", fail)     # does not even start
    opened = Trackers(["tensorboard", "wandb", "trackio"], tmp_path, {}, start_nimg=0, step_nimg=1)
    for nimg in range(3):
        opened.scalars({"loss": 2.0}, nimg=nimg)
    opened.close()
    assert capsys.readouterr().out.splitlines() == [
        f"Warning: {name} lacks a part of this run: no route; training continues" for name in ("tensorboard", "wandb")]
    assert len(hosted["trackio"][0].logged) == 3


def test_unknown_and_missing_trackers_are_one_line(monkeypatch):
    check_trackers(["tensorboard"])
    check_trackers([])
    with pytest.raises(UserError, match="^--log is mlflow, expected a list of tensorboard, wandb, trackio, or none$"):
        check_trackers(["mlflow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="^--log names wandb, which is not installed: pip install wandb, or leave it"):
        check_trackers(["wandb"])
