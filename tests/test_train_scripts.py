"""The scripts for published results: what each of them resolves to, and the ones that prepare data."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest

import train
from metrics.published import PUBLISHED
from paths import ROOT, SHARED
from training.config import comparison, released
from training.config.options import Options
from training.config.presets import METHODS
from training.config.resolve import resolve as resolve_options
from training.config.resolve import warnings
from training.config.rivals import RIVALS
from training.config.schema import TrainingConfig, to_legacy_kwargs
from training.jobs.prepare_run import choose_device, inspect_dataset
from training.runs import paper_tables

SCRIPTS = ROOT / "train_scripts"
FOLDERS = ("table1", "table2", "table3", "ggdr")
FULL = ("fid50k_full", "pr50k3_full")

# What the papers and the ADA program's presets say of every run on a data set.
_PAPER256 = dict(preset="paper256", resolution=256, aug=None, gpus=8, batch=64, batch_gpu=8, gamma=1, cbase=16384,
                 map_depth=8, arch="resnet", ema_kimg=20)
_PAPER512 = _PAPER256 | dict(preset="paper512", resolution=512, aug="ada", gamma=0.5, cbase=32768)
SETTINGS = {
    "ffhq256":    _PAPER256 | dict(mirror=True, kimg=25000, metrics=FULL),
    "church256":  _PAPER256 | dict(mirror=False, kimg=50000, metrics=FULL),
    "bedroom256": _PAPER256 | dict(mirror=False, kimg=50000, metrics=("fid50k", "pr50k3")),
    "cifar10":    dict(preset="cifar", resolution=32, aug="ada", gpus=2, batch=64, batch_gpu=32, gamma=0.01,
                       cbase=16384, map_depth=2, arch="orig", ema_kimg=500, mirror=False, kimg=100000,
                       metrics=("fid50k_full", "is50k")),
} | {f"afhq{kind}512": _PAPER512 | dict(mirror=True, kimg=25000, metrics=FULL) for kind in ("cat", "dog", "wild")}


class Task(NamedTuple):
    """What D does besides, and its weights on real and on fake images (None = no task)."""

    method: str
    real: float | None = None
    fake: float | None = None
    res_g: int | None = None            # Resolution of f.
    decoder: int | None = None          # Resolution of D's decoder.
    feature: int | None = None          # Resolution of the features that are compared.


BASELINE = Task("stylegan2")


def glead(res_g, real=10, fake=3):
    return Task("glead", real or None, fake or None, res_g, 64)


def ggdr(res):
    return Task("ggdr", None, 10, None, res, res)


def star(res_g):
    return Task("glead+ggdr", 10, 10, res_g, 64, res_g)


RUNS = (
    {
        f"table1/{name}-{method}": (f"{name}256", task)
        for name, res_g in (("ffhq", 64), ("bedroom", 32), ("church", 32))
        for method, task in (
            ("stylegan2", BASELINE), ("glead", glead(res_g)), ("ggdr", ggdr(64)), ("glead-ggdr", star(res_g))
        )
    }
    | {"table2/lambda-0-0": ("church256", BASELINE)}
    | {
        f"table2/lambda-{real}-{fake}": ("church256", glead(32, real, fake))
        for real, fake in ((100, 0), (10, 0), (1, 0), (0, 10), (10, 10), (10, 3), (10, 1))
    }
    | {"table3/baseline": ("church256", BASELINE)}
    | {f"table3/res-g-{res_g}": ("church256", glead(res_g)) for res_g in (1, 8, 16, 32, 64)}
    | {"ggdr/cifar10-ada": ("cifar10", BASELINE)}
    | {f"ggdr/cifar10-ada-ggdr{suffix}": ("cifar10", ggdr(8)) for suffix in ("", "-untuned")}
    | {f"ggdr/afhq{kind}-ada": (f"afhq{kind}512", BASELINE) for kind in ("cat", "dog", "wild")}
    | {f"ggdr/afhq{kind}-ada-ggdr": (f"afhq{kind}512", ggdr(64)) for kind in ("cat", "dog", "wild")}
)
DIFFERENT = {
    "ggdr/cifar10-ada": dict(cbase=32768),                              # The same networks at 32x32.
    "ggdr/cifar10-ada-ggdr-untuned": dict(preset="cifarbaseline", map_depth=8, arch="resnet"),
}
DATA = {  # Script: name of the data set, arguments of dataset_tool.py.
    "data/ffhq":         ("ffhq256.zip",     ["--preset=ffhq256"]),
    "data/lsun-church":  ("church256.zip",   ["--preset=lsun256"]),
    "data/lsun-bedroom": ("bedroom256",      ["--preset=lsun256", "--shard-size=100000"]),
    "data/cifar10":      ("cifar10.zip",     []),
    "data/afhq-cat":     ("afhqcat512.zip",  ["--preset=afhq"]),
    "data/afhq-dog":     ("afhqdog512.zip",  ["--preset=afhq"]),
    "data/afhq-wild":    ("afhqwild512.zip", ["--preset=afhq"]),
}


def run_script(name, *arguments, python, data, cwd=None):
    env = {**os.environ, "GLEAD_PYTHON": str(python), "GLEAD_DATA": str(data), "OMP_NUM_THREADS": "1"}
    command = ["bash", SCRIPTS / f"{name}.sh", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    """Stands in for Python: prints its arguments, one to a line."""
    path = tmp_path_factory.mktemp("bin") / "recorder"
    path.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Three images of each data set, some as folders, some as zips."""
    root = tmp_path_factory.mktemp("datasets")
    for name, settings in SETTINGS.items():
        (root / name / "00000").mkdir(parents=True)
        for i in range(3):
            side = settings["resolution"]
            PIL.Image.fromarray(np.full([side, side, 3], 50 * i, np.uint8)).save(root / name / f"00000/img{i:08d}.png")
        if name != "bedroom256":
            shutil.make_archive(root / name, "zip", root / name)
            shutil.rmtree(root / name)
    return root


