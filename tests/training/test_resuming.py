"""Resuming a run: whatever killed it, the result is the one of a run that was left alone, bit by bit."""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from benchmarks.soak import differences, fork_training, small_config
from dnnlib.util import EasyDict, UserError
from torch_utils import training_stats
from torch_utils.formats import network_pickle
from training import snapshot, training_loop
from training.jobs.launch import Job, run_rank, write_options
from training.runs import checkpoints, evaluation, run_log, training_state
from training.runs.checkpoints import PickleNames
from training.runs.run_log import Progress
from training.runs.training_state import list_pickles, list_states, pickle_path, read_state, state_path, write_state
from training.training_loop import Trainer

METHODS = ["stylegan2", "ggdr", "glead", "glead+ggdr"]
# Where a run is killed, in this order: the module or class, its function, and in which call of that.
MOMENTS = [
    (Trainer, "_build_networks", 1),                # Setting up.
    (Trainer, "_run_phase", 2),                     # Within the first iteration: no state yet.
    (training_state._SignedFile, "finish", 2),      # At the end of writing a state.
    (Trainer, "_run_phase", 9),
    (evaluation, "evaluate", 2),                    # Between state and metrics.
    (snapshot, "save_image_grid", 1),               # Writing pictures ...
    (checkpoints, "save_network_pkl", 1),           # ... or the pickle of a snapshot.
    (training_state, "list_states", 3),             # A new state is there, an old one not yet deleted.
    (Trainer, "_start_logs", 1),                    # Setting up again.
    (run_log, "append_text", 2),                    # Before a record is written.
    (training_loop.snapshot, "save_pictures", 1),
]


@pytest.fixture(autouse=True)
def start_afresh(small_grids, warm):
    training_stats.load_state_dict({})


def kill_in(owner, name, call):
    """Have this process killed when the function is called for the given time."""
    original, calls = getattr(owner, name), []

    def replacement(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)
    if name == "evaluate":
        training_loop.evaluate = replacement


def fake_metric(metric, *, G, **kwargs):
    score = float(sum(p.double().abs().sum() for p in G.parameters()))
    return EasyDict(results={metric: score}, metric=metric)


def with_fake_metric():
    evaluation.metric_main.calc_metric = fake_metric


def options(method, aug, tiny_net):
    more = ["--target=0.1"] if aug == "ada" else []
    return [f"--method={method}", f"--aug={aug}", *more, "--kimg=0.08", "--tick=0.016", "--snap=2",
            f"--detector={tiny_net}", "--metrics=fid1k", f"--perceptual={tiny_net}"]


@pytest.mark.parametrize("aug", ["noaug", "ada"])
@pytest.mark.parametrize("method", METHODS)
def test_killed_anywhere_equals_undisturbed(tiny_dataset, tiny_net, tmp_path, method, aug):
    config = small_config(tiny_dataset, *options(method, aug, tiny_net))
    runs = {name: tmp_path / name for name in ("straight", "killed")}
    for run in runs.values():
        run.mkdir()
    assert os.waitpid(fork_training(config, runs["straight"], before=with_fake_metric), 0)[1] == 0

    # Every case meets a third of the moments, and all of them together meet each one at least twice.
    number = 2 * METHODS.index(method) + (aug == "ada")
    for moment in MOMENTS[number % 3 :: 3]:
        def before(moment=moment):
            with_fake_metric()
            kill_in(*moment)

        pid = fork_training(config, runs["killed"], before=before)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, moment
    assert os.waitpid(fork_training(config, runs["killed"], before=with_fake_metric), 0)[1] == 0
    assert differences(*runs.values()) == []
    assert not list(runs["killed"].glob(".*")), "what was being written is removed"
    assert len(list_states(runs["killed"])) == 2
    scores = [[(r["snapshot_pkl"], r["results"]) for r in run_log.read_records(run / "metric-fid1k.jsonl")]
              for run in runs.values()]
    assert scores[0] == scores[1] and len(scores[0]) == 4, "no score is repeated or missing"


