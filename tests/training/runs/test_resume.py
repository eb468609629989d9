"""Which run a command resumes, what may change, and one program at a time in a run directory."""

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import pytest

import forking
from dnnlib.util import UserError
from training.config.checks import validate
from training.config.options import OF_IMAGES, OPTIONS, Options
from training.config.resolve import resolve as resolve_options
from training.config.schema import DatasetConfig, to_json
from training.runs import resume
from training.runs.training_state import pickle_path, state_path

COMMAND = {"outdir": "o", "data": "/d", "gamma": 2.0}


def resolve(data=None, device="cpu", **said):
    dataset = DatasetConfig(**({"path": "d", "resolution": 32} | (data or {})))
    return resolve_options(Options(**said), dataset, device=device)


def make_run(outdir, name, *, command=COMMAND, nimg=(1000,), **said):
    path = Path(outdir, name)
    path.mkdir(parents=True)
    options = {"command": command, "config": to_json(resolve(**said))}
    (path / "training_options.json").write_text(json.dumps(options))
    for n in nimg:
        state_path(path, n).touch()
        pickle_path(path, n).touch()
    return str(path)


def found(outdir, command=COMMAND):
    run = resume.find_run(str(outdir), command).run
    return None if run is None else os.path.basename(run.path)


def test_find_run_by_its_command(tmp_path):
    make_run(tmp_path, "00000-a")
    free = dict(outdir=str(tmp_path), gpus=8, snap=1, tick=1.0, metrics=["fid5k"], detector="n.pt", device="cuda",
                workers=0, resume="auto", resume_anyway=True, kimg=100.0, nobench=True, timeout=5.0, keep="best",
                dry_run=True, config="c.yaml", outcome="o.txt", trust_net=True, grid_size=512, log=["wandb"])
    assert free.keys() == resume.FREE_OPTIONS
    assert found(tmp_path, COMMAND | free) == "00000-a"
    for other in ({"gamma": 3.0}, {"cond": True}, {"batch": 8}, {"data": "e"}, {"batch_gpu": 4}, {"seed": 1}):
        assert found(tmp_path, COMMAND | other) is None
    assert found(tmp_path, {"data": "d"}) is None


def test_find_run_takes_the_newest_that_can_go_on(tmp_path):
    assert found(tmp_path / "missing") is None and found(tmp_path) is None
    make_run(tmp_path, "00001-a")
    make_run(tmp_path, "00003-a")
    make_run(tmp_path, "00010-other", command={"data": "d"})
    make_run(tmp_path, "00011-no-state", nimg=())
    finished = make_run(tmp_path, "00012-finished", nimg=(24_000_000, 25_000_000))
    pickle_path(finished, 25_000_000).unlink()
    assert found(tmp_path) == "00012-finished"  # not quite: its last pickle is missing
    pickle_path(finished, 25_000_000).touch()
    make_run(tmp_path, "00013-shorter", nimg=(100_000,), kimg=100)
    for name, text in (("00014", "{"), ("00015", "null"), ("00016", '{"command": 1, "config": {}}'), ("00017", "\xff")):
        path = Path(make_run(tmp_path, name))
        (path / "training_options.json").write_bytes(text.encode("latin1"))
    (Path(make_run(tmp_path, "00018-no-options")) / "training_options.json").unlink()
    (tmp_path / "99999-file").touch()
    (tmp_path / "images").mkdir()
    assert found(tmp_path) == "00003-a"
    assert found(tmp_path, COMMAND | {"kimg": 25001}) == "00013-shorter"
    assert found(tmp_path, COMMAND | {"kimg": 1}) is None      # all of them have seen as many
    with resume.locked(str(tmp_path / "00003-a")):
        assert found(tmp_path) == "00001-a"
        assert resume.find_run(str(tmp_path), COMMAND).busy is None     # another one goes on
        with resume.locked(str(tmp_path / "00001-a")):
            assert resume.find_run(str(tmp_path), COMMAND) == (None, str(tmp_path / "00003-a"))
            assert resume.find_run(str(tmp_path), {"data": "x"}) == (None, None)
    make_run(tmp_path, "100000-a")
    assert found(tmp_path) == "100000-a"