@pytest.fixture(scope="module")
def recorded(recorder, datasets):
    """The arguments with which every script for a run starts Python."""
    lines = {}
    for name in RUNS:
        done = run_script(name, python=recorder, data=datasets)
        assert done.returncode == 0, done.stderr
        lines[name] = done.stdout.splitlines()
    return lines


def test_the_sweep_resumes_and_leaves_out_what_is_done(recorder, datasets, tmp_path):
    """Each method once, alike but for its name; one that has finished is not trained again."""
    done = run_script("rivals", f"--outdir={tmp_path}", "--kimg=5", python=recorder, data=datasets)
    assert done.returncode == 0, done.stderr
    starts = [i for i, line in enumerate(done.stdout.splitlines()) if line.endswith("train.py")] + [None]
    commands = [done.stdout.splitlines()[a + 1:b] for a, b in zip(starts, starts[1:])]
    names = [command[-1].removeprefix("--method=") for command in commands]
    assert len(set(names)) == len(names) >= 18 and names[:4] == ["stylegan2", "ggdr", "glead", "glead+ggdr"]
    assert {name for method in names for name in method.split("+")} == {*METHODS, *RIVALS} - {"glead+ggdr"}
    assert len({tuple(command[2:-1]) for command in commands}) == 1 and "--kimg=5" in commands[0]
    for command in commands:
        resolve([argument for argument in command if not argument.startswith("--gpus")])
    (tmp_path / "stylegan2" / "outcome.txt").write_text("finished\n")
    arguments = (f"--outdir={tmp_path}", "--methods=stylegan2,stylegan2+zcr")
    done = run_script("rivals", *arguments, python=recorder, data=datasets)
    assert "== stylegan2: done before" in done.stderr and done.stdout.splitlines()[-1] == "--method=stylegan2+zcr"
    assert done.stdout.count("--method=") == 1
    done = run_script("rivals", "--method=glead", python=recorder, data=datasets)
    assert done.returncode == 1 and done.stderr.startswith("--method=glead: name what to train by --methods=")


def resolve(arguments: list[str]) -> tuple[Options, TrainingConfig]:
    """What `train.py` makes of its arguments; it warns of nothing."""
    options, notes = released.parse(train.main.make_context("train.py", arguments).params)
    dataset, _ = inspect_dataset(options)
    config = resolve_options(options, dataset, device=choose_device(options))
    assert notes + warnings(options, config) == []
    return options, config