def test_the_comparison_sees_differences(tiny_dataset, tiny_net, tmp_path):
    config = small_config(tiny_dataset, "--method=stylegan2", "--aug=noaug", "--kimg=0.016", "--tick=0.008")
    for name, c in dict(a=config, b=dataclasses.replace(config, random_seed=1)).items():
        (tmp_path / name).mkdir()
        os.waitpid(fork_training(c, tmp_path / name), 0)
    found = differences(tmp_path / "a", tmp_path / "b")
    assert any("networks.G.mapping" in f for f in found) and any("optimizers.D" in f for f in found)
    assert any("pkl: G_ema" in f for f in found) and "stats.jsonl: record 0" in found


@pytest.fixture
def run(tiny_dataset, tmp_path):
    """A configuration and an empty run directory."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return small_config(tiny_dataset, "--method=stylegan2", "--aug=noaug", "--kimg=0.064", "--tick=0.016"), run_dir


def test_a_damaged_state_is_passed_over(run, capsys):
    config, run_dir = run
    training_loop.run_training(config, str(run_dir))
    straight = read_state(list_states(run_dir)[0].path)
    newest = list_states(run_dir)[0].path
    with open(newest, "r+b") as f:
        f.seek(1000)
        byte = f.read(1)
        f.seek(1000)
        f.write(bytes([byte[0] ^ 1]))
    training_loop.run_training(config, str(run_dir), resume="newest")
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("Warning")]
    assert newest.name in line and "is damaged" in line and "the one before" in line
    again = read_state(list_states(run_dir)[0].path)
    assert all(torch.equal(straight["networks"]["G"][k], again["networks"]["G"][k]) for k in straight["networks"]["G"])
    assert newest.with_suffix(".pt.unused").exists(), "set aside, not deleted"


def content_of(run_dir):
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


def test_other_images_are_refused_and_nothing_is_changed(run, capsys):
    """Not even the log, which a later one is added to; --resume-anyway takes them."""
    config, run_dir = run
    job = Job(config, str(run_dir), command={"kimg": 0.064})
    write_options(job)
    run_rank(job._replace(config=dataclasses.replace(config, total_kimg=0.024)))
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["data_fingerprint"] == read_state(list_states(run_dir)[0].path)["dataset"]
    (run_dir / ".half.pkl.tmp").touch()     # of a program that was killed
    before = content_of(run_dir)
    smaller = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, max_size=20))
    job = Job(smaller, str(run_dir), resume=str(list_states(run_dir)[-1].path), command={"subset": 20})
    with pytest.raises(UserError, match="not those that .* was trained on: give the right ones .* --resume-anyway"):
        run_rank(job)
    assert content_of(run_dir) == before
    capsys.readouterr()
    run_rank(job._replace(anyway=True))
    assert "was trained on: resuming with these all the same" in capsys.readouterr().out
    again = json.loads((run_dir / "training_options.json").read_text())
    assert again["command"] == {"subset": 20} and again["data_fingerprint"] != options["data_fingerprint"]
    log = (run_dir / "log.txt").read_text()
    assert log.startswith(before["log.txt"].decode()) and "Resuming from" in log and "Setting aside" in log
    assert not (run_dir / ".half.pkl.tmp").exists()


def test_states_that_do_not_fit_are_refused_in_one_line(run):
    """Their checksums are right: another program, or another version, wrote them."""
    config, run_dir = run
    training_loop.run_training(dataclasses.replace(config, total_kimg=0.008), str(run_dir))
    good = read_state(list_states(run_dir)[0].path)
    path = state_path(run_dir, 8)
    deep = []
    for _ in range(300):
        deep = [deep]
    layer = "mapping.fc0.weight"
    for where, value in (
        ("progress", None), ("progress.tick", None), ("progress.nimg", -8), ("log.record", deep),
        ("log.more", 1), ("stats", {"a": [1, 2]}), ("pickles.last", "../elsewhere.pkl"), ("pickles.last", None),
        ("tick.snapshot_pkl", "../elsewhere.pkl"), ("tick.pending", None), ("tick.pending", 1), ("networks.G", None),
        ("networks.D", {}), ("guard", {}), ("loss.pl_mean", torch.zeros(3)), ("ada", {"signs": torch.zeros(2)}),
        ("networks.G", good["networks"]["G"] | {"more": torch.zeros(1)}), ("optimizers.G", {99: {}}),
        (f"networks.G.{layer}", torch.zeros(2, 3)), (f"networks.G.{layer}", "large"), ("optimizers.D", None),
        ("optimizers.D.0.exp_avg", torch.zeros(1)),
    ):
        state = parent = copy.deepcopy(good)
        first, _, rest = where.partition(".")
        names = [first, *(rest.split(".", 1) if first == "networks" else rest.split("."))] if rest else [first]
        for name in names[:-1]:
            parent = parent[int(name) if name.isdecimal() else name]
        parent.pop(names[-1], None)
        if value is not None:
            parent[names[-1]] = value
        write_state(path, state)
        before = content_of(run_dir)
        with pytest.raises(UserError) as caught:
            Trainer(config, str(run_dir), resume="newest")
        assert str(caught.value).startswith(f"training state {path} does not fit this run: {where}")
        assert content_of(run_dir) == before


# ----------------------------------------------------------------------------------------------------------------------
# Names of snapshots.


def snapshot_names(total_kimg, *, tick, snap, stops=()):
    """Names of the pickles of a run that is stopped at some positions, each time it gets there: the due ones, all."""
    log = object.__new__(run_log.RunLog)
    log.config = EasyDict(total_kimg=total_kimg, kimg_per_tick=tick, snapshot_ticks=snap)
    log.tick_start_nimg, log.progress = 0, Progress()
    pickles, progress, due_names, names, positions, stops = PickleNames("run"), log.progress, [], [], {}, list(stops)

    def save(due):
        pickles.choose(progress.nimg, None if due else log.next_due_nimg())
        names.append(pickles.last.stem[17:])
        due_names.extend(names[-1:] if due else [])
        assert positions.setdefault(names[-1], progress.nimg) == progress.nimg, "no pickle replaces another one"

    while progress.nimg < total_kimg * 1000:
        if stops and progress.nimg >= stops[0]:
            del stops[0]
            save(due=False)
            state, pickles = pickles.state_dict(), PickleNames("run")
            pickles.load_state_dict(state)
        progress.nimg += 8
        done = progress.nimg >= total_kimg * 1000
        if log.is_tick_over():
            if done or snap and progress.tick % snap == 0:
                save(due=True)
            log.tick_start_nimg = progress.nimg
            progress.tick += 1
    return due_names, names


def test_names_of_snapshots():
    """By whole kimg, as StyleGAN2-ADA's, where that suffices; never the same twice; and in order as text."""
    assert snapshot_names(20, tick=4, snap=1)[0] == ["000000", "000004", "000008", "000012", "000016", "000020"]
    assert snapshot_names(20.02, tick=4, snap=5)[0] == ["000000", "000020", "000020_024"]
    assert snapshot_names(1.4, tick=0.2, snap=2)[0] == ["000000", "000000_408", "000000_808", "000001", "000001_400"]
    for total, tick, snap, stops, expected in (
        (20, 4, 5, [0, 2000, 2104, 9000], ["000000_000", "000000", "000002", "000002_104", "000009", "000020"]),
        (8, 1, 4, [0, 4000, 4016, 4040, 7992], ["000000_000", "000000", "000004_000", "000004", "000004_016",
                                                 "000004_040", "000007", "000008"]),
        (0.8, 0.2, 2, [100, 500], ["000000", "000000_104", "000000_408", "000000_504", "000000_800"]),
        (30, 3.0004, 3, [9016, 9024], None), (5, 0.3, 7, range(0, 5000, 104), None),
        (2, 4, 0, range(0, 2000, 56), None),
    ):
        left_alone, _ = snapshot_names(total, tick=tick, snap=snap)
        due, names = snapshot_names(total, tick=tick, snap=snap, stops=stops)
        assert due == left_alone
        assert expected is None or names == expected
        assert sorted(name for name in names if "_" in name) == [name for name in names if "_" in name]