def test_open_run(tmp_path):
    path = make_run(tmp_path, "00000-a")
    run = resume.open_run(path)
    assert run == resume.ResumableRun(path, COMMAND, resolve(), "newest")
    state = str(state_path(path, 1000))
    assert resume.open_run(state) == run._replace(state=state)
    copied = tmp_path / "training-state-000001000.pt"
    copied.touch()
    with pytest.raises(UserError, match="is no run directory: training_options.json can't be read"):
        resume.open_run(str(copied))


@pytest.mark.parametrize(
    "source, expected",
    [("run", True), ("run/training-state-000001000.pt", True), ("training-state-000001000.pt", True),
     ("run/net.pkl", False), ("net.pkl", False), ("ffhq256", False), ("https://example.org/net.pkl", False)],
)  # fmt: skip
def test_what_is_a_run(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    assert resume.is_run(source) == expected


def run_with(**said):
    return resume.ResumableRun("r", {}, resolve(**said))


def test_what_may_change():
    new = resolve(kimg=3, metrics=(), detector="n.pt", workers=0, snap=1, tick=1, nobench=True, keep="best", timeout=5,
                  device="cuda", data={"path": "elsewhere"})
    assert resume.changed(run_with(), new, num_gpus=1, anyway=False) == new


def test_changes_are_all_listed():
    new = resolve(gamma=5, method="ggdr", aug="noaug", allow_tf32=True)
    with pytest.raises(UserError) as e:
        resume.changed(run_with(), new, num_gpus=1, anyway=False)
    text = str(e.value)
    start, rest = "this command differs from the one that started r: ", ". Leave these as they were, or say"
    assert text.startswith(start) and rest in text and "\n" not in text
    names = [part.partition(" was ")[0] for part in text.removeprefix(start).partition(rest)[0].split("; ")]
    assert names == ["--gamma", "--aug", "--p", "--target", "--augpipe", "--method", "--lambda-real", "--lambda-fake",
                     "--res-g", "--res-decoder", "--ggdr-res (--res-g for glead+ggdr)", "--perceptual", "--allow-tf32",
                     "--reg_loss_real", "--reg_loss_fake"]


def test_options_of_rivals_are_named():
    old = run_with(method="stylegan2+zcr")
    with pytest.raises(UserError, match="r: --rival-options=zcr.gen was 0.5, is 2. Leave these as they were"):
        resume.changed(old, resolve(method="stylegan2+zcr", rival_options="zcr.gen=2"), num_gpus=1, anyway=False)


def test_fields_that_options_set_are_all_fields_but_those_that_may_change():
    """So that no message names a field, unless no option sets it."""
    def names(value, prefix=""):
        for name, inner in value.items():
            yield prefix + name
            yield from names(inner, f"{prefix}{name}.") if isinstance(inner, dict) else ()

    fields = set(names(to_json(resolve(method="glead+ggdr"))))
    listed = [name for option in OPTIONS.values() for name in option.fields] + [*OF_IMAGES.values()]
    assert len(listed) == len(set(listed)) and set(listed) <= fields
    without_option = {"G", "D", "loss", "dataset", "G_opt", "D_opt", "dataset.path", "G.z_dim", "G.w_dim",
                      "loss.pl_batch_shrink", "loss.pl_decay", "G.class_name", "D.class_name",
                      "g_reg_interval", "d_reg_interval"}  # fmt: skip
    without_option |= {f"{net}_opt.{name}" for net in "GD" for name in ("beta1", "beta2", "eps")}
    assert fields - set(listed) == without_option


def test_anyway():
    new = resolve(gamma=5, lambda_real=1, batch=16, batch_gpu=8, allow_tf32=True, seed=7,
                  data={"random_seed": 7})
    assert resume.changed(run_with(), new, num_gpus=1, anyway=True) == new


@pytest.mark.parametrize(
    "said, text",
    [({"res_g": 4}, "--res-g was 8, is 4"), ({"cmax": 64}, "--cmax was 512, is 64"),
     ({"map_depth": 3}, "--map-depth was 2, is 3"), ({"method": "stylegan2"}, "--method was glead, is stylegan2"),
     ({"freezed": 1}, "--freezed was 0, is 1"), ({"aug": "noaug"}, "--aug was ada, is none"),
     ({"aug": "fixed", "p": 0.1}, "--aug was ada, is fixed; --p was 0, is 0.1"),
     ({"data": {"resolution": 64}}, "the resolution of the images was 32, is 64"),
     ({"data": {"use_labels": True, "label_dim": 3}}, "--cond was false, is true"),
     ({"data": {"label_dim": 3}}, "dataset.label_dim (--cond) was 0, is 3"),
     ({"fp32": True, "res_g": 4}, "--res-g was 8, is 4"), ({"data": {"xflip": True}}, "--mirror was false, is true")],
)  # fmt: skip
def test_changes_that_no_state_fits(said, text):
    with pytest.raises(UserError, match=f"no training state of r fits: .*{re.escape(text)}.* start a new run"):
        resume.changed(run_with(), resolve(**said), num_gpus=1, anyway=True)


@pytest.mark.parametrize(
    "said, num_gpus, batch_gpu",
    [
        (dict(batch=32), 1, 32),
        (dict(batch=32), 8, 4),
        (dict(batch=32), 16, 2),                       # less than the group of minibatch deviation
        (dict(cfg="paper256"), 1, 8),                    # as published, in parts
        (dict(cfg="paper256"), 8, 8),
        (dict(cfg="paper256", gpus=8), 2, 8),
        (dict(batch=24, batch_gpu=8), 2, 4),           # 12 each: 6 would leave groups of 4 incomplete
        (dict(batch=48, batch_gpu=4), 8, 3),           # never more at once than before
    ],
)
def test_number_of_gpus(said, num_gpus, batch_gpu):
    new = resolve(**said)
    config = resume.changed(run_with(**said), new, num_gpus=num_gpus, anyway=False)
    validate(config)
    assert config == dataclasses.replace(new, num_gpus=num_gpus, batch_gpu=batch_gpu)
    again = resume.changed(resume.ResumableRun("r", {}, config), new, num_gpus=new.num_gpus, anyway=False)
    assert again == new                                     # and back


def test_numbers_of_gpus_that_do_not_go():
    for num_gpus in (0, -1, 3):
        with pytest.raises(UserError, match=f"--gpus is {num_gpus}, expected a power of two"):
            resume.changed(run_with(), resolve(), num_gpus=num_gpus, anyway=False)
    config = resume.changed(run_with(), resolve(), num_gpus=64, anyway=False)
    with pytest.raises(UserError, match="--batch is 32"):
        validate(config)


def test_the_source_network_stays(tmp_path):
    run = run_with(resume="a.pkl")
    assert resume.changed(run, resolve(resume="b.pkl"), num_gpus=1, anyway=False).resume == "a.pkl"


HOLD = """
import subprocess, sys, time
from training.runs import resume
with resume.locked(sys.argv[1]):    # a new program, as the processes that read images are
    print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    path = make_run(tmp_path, "00000-a")
    output = tmp_path / "output"
    output.touch()
    holder = forking.Forked(["python", "-c", HOLD, path], os.environ.copy(), output=output)
    while not output.read_text().endswith("\n"):
        assert holder.poll() is None
    child = int(output.read_text())
    try:
        assert found(tmp_path) is None
        with pytest.raises(UserError, match=f"another program is training in {path}"), resume.locked(path):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)                                   # lives
        assert found(tmp_path) == "00000-a"
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_new_options_leave_the_lock(tmp_path):
    from training.runs import run_dir

    path = make_run(tmp_path, "00000-a")
    with resume.locked(path):
        run_dir.write_options(path, json.loads(Path(path, "training_options.json").read_text()))
        assert found(tmp_path) is None
    assert found(tmp_path) == "00000-a"