def settings_of(config):
    return dict(
        preset=config.preset, resolution=config.dataset.resolution, aug=config.augment and config.augment.mode,
        gpus=config.num_gpus, batch=config.batch_size, batch_gpu=config.batch_gpu, gamma=config.loss.r1_gamma,
        cbase=config.G.channel_base, map_depth=config.G.map_depth, arch=config.D.architecture, ema_kimg=config.ema_kimg,
        mirror=config.dataset.xflip, kimg=config.total_kimg, metrics=config.metrics,
    )  # fmt: skip


def task_of(config):
    weights = [task and task.weight for task in (config.loss.real_task, config.loss.fake_task)]
    return Task(config.method, *weights, config.D.res_g, config.D.decoder_res, config.loss.feature_res)


def published_source(name):
    """`GLeaD, Table 2`, of a script's header."""
    return re.search(r"^# Published \(([^)]*)\)", (SCRIPTS / f"{name}.sh").read_text(), re.M)[1]


def scores_in(text):
    """Names and values in `... FID 2.82, precision 0.62, ...`."""
    return {name.lower(): float(value) for name, value in re.findall(r"\b(FID|IS|precision|recall) (\d+\.\d+)", text)}


def header_scores(name):
    (line,) = [line for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if line.startswith("# Published (")]
    return scores_in(line)


def test_every_script_is_listed_here_and_described_in_the_readme():
    found = {str(path.relative_to(SCRIPTS).with_suffix("")) for path in SCRIPTS.glob("*/*.sh")}
    found = {name for name in found if not name.startswith("cluster/")}  # these run any command
    assert found == RUNS.keys() | DATA.keys()
    rows = re.findall(r"^\| \[`([^`]*)\.sh`\]\(([^)]*)\.sh\) \|(.*)$", (SCRIPTS / "README.md").read_text(), re.M)
    rows = [row for row in rows if not row[0].startswith("cluster/")]
    assert sorted(name for name, _, _ in rows) == sorted(found)
    for name, link, text in rows:
        assert link == name
        if name in RUNS:
            assert scores_in(text) == header_scores(name), name


@pytest.mark.parametrize("name", [*RUNS, *DATA])
def test_scripts_say_what_they_are(name):
    text = (SCRIPTS / f"{name}.sh").read_text()
    assert f"\n# Usage: bash train_scripts/{name}.sh " in text
    assert len(text.splitlines()) <= 12 and not re.search(r"(^|[ =\"'])(/home|/root|/mnt|~)/", text)
    assert os.access(SCRIPTS / f"{name}.sh", os.X_OK)


@pytest.mark.parametrize("name", RUNS)
def test_resolved_settings_are_the_published_ones(recorded, datasets, name):
    data, task = RUNS[name]
    program, *arguments = recorded[name]
    assert program == str(ROOT / "train.py")
    parsed, config = resolve(arguments)
    assert settings_of(config) == SETTINGS[data] | DIFFERENT.get(name, {})
    assert task_of(config) == task
    assert config.perceptual == ("lpips-vgg" if config.method.startswith("glead") else None)
    assert (config.recipe, config.dataset.use_labels, config.dataset.max_size) == ("paper", False, None)
    assert (config.resume, config.D.freeze_layers, config.snapshot_ticks) == (None, 0, 50)
    assert parsed.outdir == str(ROOT / "runs")
    assert Path(config.dataset.path) in (datasets / data, datasets / f"{data}.zip")
    if config.augment:
        assert (config.augment.pipe, config.augment.target, config.augment.ada_kimg) == ("bgc", 0.6, 500)
    said = comparison.departures_line(config)
    if name == "ggdr/cifar10-ada-ggdr-untuned":
        assert said == "Departs from the paper in: settings (--cfg=cifarbaseline instead of --cfg=cifar)"
    elif task != BASELINE and task != glead(32):    # the centre of several tables
        assert said.startswith(f"As published ({published_source(name)}, ")
    else:
        assert said.startswith("As published (")