def test_a_stopped_run_has_the_pickles_of_one_that_was_left_alone(run, monkeypatch, tmp_path):
    config, run_dir = run
    straight = tmp_path / "straight"
    straight.mkdir()
    config = dataclasses.replace(config, snapshot_ticks=2)
    training_loop.run_training(config, str(straight))
    original = Trainer.step

    def step(trainer, batch):
        original(trainer, batch)
        if trainer.progress.nimg in (16, 40):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", step)
    for _ in range(3):
        training_loop.run_training(config, str(run_dir), resume="newest" if list_states(run_dir) else None)
    names = [{path.name for path in folder.iterdir() if path.suffix in (".pkl", ".png")}
             for folder in (straight, run_dir)]
    assert names[1] - names[0] == {f"{stem}000000_016.{suffix}" for stem, suffix in (("network-snapshot-", "pkl"),
                                                                                      ("fakes", "png"))}
    assert [pickle.name for pickle in list_pickles(straight)] == [
        f"network-snapshot-000000{images}.pkl" for images in ("", "_040", "_064")]
    for name in names[1] - names[0]:
        (run_dir / name).unlink()
    assert differences(straight, run_dir) == []
    steps = [event.step for file in sorted(straight.glob("events.*")) for event in EventFileLoader(str(file)).Load()
             if any(value.tag == "Loss/scores/real" for value in event.summary.value)]
    assert steps == [8, 24, 40, 56, 64], "one place for each tick on TensorBoard's axis"


@pytest.mark.parametrize("first, second", [("false", "true"), ("true", "false")])
def test_moments_follow_another_memory_format(tiny_dataset, tmp_path, first, second):
    """Fused optimisers, those of GPUs, refuse moments that lie in memory otherwise than parameters do."""
    options = ["--method=stylegan2", "--aug=noaug"]
    trainer = Trainer(small_config(tiny_dataset, *options, f"--nhwc={first}"), str(tmp_path))
    trainer.step(trainer.next_batch())
    trainer._save_state()
    trainer.close()
    state = read_state(list_states(tmp_path)[0].path)["optimizers"]
    trainer = Trainer(small_config(tiny_dataset, *options, f"--nhwc={second}"), str(tmp_path), resume="newest")
    other_layouts = 0
    for phase in trainer.phases:
        for number, p in enumerate(phase.opt.param_groups[0]["params"]):
            for name, moment in phase.opt.state[p].items():
                saved = state[phase.name[0]][number][name]
                assert torch.equal(moment, saved) and (name == "step" or moment.stride() == p.stride())
                other_layouts += name != "step" and saved.stride() != p.stride()
    assert other_layouts > 10
    trainer.step(trainer.next_batch())
    trainer.close()


def test_the_wall_clock_has_no_part(run, tmp_path, monkeypatch):
    """Time that jumps back and forth leaves no trace but in time stamps."""
    config, run_dir = run
    training_loop.run_training(config, str(run_dir))
    jumping = tmp_path / "jumping"
    jumping.mkdir()
    clock = iter(range(10**9, 0, -10**5))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    training_loop.run_training(config, str(jumping))
    assert differences(run_dir, jumping) == []


# ----------------------------------------------------------------------------------------------------------------------
# Writing beside training.


def test_training_goes_on_while_files_are_written(run, monkeypatch):
    config, run_dir = run
    trainer = Trainer(config, str(run_dir))
    gate, original = threading.Event(), training_state.write_state

    def slow(*args):
        assert gate.wait(60)
        original(*args)

    monkeypatch.setattr(checkpoints, "write_state", slow)
    trainer.step(trainer.next_batch())
    trainer._save_state()
    saved = trainer.G.mapping.fc0.weight.clone()
    trainer.step(trainer.next_batch())
    trainer.step(trainer.next_batch())
    assert not list_states(run_dir), "still being written"
    gate.set()
    assert trainer.checkpoints.wait() == []
    content = read_state(list_states(run_dir)[0].path)
    assert content["progress"]["nimg"] == 8 and trainer.progress.nimg == 24
    assert torch.equal(content["networks"]["G"]["mapping.fc0.weight"], saved), "a copy, not what came after"
    trainer.close()