@pytest.mark.skipif(not (SHARED / "golden/misc").is_dir(), reason="no golden numbers: set GLEAD_SHARED")
@pytest.mark.parametrize(
    "name, program, key",
    [
        ("table1/church-stylegan2", "sg2", "sg2|paper256|gpus8|res256"),
        ("table1/church-glead", "glead", "glead_gfwimage|paper256|gpus8|res256"),
        ("table1/church-ggdr", "ggdr", "ggdr|paper256|gpus8|res256"),
        ("table1/ffhq-glead-ggdr", "glead", "glead_gfeat|paper256|gpus8|res256"),
    ],
)
def test_golden_networks_and_losses_of_table_1(recorded, name, program, key):
    published = json.loads((SHARED / f"golden/misc/train_configs_{program}.json").read_text())["configs"][key]
    options = to_legacy_kwargs(resolve(recorded[name][1:])[1])
    for part in ("G_kwargs", "D_kwargs", "loss_kwargs", "G_opt_kwargs", "D_opt_kwargs"):
        theirs = {k: v for k, v in published[part].items() if k != "class_name"}
        ours = {k: v for k, v in options[part].items() if k != "class_name"}
        if (program, part) == ("ggdr", "D_kwargs"):
            assert ours.pop("decoder_conv_kernel_size") == 1  # fixed in that program
        assert ours == theirs
    for part in ("batch_size", "batch_gpu", "ema_kimg", "ema_rampup", "num_gpus"):
        assert options[part] == published[part]


def script_of(row):
    """The script of a published row, or None."""
    paper, _, table = row.source.partition(", ")
    method = row.method.lower().replace("+", "-")
    if paper.startswith("GLeaD") and row.method not in ("UT", "Polarity"):
        return {
            "Table 1": f"table1/{(row.dataset or '').removeprefix('LSUN ').lower()}-{method}",
            "Table 2": "table2/lambda-" + "-".join(re.findall(r"\d+", row.method)),
            "Table 3": "table3/baseline" if row.method == "no f" else f"table3/res-g-{row.method.rpartition('x')[2]}",
        }[table]
    if (paper.startswith("GGDR") and table in ("Table 2", "Table 4") and row.method in ("ADA", "ADA+GGDR")
            and row.dataset != "Landscape"):
        return f"ggdr/{re.sub(r'[^a-z0-9]', '', row.dataset.lower())}-{method}"
    return None


def test_published_numbers_on_top():
    rows = {name: row.scores for row in PUBLISHED if (name := script_of(row)) is not None}
    rows["ggdr/cifar10-ada-ggdr-untuned"] = rows["ggdr/cifar10-ada-ggdr"]
    assert rows.keys() == RUNS.keys()
    for name, scores in rows.items():
        assert header_scores(name) == {key: value for key, value in scores.items() if not key.endswith("_std")}, name


def test_every_argument_can_be_overridden(recorder, datasets, tmp_path):
    said = [f"--data={datasets / 'bedroom256'}", f"--outdir={tmp_path / 'my runs'}", "--gpus=4", "--kimg=1000",
            "--cfg=auto", "--aug=fixed", "--p=0.2", "--mirror=1", "--metrics=none", "--lambda-real=5",
            "--lambda-fake=0", "--res_g=16", "--seed=3"]  # fmt: skip
    done = run_script("table1/church-glead", *said, python=recorder, data=tmp_path / "nothing here")
    assert done.returncode == 0, done.stderr
    parsed, config = resolve(done.stdout.splitlines()[1:])
    assert (parsed.outdir, parsed.data) == (str(tmp_path / "my runs"), str(datasets / "bedroom256"))
    assert (config.num_gpus, config.total_kimg, config.preset, config.metrics) == (4, 1000, "auto", ())
    assert (config.augment.mode, config.dataset.xflip, config.random_seed) == ("fixed", True, 3)
    assert task_of(config) == Task("glead", 5, None, 16, 64)

    done = run_script("table1/church-glead", "--data", "some where", python=recorder, data=tmp_path / "nothing here")
    assert done.stdout.splitlines()[-2:] == ["--data", "some where"]


@pytest.mark.parametrize("name", ["table1/ffhq-glead", "table2/lambda-10-3", "table1/bedroom-ggdr", "ggdr/cifar10-ada",
                                  "ggdr/afhqcat-ada", "ggdr/afhqdog-ada", "ggdr/afhqwild-ada"])