@contextlib.contextmanager
def full_disk(monkeypatch, *, writes):
    """As on a full disk, files of some size can't be written for a while: so many times."""
    failed = []
    original = training_state.atomic_write

    @contextlib.contextmanager
    def failing(path):
        if len(failed) < writes:
            failed.append(path)
            raise OSError(28, "No space left on device", str(path))
        with original(path) as f:
            yield f

    for module in (training_state, network_pickle, snapshot):
        monkeypatch.setattr(module, "atomic_write", failing)
    monkeypatch.setattr(run_log, "append_text", lambda path, text: append(path, text, failed, writes))
    yield failed


def append(path, text, failed, writes):
    if len(failed) < writes:
        raise OSError(28, "No space left on device", str(path))
    with open(path, "a") as f:
        f.write(text)


def test_a_disk_that_is_full_for_a_while_costs_nothing(run, monkeypatch, capsys, tmp_path):
    config, run_dir = run
    config = dataclasses.replace(config, snapshot_ticks=1)
    straight = tmp_path / "straight"
    straight.mkdir()
    training_loop.run_training(config, str(straight))
    capsys.readouterr()
    training_loop.run_training(dataclasses.replace(config, total_kimg=0.008), str(run_dir))
    before = list_states(run_dir)[0]
    with full_disk(monkeypatch, writes=4) as failed:
        training_loop.run_training(config, str(run_dir), resume="newest")
    out = capsys.readouterr().out
    assert len(failed) == 4 and out.count("No space left on device; training continues, and tries again") >= 4
    assert "stats.jsonl" in out and "training-state" in out and "network-snapshot" in out and "fakes" in out
    assert before.nimg == 8 and [s.nimg for s in list_states(run_dir)] == [64, 56]
    lost = pickle_path(straight, 24, exact=True)
    assert not (run_dir / lost.name).exists(), "the next tick's is there in its place"
    lost.unlink()
    assert differences(straight, run_dir) == []


def test_a_disk_that_stays_full_is_an_error_in_the_end(run, monkeypatch, capsys):
    config, run_dir = run
    training_loop.run_training(dataclasses.replace(config, total_kimg=0.016), str(run_dir))
    good = list_states(run_dir)[0]
    with full_disk(monkeypatch, writes=100), pytest.raises(UserError) as caught:
        training_loop.run_training(config, str(run_dir), resume="newest")
    assert "training-state" in str(caught.value) and "network-snapshot" in str(caught.value)
    assert "stats.jsonl" in str(caught.value)
    assert list_states(run_dir)[0] == good and read_state(good.path)["progress"]["nimg"] == 16
    monkeypatch.undo()
    training_loop.run_training(config, str(run_dir), resume="newest")
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [round(line["Progress/kimg"]["mean"] * 1000) for line in lines] == [8, 16, 32, 48, 64]


def test_a_pickle_that_could_not_be_saved_is_saved_when_the_run_goes_on(run):
    config, run_dir = run
    training_loop.run_training(config, str(run_dir))
    pkl = list_pickles(run_dir)[-1].path
    kept = shutil.copytree(run_dir, run_dir.parent / "kept")
    pkl.unlink()
    training_loop.run_training(config, str(run_dir), resume="newest")
    assert pkl.exists() and differences(kept, run_dir) == []


def test_a_metric_that_fails_does_not_end_training(run, monkeypatch, capsys):
    config, run_dir = run
    config = dataclasses.replace(config, metrics=("fid1k", "is1k"), detector="no-such-net.pt", total_kimg=0.008)
    training_loop.run_training(config, str(run_dir))
    captured = capsys.readouterr()
    assert captured.out.count("Warning: no fid1k for ") == captured.out.count("Warning: no is1k for ") == 1
    assert "no-such-net.pt" in captured.out and "Done" in captured.out and "Traceback" not in captured.err

    def buggy(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(evaluation.metric_main, "calc_metric", buggy)
    shutil.rmtree(run_dir)
    run_dir.mkdir()
    training_loop.run_training(config, str(run_dir))
    captured = capsys.readouterr()
    assert "Done" in captured.out and "Warning: no fid1k" in captured.out and "ZeroDivisionError" in captured.err