def test_missing_data_names_the_script_that_makes_it(recorder, tmp_path, name):
    done = run_script(name, python=recorder, data=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"No data set at {tmp_path}/{RUNS[name][0]}.zip: make it with ")
    (maker,) = re.findall(r"bash train_scripts/(\S+)\.sh --source=", line)

    done = run_script(maker, "--source=/dev/null", python=recorder, data=tmp_path)
    (dest,) = [line.removeprefix("--dest=") for line in done.stdout.splitlines() if line.startswith("--dest=")]
    Path(dest).touch()
    done = run_script(name, python=recorder, data=tmp_path)
    assert done.returncode == 0 and f"--data={dest}" in done.stdout.splitlines()


@pytest.mark.parametrize("name", DATA)
def test_preparation_of_data(recorder, tmp_path, name):
    dataset, arguments = DATA[name]
    data = tmp_path / "data sets"
    done = run_script(name, "--source=/dev/null", "--max-images=10", python=recorder, data=data)
    assert done.returncode == 0 and data.is_dir()
    assert done.stdout.splitlines() == [str(ROOT / "dataset_tool.py"), f"--dest={data / dataset}", *arguments,
                                        "--source=/dev/null", "--max-images=10"]
    assert "dataset_tool.py" in done.stderr  # the command is shown


def test_mistakes_in_preparing_data(recorder, tmp_path):
    data = tmp_path / "data"
    for arguments, message in (
        ([], "--source is missing: give the path of the folder images1024x1024 of FFHQ"),
        (["--source=nowhere"], "--source=nowhere: there is no such file or folder"),
        (["--source", "nowhere"], "--source=nowhere: there is no such file or folder"),
    ):
        done = run_script("data/ffhq", *arguments, python=recorder, data=data, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")
    done = run_script("data/ffhq", "--source=/dev/null", f"--dest={tmp_path}/x.zip", python=recorder, data=data)
    assert done.stdout.splitlines()[-1] == f"--dest={tmp_path}/x.zip" and not data.exists()


def test_released_networks_go_into_table_1(recorder, datasets, tmp_path):
    for name in ("church.pkl", "bedroom-ggdr.pkl", "other.pkl"):
        (tmp_path / name).write_bytes(b"")
    done = run_script("score_released", tmp_path, "--gpus=8", python=recorder, data=datasets)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / "calc_metrics.py"), "table", "glead-1",
                                        f"--models={tmp_path}/released.json", "--gpus=8"]
    models = paper_tables.find_models("glead-1", str(tmp_path / "released.json"))
    assert [(m.row, m.table.dataset, m.network, m.data) for m in models] == [
        ("GLeaD", "LSUN Church", str(tmp_path / "church.pkl"), str(datasets / "church256.zip")),
        ("GLeaD+GGDR", "LSUN Bedroom", str(tmp_path / "bedroom-ggdr.pkl"), str(datasets / "bedroom256"))]
    (tmp_path / "none").mkdir()
    for arguments, message in (([], "Say in which folder"), (["none"], "none holds none of {ffhq,church,bedroom}")):
        done = run_script("score_released", *arguments, python=recorder, data=datasets, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr and not list((tmp_path / "none").iterdir())
    done = run_script("score_released", tmp_path, python=recorder, data=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr    # no data set


@pytest.mark.parametrize("name", ["table1/church-glead", "data/lsun-bedroom"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_the_comment_on_top(recorder, tmp_path, name, option):
    done = run_script(name, option, python=recorder, data=tmp_path)
    lines = (SCRIPTS / f"{name}.sh").read_text().splitlines()
    comment = [line.removeprefix("# ") for line in lines[1 : lines.index("set -euo pipefail")]]
    assert done.returncode == 0 and done.stdout.splitlines()[: len(comment)] == comment
    assert "GLEAD_DATA" in done.stdout and "set -euo" not in done.stdout and done.stderr == ""


@pytest.mark.parametrize("name", ["table1/ffhq-glead", "ggdr/cifar10-ada-ggdr"])
def test_dry_run_of_the_real_command(recorded, datasets, tmp_path, name):
    said = ["--dry-run", f"--outdir={tmp_path}/runs"]
    done = run_script(name, *said, python=sys.executable, data=datasets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{"):])
    expected = to_legacy_kwargs(resolve(recorded[name][1:])[1])
    assert options == {key: json.loads(json.dumps(value)) for key, value in expected.items() if key != "config"}
    assert not list(tmp_path.iterdir())
