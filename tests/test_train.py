"""The training command line: translation, mistakes, dry runs, launching."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from click.testing import CliRunner

import train
import training.runs.checkpoints
import training.tasks  # noqa: F401
from analysis.curves import read_curves
from dnnlib.util import UserError
from paths import ROOT, SHARED
from training.config import presets, released
from training.config.options import Options
from training.config.resolve import resolve, warnings
from training.config.schema import DatasetConfig, TrainingConfig, discriminator_kwargs, from_json, to_legacy_kwargs
from training.jobs import launch, prepare_run
from training.jobs.launch import Job
from training.runs import resume, run_scores
from training.runs.training_state import pickle_path, state_path

CHURCH = (  # GLeaD's published settings, in the words of its program.
    "--reg_type=glead --glead_res_g=32 --glead_res_d=64 --reg_target_real=gfwimage --reg_loss_real=lpips "
    "--reg_weight_real=10 --reg_target_fake=gfwimage --reg_loss_fake=lpips --reg_weight_fake=3 "
    "--decoder_conv_kernel_size=1 --cfg=paper256 --gpus=8 --mirror=0 --aug=noaug"
).split()
CHURCH_STAR = (
    "--reg_type=glead --glead_res_g=64 --glead_res_d=64 --reg_target_real=gfwimage --reg_loss_real=lpips "
    "--reg_weight_real=10 --reg_target_fake=gfeat --reg_loss_fake=cos --reg_weight_fake=10 "
    "--decoder_conv_kernel_size=1 --cfg=paper256 --gpus=8 --mirror=0 --aug=noaug"
).split()


FINGERPRINT = "f00d"
RUN_PROCESSES = launch._run_processes


class FakeDataset:
    """Stands in for the data set: `PATH` is `<resolution>` or `<resolution>-labels`."""

    def __init__(self, path, *, use_labels=False, **_):
        size, _, labels = Path(path).name.partition("-")
        if not size.isdigit():
            raise UserError(f"can't open {path}: no such folder or zip")
        self.name, self.resolution, self.num_channels = "fake", int(size), 3
        self.has_labels = use_labels and bool(labels)
        self.label_dim = 10 if self.has_labels else 0

    def __len__(self):
        return 1000

    def check(self):
        pass


def fake_generator(map_depth=4, width=512, **channels):
    """What a network file holds, as far as the command line looks at it."""
    kwargs = {"mapping_kwargs": {"num_layers": map_depth, "layer_features": width},
              "synthesis_kwargs": {"channel_base": 16384, "channel_max": 512, **channels}}
    return types.SimpleNamespace(z_dim=512, w_dim=512, img_channels=3, img_resolution=32, init_kwargs=kwargs)


class FakeNet:
    def __init__(self, **kwargs):
        self.kwargs = kwargs

    def parameters(self):
        import torch

        return iter([torch.empty(1_000_000, device="meta")])


@pytest.fixture
def runs():
    """Jobs that reached the training loop, or the launcher of several processes."""
    return []


@pytest.fixture(autouse=True)
def parts(monkeypatch, runs):
    """Replace what train.py calls: it is about the command line here."""

    def missing(spec, **_):
        if spec is not None and "missing" in spec:
            raise UserError(f"no network at {spec}: give another one")

    def check_metrics(names):
        if set(names) - {"fid50k_full", "fid50k"}:
            raise UserError(f"unknown metric among {', '.join(names)}")

    def read_source(source):
        missing(source)
        return dict.fromkeys(("G", "G_ema"), fake_generator())

    def run_training(config, run_dir, *, resume, anyway, begin):
        begin(FINGERPRINT)
        print("training")
        runs.append(Job(config, run_dir, resume, anyway=anyway))

    def run_processes(job):
        launch.write_options(job, FINGERPRINT)
        runs.append(job._replace(command=None))

    fakes = {
        "training.data.dataset": {"ImageFolderDataset": FakeDataset},
        "training.perceptual": {"check_perceptual": missing},
        "training.build": {"build_networks": lambda config: (FakeNet(), FakeNet())},
        "training.training_loop": {"run_training": run_training},
        "metrics.metric_main": {
            "check_metrics": check_metrics,
            "check_detector": lambda metrics, detector, trust: missing(detector),
        },
    }
    for name, content in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(prepare_run, "read_source", read_source)
    monkeypatch.setattr(train.estimate, "describe_long_work", lambda *args, **kwargs: None)     # takes a second
    monkeypatch.setattr(train.estimate, "trace_activations", lambda config: {"Gmain": 1_000_000})   # likewise
    monkeypatch.setattr(launch, "_run_processes", run_processes)
    monkeypatch.setattr(launch, "build_kernels", lambda device: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Call with the number of GPUs that PyTorch is to find."""
    import torch

    def find(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "fake GPU")

    return find


@pytest.fixture
def run(tmp_path):
    """Call the command with arguments; --outdir, --data and --device are given unless said otherwise."""

    def call(*args, data="32", device="cpu"):
        default = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", f"--device={device}"]
        names = {arg.partition("=")[0] for arg in args}
        default = [arg for arg in default if arg.partition("=")[0] not in names]
        return CliRunner().invoke(train.main, default + list(args), prog_name="train.py")

    return call


def resolved(run, runs, *args, **kwargs):
    """The configuration of a run with these arguments, from what the run directory holds."""
    result = run(*args, **kwargs)
    assert result.exit_code == 0, result.output
    config, run_dir, resume, outcome, *_ = runs[-1]
    assert resume is None and outcome is None
    assert from_json(json.loads(Path(run_dir, "training_options.json").read_text())) == config
    return config


def dry(run, *args, **kwargs):
    """The printed options of a dry run."""
    result = run("--dry-run", *args, **kwargs)
    assert result.exit_code == 0, result.output
    start = result.stdout.index("{")
    options, end = json.JSONDecoder().raw_decode(result.stdout[start:])
    return options, result.stdout[start + end :], result.stderr


def test_launch_makes_a_run_directory(run, runs, tmp_path):
    result = run("--metrics=none", "--mirror=1", "--cond=true", data="32-labels")
    assert result.exit_code == 0, result.output
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name == "00000-fake-glead"
    assert sorted(path.name for path in run_dir.iterdir()) == ["log.txt", "training_options.json"]
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["run_dir"] == str(run_dir)
    assert options["batch_size"] == 32 and options["D_kwargs"]["decoder_res"] == [16]
    assert (run_dir / "log.txt").read_text().endswith("training\n")
    config, path, resume, *_ = runs[0]
    assert path == options["run_dir"] and resume is None and options["data_fingerprint"] == FINGERPRINT
    data = os.path.abspath("32-labels")     # for programs that are started elsewhere
    assert options["command"] == {"outdir": str(tmp_path / "runs"), "data": data, "device": "cpu",
                                  "metrics": [], "mirror": True, "cond": True}
    assert data == options["training_set_kwargs"]["path"] == config.dataset.path
    assert (config.dataset.label_dim, config.dataset.use_labels, config.dataset.xflip) == (10, True, True)
    assert run("--metrics=none").exit_code == 0
    assert sorted(path.name[:5] for path in run_dir.parent.iterdir()) == ["00000", "00001"]


def test_dry_run_makes_nothing(run, runs, tmp_path):
    options, summary, warned = dry(run, "-n")
    assert options["batch_size"] == 32 and "config" not in options
    assert "1,000,000 of G, 1,000,000 of D" in summary and "Memory per device:" in summary
    assert "64 images" not in summary and "Batch:             32 images = 1 step of 32 on the CPU\n" in summary
    assert warned == "" and not runs and not (tmp_path / "runs").exists()
    assert summary.splitlines()[-1].startswith("Nothing stands in the way of this run here, unless one of these ")
    verdict = dry(run, "--method=stylegan2", "--metrics=none")[1].splitlines()[-1]
    assert verdict == "Nothing stands in the way of this run here"


@pytest.mark.parametrize("args, text", [
    ("--cfg=paper256 --data=256 --device=cuda", "64 images = 8 steps of 8 on 1 GPU, as many at once as fit its memory"),
    ("--cfg=paper256 --data=256 --device=cuda --gpus=8", "64 images = 1 step of 8 on each of 8 GPUs"),
    ("--batch=16 --batch-gpu=4 --gpus=2", "16 images = 2 steps of 4 on the CPU in each of 2 processes"),
])  # fmt: skip
def test_the_batch_in_plain_words(run, args, text):
    assert f"Batch:             {text}\n" in dry(run, *args.split())[1]


def test_dry_run_for_another_machine_warns_and_goes_on(run, gpus):
    gpus(1)
    options, summary, warned = dry(run, "--gpus=8", "--cfg=paper256", "--perceptual=missing", device="auto", data="256")
    assert (options["num_gpus"], options["batch_size"], options["batch_gpu"]) == (8, 64, 8)
    assert summary.splitlines()[-1].startswith("Departs from the paper in: data set, ")     # warnings come last
    assert warned.splitlines() == [
        "Warning: a run would stop here: --gpus is 8, but this machine has 1",
        "Warning: a run would stop here: no network at missing: give another one",
    ]


MISTAKES = [
    ("--gpus=3", "--gpus is 3, expected a power of two"),
    ("--gpus=0", "--gpus is 0, expected a power of two"),
    ("--gpus=8 --device=cuda", "--gpus is 8, but this machine has 2"),
    ("--gpus=64 --batch=32", "--batch is 32, expected at least 1 and divisible by --gpus=64"),
    ("--keep=best,last", "--keep is 'best,last', expected 'all' or a list of last:N, best and every:N"),
    ("--keep=last:0", "--keep is 'last:0', expected"),
    ("--keep=", "--keep is '', expected"),
    ("--resume=.", "--resume: . is no run directory: training_options.json can't be read (No such file or directory)"),
    ("--resume=/", "--resume: / is no run directory"),
    ("--resume=training-state-000000100.pt", "--resume: there is no training-state-000000100.pt; give the folder of a"),
    ("--batch=0", "--batch is 0"),
    ("--batch=8 --batch-gpu=3", "--batch-gpu is 3, expected a divisor of 8"),
    ("--batch=8 --mbstd-group=5", "--mbstd-group is 5"),
    ("--kimg=0", "--kimg is 0.0"),
    ("--gamma=-1", "--gamma is -1.0"),
    ("--snap=-1", "--snap is -1"),
    ("--glr=0", "--glr is 0.0, expected more than 0"),
    ("--dlr=inf", "--dlr is inf, expected a finite number"),
    ("--tick=0", "--tick is 0.0"),
    ("--seed=-1", "--seed is -1"),
    ("--workers=-1", "--workers is -1"),
    ("--freezed=-1", "--freezed is -1"),
    ("--cbase=8", "--cbase is 8"),
    ("--cmax=0", "--cmax is 0"),
    ("--map-depth=0", "--map-depth is 0"),
    ("--aug=fixed", "--aug=fixed needs --p"),
    ("--p=0.2", "--p is 0.2, but --aug=ada takes no strength"),
    ("--aug=fixed --p=2", "--p is 2.0, expected 0 to 1"),
    ("--aug=noaug --target=0.5", "--target is 0.5, but --aug=noaug adapts nothing"),
    ("--target=2", "--target is 2.0, expected 0 to 1"),
    ("--aug=noaug --augpipe=bg", "--augpipe is bg, but --aug is noaug"),
    ("--res-g=32", "--res-g is 32, expected a power of two from 4 to 16"),
    ("--res-g=6", "--res-g is 6"),
    ("--res-decoder=64", "--res-decoder is 64"),
    ("--method=glead+ggdr --lambda-real=0 --res-g=4", "--res-g is 4, expected a power of two from 8 to 8, the"),
    ("--decoder-kernel=2", "--decoder-kernel is 2"),
    ("--method=ggdr --ggdr-res=64", "--ggdr-res is 64"),
    ("--method=glead+ggdr --res-g=1", "--res-g=1 gives no feature map"),
    ("--lambda-real=-1", "--lambda-real is -1.0"),
    ("--method=zcr --rival-options=zcr.gen=-1", "--rival-options: zcr.gen is '-1', expected a number from 0 to 1000"),
    ("--method=wgan-gp --adversarial=relativistic", "--adversarial is relativistic, but --method=stylegan2+wgan-gp"),
    ("--method=wgan-gp --r1=finite", "--r1=finite estimates the squared gradient, and wgan-gp needs its norm"),
    ("--lambda-real=0 --lambda-fake=0", "no weight is above 0"),
    ("--cond=true", "--cond=true needs labels, and /"),
    ("--subset=0", "--subset is 0, expected 1 to 1000"),
    ("--subset=1001", "--subset is 1001, expected 1 to 1000"),
    ("--data=nowhere", "can't open /"),
    ("--data=24", "the resolution of the images is 24, expected a power of two"),
    ("--metrics=fid50k,fud", "unknown metric fud: there are fid<N>k"),
    ("--detector=missing.pt", "no network at missing.pt"),
    ("--perceptual=missing.pt", "no network at missing.pt"),
    ("--resume=missing.pkl", "--resume: there is no missing.pkl; give the folder of a run, one of its training "
                             "states, a network pickle (path or URL), or one of ffhq256, "),
    ("--resume=https://a.b/missing.pkl", "--resume: no network at https://a.b/missing.pkl: give another one"),
    ("--resume=no/00000-set", "--resume: there is no folder no; give the folder of a run"),
    ("--resume=", "--resume: there is no ''; give the folder of a run"),
    ("--resume=ffhq-256", "--resume: there is no ffhq-256 (there is ffhq256"),
    ("--outdir=/dev/null/runs", "--outdir: can't write /dev/null/runs/run: /dev/null is not a folder"),
    ("--lambda-real=1 --reg_weight_real=1", "--lambda-real and --reg_weight_real are two names of one option"),
    ("--lambda-fake=1 --reg_weight_fake=1", "--lambda-fake and --reg_weight_fake are two names of one option"),
    ("--res-g=8 --glead_res_g=8", "--res-g and --glead_res_g are two names"),
    ("--res-decoder=8 --glead_res_d=8", "--res-decoder and --glead_res_d are two names"),
    ("--decoder-kernel=1 --decoder_conv_kernel_size=1", "--decoder-kernel and --decoder_conv_kernel_size are two"),
    ("--method=stylegan2 --reg_type=glead", "--method=stylegan2 contradicts --reg_type=glead, which mean --method="),
    ("--method=glead --reg_type=none", "--method=glead contradicts --reg_type=none"),
    ("--method=glead --reg_type=ggdr", "--method=glead contradicts --reg_type=ggdr"),
    ("--method=ggdr --reg_target_fake=gfeat", "--method=ggdr contradicts --reg_target_fake=gfeat"),
    ("--method=glead --reg_type=glead --reg_target_fake=gfeat", "--method=glead contradicts --reg_type=glead"),
    ("--method=glead+ggdr --reg_target_fake=gfwimage", "--method=glead+ggdr contradicts --reg_target_fake=gfwimage"),
    ("--reg_target_real=gfeat", "--reg_target_real is gfeat, but real images have no feature map"),
    ("--reg_target_real=None --reg_target_fake=None", "no weight is above 0"),
    ("--reg_loss_real=cos", "--reg_loss_real is cos, but images (gfwimage) are compared by lpips or mse"),
    ("--reg_target_fake=gfeat --reg_loss_fake=lpips", "--reg_loss_fake is lpips, but feature maps (gfeat)"),
    ("--resume=http://x/net.pkl --map-depth=3",
     "--map-depth is 3, but the mapping network of http://x/net.pkl has 4 layers: leave out"),
]


@pytest.mark.parametrize("args, message", MISTAKES, ids=[args for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_leave_nothing(run, runs, gpus, tmp_path, monkeypatch, args, message):
    gpus(2)
    monkeypatch.chdir(tmp_path)
    result = run(*args.split())
    assert result.exit_code == 1
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: " + message)
    assert all(line.startswith("Warning: ") for line in before)
    assert result.stdout == "" and not runs and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        ("--method=gan", "Invalid value for '--method'"),
        ("--method=glead+zrc", "Invalid value for '--method': 'zrc' is no method: expected one of stylegan2,"),
        ("--method=glead+unet", "Invalid value for '--method': unet can't be added to glead: it goes with stylegan2"),
        ("--cfg=paper128", "Invalid value for '--cfg'"),
        ("--batch=many", "Invalid value for '--batch'"),
        ("--mirror=maybe", "Invalid value for '--mirror'"),
        ("--recipe=mine", "Invalid value for '--recipe'"),
        ("--aug=always", "Invalid value for '--aug'"),
        ("--augpipe=all", "Invalid value for '--augpipe'"),
        ("--adversarial=hinge", "Invalid value for '--adversarial'"),
        ("--recon-target=w", "Invalid value for '--recon-target'"),
        ("--reg_type=gan", "Invalid value for '--reg"),
        ("--nonsense=1", "No such option"),
        ("--timeout=0", "Invalid value for '--timeout'"),
        ("--timeout=-1", "Invalid value for '--timeout'"),
        ("--timeout=1e12", "Invalid value for '--timeout'"),
        ("--timeout=nan", "Invalid value for '--timeout'"),
        ("--timeout=soon", "Invalid value for '--timeout'"),
    ],
)
def test_usage_errors(run, args, message):
    result = run(*args.split())
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_outdir_that_is_read_only(run, tmp_path):
    tmp_path.chmod(0o500)
    result = run()
    tmp_path.chmod(0o700)
    assert result.exit_code == 1 and "takes no files" in result.stderr


def test_cuda_without_a_gpu(run, gpus):
    gpus(0)
    for args in (["--device=cuda"], ["--device=auto", "--gpus=2"]):
        result = run(*args)
        assert result.exit_code == 1 and result.stderr.startswith("Error: PyTorch finds no CUDA device")


@pytest.mark.parametrize("args", ["--gpus=4 --device=cpu", "--gpus=4 --device=cuda", "--gpus=4 --device=auto"])
def test_several_processes(run, runs, gpus, args):
    gpus(4)
    config = resolved(run, runs, *args.split())
    assert (config.num_gpus, config.batch_size, config.batch_gpu) == (4, 64, 16)
    assert config.device == ("cpu" if "cpu" in args else "cuda")


def test_device_auto(run, runs, gpus):
    for number, device in ((0, "cpu"), (1, "cuda")):
        gpus(number)
        assert resolved(run, runs, device="auto").device == device


def test_compositions_are_named_whatever_the_order(run, runs):
    """In the summary, with how they depart from the paper, and in what a run is told apart by."""
    _, summary, _ = dry(run, "--method=relativistic+glead+centring", "--rival-options=centring.weight=0.5")
    lines = summary.splitlines()
    assert any(line.startswith("Run:") and line.endswith("-glead+centring+relativistic") for line in lines)
    assert any(line.startswith("Method:") and " glead+centring+relativistic, settings" in line for line in lines)
    for text in ("adversarial loss (relativistic instead of logistic)",
                 "what is added to the method (centring with weight 0.5 instead of nothing)"):
        assert text in summary
    assert resolved(run, runs, "--method=ggdr+glead") == resolved(run, runs, "--method=glead+ggdr")


@pytest.mark.parametrize("command, method", [(CHURCH, "glead"), (CHURCH_STAR, "glead+ggdr")])
def test_released_commands_resolve_to_the_released_program(run, runs, command, method):
    """Its perceptual net, its real task in Dreg, its target; --recipe=paper overrides."""
    options, summary, warned = dry(run, *command, data="256", device="cuda")
    assert [line for line in warned.splitlines() if "no effect" in line] == []
    (said,) = [line for line in summary.splitlines() if "released program" in line]
    assert said.startswith(f"Method:            {method}, ") and said.endswith("; --recipe=paper follows the paper")
    ours = [f"--method={method}", "--cfg=paper256", "--gpus=8", "--aug=noaug", "--device=cpu"]
    released = resolved(run, runs, *command, "--device=cpu", data="256")
    assert released == resolved(run, runs, *ours, "--recipe=released", data="256")
    assert (released.perceptual, released.loss.real_task_in_dreg, released.loss.recon_target) == (
        "lpips-alex", True, "clean")
    paper = resolved(run, runs, *command, "--device=cpu", "--recipe=paper", data="256")
    assert paper == resolved(run, runs, *ours, data="256") and paper.perceptual == "lpips-vgg"
    assert "released program" not in dry(run, *ours, data="256")[1]


def test_no_heads_where_g_rebuilds_nothing(run, monkeypatch):
    """None + gfeat: the parameters of GGDR's D, as in the released program."""
    from training import estimate

    monkeypatch.undo()  # the real networks
    said = ["--cfg=paper256", "--reg_type=glead", "--reg_target_real=None", "--reg_target_fake=gfeat",
            "--glead_res_g=8", "--glead_res_d=8"]  # fmt: skip
    options, notes = released.parse(train.main.make_context("train.py", ["--outdir=o", "--data=d", *said]).params)
    config = resolve(options, DatasetConfig(path="d", resolution=32), device="cpu")
    assert estimate.count_parameters(config).D == 21_769_729
    kwargs = discriminator_kwargs(config)
    ggdr = resolve(Options(cfg="paper256", method="ggdr"), config.dataset, device="cpu")
    assert kwargs == discriminator_kwargs(ggdr) and not notes + warnings(options, config)
    loss = to_legacy_kwargs(config)["loss_kwargs"]
    assert (loss["glead_res_d"], loss["glead_res_g"], loss["reg_target_real"], loss["reg_target_fake"]) == (
        [8], 8, None, "gfeat")


@pytest.mark.skipif(not (SHARED / "golden/misc").is_dir(), reason="no golden numbers: set GLEAD_SHARED")
@pytest.mark.parametrize("command, key", [(CHURCH, "glead_gfwimage"), (CHURCH_STAR, "glead_gfeat")])
def test_golden_released_commands(run, command, key):
    published = json.loads((SHARED / "golden/misc/train_configs_glead.json").read_text())
    published = published["configs"][f"{key}|paper256|gpus8|res256"]
    options, _, _ = dry(run, *command, data="256", device="cuda")
    for name in ("G_kwargs", "D_kwargs", "loss_kwargs", "G_opt_kwargs", "D_opt_kwargs"):
        theirs = {k: v for k, v in published[name].items() if k != "class_name"}
        assert {k: v for k, v in options[name].items() if k != "class_name"} == theirs
    for name in ("batch_size", "batch_gpu", "ema_kimg", "ema_rampup", "total_kimg", "reg_type", "data_loader_kwargs"):
        assert options[name] == published[name]


@pytest.mark.parametrize(
    "args, method, real, fake",
    [
        ("", "glead", 10, 3),
        ("--reg_type=none", "stylegan2", None, None),
        ("--reg_type=ggdr", "ggdr", None, 10),
        ("--reg_type=glead", "glead+ggdr", 10, 10),
        ("--reg_type=glead --reg_loss_fake=lpips", "glead", 10, 3),
        ("--reg_type=glead --recipe=paper", "glead", 10, 3),
        ("--reg_type=glead --reg_target_fake=gfeat", "glead+ggdr", 10, 10),
        ("--reg_target_fake=gfeat", "glead+ggdr", 10, 10),
        ("--reg_type=glead --reg_target_real=None", "glead+ggdr", None, 10),
        ("--reg_type=glead --reg_target_fake=None", "glead", 10, None),
        ("--reg_type=glead --reg_target_real=None --reg_target_fake=gfeat", "glead+ggdr", None, 10),
        ("--method=glead+ggdr --reg_type=glead", "glead+ggdr", 10, 10),
        ("--method=ggdr --reg_type=ggdr --lambda-fake=5", "ggdr", None, 5),
        ("--reg_type=glead --reg_weight_real=100 --reg_weight_fake=0", "glead+ggdr", 100, None),
    ],
)
def test_method_and_weights_that_options_mean(run, runs, args, method, real, fake):
    config = resolved(run, runs, *args.split())
    weights = [task and task.weight for task in (config.loss.real_task, config.loss.fake_task)]
    assert (config.method, *weights) == (method, real, fake)


def test_both_spellings_of_every_option(run, runs):
    one = resolved(run, runs, "--lambda_real=5", "--res_g=4", "--map_depth=3", "--allow_tf32=1", "--batch_gpu=8")
    two = resolved(run, runs, "--lambda-real=5", "--res-g=4", "--map-depth=3", "--allow-tf32=1", "--batch-gpu=8")
    assert one == two and (one.loss.real_task.weight, one.D.res_g, one.allow_tf32) == (5, 4, True)
    three = resolved(run, runs, "--method=ggdr", "--ggdr_res=16")
    assert three == resolved(run, runs, "--reg-type=ggdr", "--ggdr-res=16") and three.loss.feature_res == 16


def test_every_option_reaches_the_configuration(run, runs):
    config = resolved(
        run, runs, "--cfg=cifar", "--gamma=0.5", "--kimg=7.5", "--batch=24", "--batch-gpu=12", "--mbstd-group=6",
        "--snap=3", "--tick=2", "--metrics=fid50k,fid50k_full", "--detector=net.pt", "--seed=9", "--subset=100",
        "--glr=0.01", "--dlr=0.02", "--adversarial=logistic",
        "--recipe=released", "--aug=ada", "--target=0.7", "--augpipe=bgcfnc", "--recon-target=input",
        "--lambda-real=4", "--lambda-fake=2", "--res-g=4", "--res-decoder=8", "--decoder-kernel=3",
        "--decoder-act=lrelu", "--perceptual=p.pt",
        "--cbase=2048", "--cmax=32", "--map-depth=4", "--freezed=2", "--half=bfloat16", "--nhwc=1", "--nobench=1",
        "--allow-tf32=1", "--workers=0", "--resume=https://example.org/net.pkl", "--keep=last:2,best", "--timeout=90",
    )  # fmt: skip
    assert (config.preset, config.loss.r1_gamma, config.total_kimg) == ("cifar", 0.5, 7.5)
    assert (config.G_opt.lr, config.D_opt.lr, config.loss.adversarial) == (0.01, 0.02, "logistic")
    assert (config.batch_size, config.batch_gpu, config.D.mbstd_group_size) == (24, 12, 6)
    assert (config.snapshot_ticks, config.kimg_per_tick, config.metrics) == (3, 2, ("fid50k", "fid50k_full"))
    assert (config.detector, config.random_seed, config.dataset.random_seed) == ("net.pt", 9, 9)
    assert (config.dataset.max_size, config.recipe, config.perceptual) == (100, "released", "p.pt")
    assert (config.loss.real_task.weight, config.loss.fake_task.weight) == (4, 2)
    assert (config.D.res_g, config.D.decoder_res, config.D.decoder_kernel, config.D.decoder_act) == (4, 8, 3, "lrelu")
    for net in (config.G, config.D):
        assert (net.channel_base, net.channel_max) == (2048, 32)
        assert (net.num_fp16_res, net.conv_clamp, net.half_type, net.channels_last) == (4, 256, "bfloat16", True)
    assert (config.G.map_depth, config.D.freeze_layers, config.D.architecture) == (4, 2, "orig")
    assert (config.cudnn_benchmark, config.allow_tf32, config.workers) == (False, True, 0)
    assert config.resume == "https://example.org/net.pkl"
    assert (config.keep, config.timeout_sec) == ("last:2,best", 90)
    assert (config.augment.mode, config.augment.target, config.augment.pipe) == ("ada", 0.7, "bgcfnc")
    assert config.loss.recon_target == "input"
    augment = resolved(run, runs, "--aug=fixed", "--p=0.3").augment
    assert (augment.mode, augment.p, augment.pipe) == ("fixed", 0.3, "bgc")


def test_options_from_a_file(run, runs, start, tmp_path):
    """In JSON or YAML, with either spelling; what stands on the command line wins, by either of two names."""
    file = tmp_path / "options.yaml"
    file.write_text("method: ggdr\nbatch-gpu: 8\ngamma: 5\nmetrics: [fid50k]\nmirror: yes\nlambda_fake: 4\nglr: 1e-3\n"
                    "reg_type: ggdr\nkeep: [last:3, best]\n")
    path = start(f"--config={file}", "--gamma=2", "--reg_weight_fake=6")
    options = json.loads((path / "training_options.json").read_text())
    said = {"method": "ggdr", "batch_gpu": 8, "gamma": 2, "metrics": ["fid50k"], "mirror": True, "reg_weight_fake": 6,
            "glr": 0.001, "reg_type": "ggdr", "keep": "last:3,best"}
    assert {name: options["command"][name] for name in options["command"].keys() & said} == said
    assert options["command"].keys() - said == {"outdir", "data", "device", "resume"}
    config = from_json(options)
    assert (config.batch_gpu, config.loss.r1_gamma, config.loss.fake_task.weight) == (8, 2, 6)
    file.write_text(json.dumps(said))
    assert run(f"--config={file}").exit_code == 0
    assert runs.pop() == Job(config, str(path), "newest")       # the same command, whatever it is read from
    assert "--gamma was 2, is 3" in last_line(run(f"--config={file}", f"--resume={path}", "--gamma=3"))


def test_options_of_another_run(run, runs, start, tmp_path, monkeypatch):
    """Its folder and data too, but for what counts for one command: a stranger's file grants no trust."""
    trusted = []
    monkeypatch.setattr(sys.modules["training.perceptual"], "check_perceptual",
                        lambda *_, trust, **__: trusted.append(trust))
    path = start("--batch=16", "--cond=1", "--trust-net", "--resume-anyway", data="32-labels")
    before = from_json(json.loads((path / "training_options.json").read_text()))
    monkeypatch.chdir(tmp_path)
    line = [f"--config={path / 'training_options.json'}", "--seed=1"]
    assert CliRunner().invoke(train.main, line).exit_code == 0
    data = dataclasses.replace(before.dataset, random_seed=1)
    assert runs[0].config == dataclasses.replace(before, random_seed=1, dataset=data)
    assert Path(runs[0].run_dir).parent == path.parent and runs[0].run_dir != str(path) and not runs[0].anyway
    assert trusted == [True, False]
    result = CliRunner().invoke(train.main, [line[0], "--resume=auto"])
    assert result.exit_code == 0 and (runs[1].run_dir, runs[1].resume) == (str(path), "newest")


@pytest.mark.parametrize("content, message", [
    ("batch: many", ": batch: 'many' is not a valid integer."),
    ("batch: 2.5", ": batch: '2.5' is not a valid integer."),
    ("seed: true", ": seed: 'True' is not a valid integer."),
    ("cfg: [auto, cifar]", ": cfg: 'auto,cifar' is not one of 'auto', "),
    ("gamma:", ": gamma is None, expected a value as on the command line"),
    ("data: {a: 1}", ": data is {'a': 1}, expected a value as on the command line"),
    ("gama: 1", ": 'gama' is no option that a file can give"),
    ("trust_net: true", ": 'trust_net' is no option that a file can give"),
    ("config: a", ": 'config' is no option that a file can give"),
    ("1: 2", ": 1 is no option that a file can give"),
    ('{"command": {"gama": 1}}', ": 'gama' is no option that a file can give"),
    ("[1]", " is no mapping of options to values"), ("", " is no mapping of options to values"),
    ("a: b: c", " can't be read as JSON or YAML: mapping values are not allowed here in "),
    ("[" * 100_000, " can't be read as JSON or YAML: "), (b"\xff", " can't be read as JSON or YAML: 'utf-8' codec"),
    ("!!python/object/apply:os.getcwd []", " can't be read as JSON or YAML: could not determine a constructor"),
    (None, " can't be read as JSON or YAML: [Errno 2] No such file"),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_files_of_options_that_cannot_be_used(run, runs, tmp_path, content, message):
    file = tmp_path / "options.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert last_line(run(f"--config={file}")).startswith(f"{file}{message}")
    assert not runs and not (tmp_path / "runs").exists()


class Case(NamedTuple):
    """An option of StyleGAN2-ADA's program: what it is without being said, what it does, what it refuses."""

    read: Callable[[Options, TrainingConfig], Any]
    default: Any                            # REQUIRED, or what `read` gives.
    said: dict[str, Any]                    # What `read` gives, by arguments.
    mistakes: dict[str, str]                # Message, by arguments.


REQUIRED = "missing"
INVALID = "Invalid value"
STYLEGAN2_ADA = {
    "--outdir": Case(lambda a, c: a.outdir, REQUIRED, {"--outdir=some": "some"}, {"--outdir=": "--outdir is empty"}),
    "--gpus": Case(lambda a, c: c.num_gpus, 1, {"--gpus=8": 8, "--gpus=1": 1},
                   {"--gpus=6": "--gpus is 6, expected a power of two", "--gpus=0": "--gpus is 0", "--gpus=x": INVALID,
                    "--gpus=64 --batch=32": "--batch is 32, expected at least 1 and divisible by --gpus=64"}),
    "--snap": Case(lambda a, c: c.snapshot_ticks, 50, {"--snap=5": 5, "--snap=0": 0}, {"--snap=-1": "--snap is -1"}),
    "--metrics": Case(lambda a, c: c.metrics, ("fid50k_full",),
                      {"--metrics=none": (), "--metrics=fid50k,fid50k_full": ("fid50k", "fid50k_full")},
                      {"--metrics=fud": "unknown metric"}),
    "--seed": Case(lambda a, c: (c.random_seed, c.dataset.random_seed), (0, 0), {"--seed=7": (7, 7)},
                   {"--seed=-1": "--seed is -1", "--seed=0.5": INVALID}),
    "--dry-run": Case(lambda a, c: a.dry_run, False, {"-n": True, "--dry-run": True, "--dry_run": True}, {}),
    "--data": Case(lambda a, c: c.dataset.path, REQUIRED, {"--data=64": "64"},
                   {"--data=nowhere": "can't open /"}),
    "--cond": Case(lambda a, c: (c.dataset.use_labels, c.dataset.label_dim), (False, 0),
                   {"--cond=1 --data=32-labels": (True, 10), "--cond=no --data=32-labels": (False, 0)},
                   {"--cond=1 --data=32": "--cond=true needs labels", "--cond=both": INVALID}),
    "--subset": Case(lambda a, c: c.dataset.max_size, None, {"--subset=10": 10, "--subset=1000": None},
                     {"--subset=1001": "--subset is 1001, expected 1 to 1000", "--subset=0": "--subset is 0"}),
    "--mirror": Case(lambda a, c: c.dataset.xflip, False,
                     {f"--mirror={word}": True for word in ("1", "true", "True", "yes", "on")}
                     | {f"--mirror={word}": False for word in ("0", "false", "FALSE", "no", "off")},
                     {"--mirror=maybe": INVALID}),
    "--cfg": Case(lambda a, c: (c.preset, c.batch_size, c.G.map_depth), ("auto", 32, 2),
                  {"--cfg=paper256": ("paper256", 64, 8), "--cfg=stylegan2": ("stylegan2", 32, 8)},
                  {"--cfg=paper128": INVALID}),
    "--gamma": Case(lambda a, c: c.loss.r1_gamma, 0.0002 * 32**2 / 32, {"--gamma=5": 5, "--gamma=0": 0},
                    {"--gamma=-1": "--gamma is -1.0", "--gamma=inf": "--gamma is inf"}),
    "--kimg": Case(lambda a, c: c.total_kimg, 25000, {"--kimg=100": 100, "--kimg=0.5": 0.5},
                   {"--kimg=0": "--kimg is 0.0"}),
    "--batch": Case(lambda a, c: c.batch_size, 32, {"--batch=48": 48, "--batch=8 --gpus=8": 8},
                    {"--batch=0": "--batch is 0", "--batch=9 --gpus=2": "--batch is 9, expected at least 1 and"}),
    "--aug": Case(lambda a, c: c.augment and c.augment.mode, "ada",
                  {"--aug=noaug": None, "--aug=ada": "ada", "--aug=fixed --p=0.5": "fixed"},
                  {"--aug=fixed": "--aug=fixed needs --p", "--aug=some": INVALID}),
    "--p": Case(lambda a, c: c.augment.p, 0, {"--p=0.3 --aug=fixed": 0.3, "--p=0 --aug=fixed": 0},
                {"--p=0.3": "--p is 0.3, but --aug=ada", "--p=1.1 --aug=fixed": "--p is 1.1, expected 0 to 1"}),
    "--target": Case(lambda a, c: c.augment.target, 0.6, {"--target=0.5": 0.5, "--target=0": 0},
                     {"--target=1.1": "--target is 1.1", "--target=0.5 --aug=noaug": "--target is 0.5, but --aug"}),
    "--augpipe": Case(lambda a, c: c.augment.transforms, presets.PIPES["bgc"],
                      {f"--augpipe={name}": transforms for name, transforms in presets.PIPES.items()},
                      {"--augpipe=bgcx": INVALID, "--augpipe=bg --aug=noaug": "--augpipe is bg, but --aug is noaug"}),
    "--resume": Case(lambda a, c: (c.resume, c.ema_rampup, c.augment.ada_kimg), (None, 0.05, 500),
                     {"--resume=noresume": (None, 0.05, 500), "--resume=net.pkl": ("net.pkl", None, 100),
                      "--resume=https://example.org/a.pkl": ("https://example.org/a.pkl", None, 100)}
                     | {f"--resume={name}": (url, None, 100) for name, url in presets.RESUME_SOURCES.items()},
                     {"--resume=missing.pkl": "--resume: there is no missing.pkl"}),
    "--freezed": Case(lambda a, c: c.D.freeze_layers, 0, {"--freezed=3": 3, "--freezed=10": 10},
                      {"--freezed=-1": "--freezed is -1", "--freezed=9999": "--freezed is 9999, expected at most 10"}),
    "--fp32": Case(lambda a, c: [(net.num_fp16_res, net.conv_clamp) for net in (c.G, c.D)], [(4, 256)] * 2,
                   {"--fp32=1": [(0, None)] * 2}, {"--fp32=half": INVALID}),
    "--nhwc": Case(lambda a, c: (c.G.channels_last, c.D.channels_last), (False, False),
                   {"--nhwc=true": (True, True)}, {}),
    "--nobench": Case(lambda a, c: c.cudnn_benchmark, True, {"--nobench=true": False, "--nobench=0": True}, {}),
    "--allow-tf32": Case(lambda a, c: c.allow_tf32, False, {"--allow-tf32=1": True, "--allow_tf32=true": True},
                         {}),
    "--workers": Case(lambda a, c: c.workers, 3, {"--workers=0": 0, "--workers=8": 8},
                      {"--workers=-1": "--workers is -1", "--workers=5000": "--workers is 5000, expected at most"}),
}


def resolve_line(arguments):
    """What a command line means, without validation against the machine."""
    context = train.main.make_context("train.py", list(arguments))
    options, _ = released.parse(context.params)
    dataset, _ = prepare_run.inspect_dataset(options)
    return options, resolve(options, dataset, device=prepare_run.choose_device(options))


def test_every_option_of_stylegan2_ada_is_there():
    names = {"outdir", "gpus", "snap", "metrics", "seed", "dry-run", "data", "cond", "subset", "mirror", "cfg", "gamma",
             "kimg", "batch", "aug", "p", "target", "augpipe", "resume", "freezed", "fp32", "nhwc", "nobench",
             "allow-tf32", "workers"}
    assert STYLEGAN2_ADA.keys() == {f"--{name}" for name in names}
    assert STYLEGAN2_ADA.keys() <= {opt for param in train.main.params for opt in param.opts}
    assert "-n" in next(param for param in train.main.params if param.name == "dry_run").opts


@pytest.mark.parametrize("option", STYLEGAN2_ADA)
def test_options_of_stylegan2_ada(option):
    case = STYLEGAN2_ADA[option]
    required = ["--outdir=runs", "--data=32"]
    if case.default is REQUIRED:
        rest = [argument for argument in required if not argument.startswith(option)]
        result = CliRunner().invoke(train.main, rest)
        assert result.exit_code == 2 and f"Missing option '{option}'" in result.stderr
    else:
        assert case.read(*resolve_line(required)) == case.default
    for said, value in case.said.items():
        assert case.read(*resolve_line(required + said.split())) == value, said


@pytest.mark.parametrize("line", [line for case in STYLEGAN2_ADA.values() for line in case.mistakes])
def test_mistakes_in_options_of_stylegan2_ada(run, runs, tmp_path, line):
    (message,) = {case.mistakes[line] for case in STYLEGAN2_ADA.values() if line in case.mistakes}
    device = [] if "--device" in line else ["--device=auto"]
    result = run(*line.split(), *device)
    assert result.exit_code == (2 if message is INVALID else 1)
    start = f"Error: {message}" + (f" for '{line.partition('=')[0]}'" if message is INVALID else "")
    assert result.stderr.splitlines()[-1].startswith(start)
    assert not runs and not (tmp_path / "runs").exists()


def test_images_are_read_once_all_else_is_fine(run, runs, gpus, monkeypatch):
    gpus(1)

    def fail(self):
        raise UserError("image 3 is broken")

    monkeypatch.setattr(FakeDataset, "check", fail)
    assert run("--gpus=8", "--device=cuda").stderr.startswith("Error: --gpus is 8")
    assert run("--resume=missing.pkl").stderr.startswith("Error: --resume")
    assert run("--dry-run").exit_code == 0
    assert run().stderr == "Error: image 3 is broken\n" and not runs


def test_the_last_of_a_repeated_option_counts(run, runs):
    config = resolved(run, runs, "--kimg=5", "--aug=fixed", "--batch-gpu=4", "--kimg=7", "--aug=noaug", "--batch_gpu=8")
    assert (config.total_kimg, config.augment, config.batch_gpu) == (7, None, 8)


def test_a_dry_run_downloads_nothing(run, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("looked at a network from elsewhere")

    monkeypatch.setattr(prepare_run, "read_source", fail)
    monkeypatch.setattr(sys.modules["training.perceptual"], "check_perceptual", fail)
    monkeypatch.setattr(sys.modules["metrics.metric_main"], "check_detector", fail)
    url = "https://example.org/net.pt"
    for arguments in ((), ("--recipe=released", "--resume=ffhq256"), (f"--perceptual={url}", f"--detector={url}")):
        assert dry(run, *arguments)[2] == ""
    with pytest.raises(AssertionError, match="from elsewhere"):
        CliRunner().invoke(train.main, ["--outdir=o", "--data=32", "-n", "--detector=net.pt"], catch_exceptions=False)


def test_all_nets_are_told_together_and_trust_is_passed_on(run, monkeypatch):
    result = run("--resume=missing.pkl", "--perceptual=missing-p.pt", "--detector=missing-d.pt")
    assert result.exit_code == 1 and result.stderr.splitlines() == [
        "Error: 3 things are missing or wrong:",
        "  --resume: there is no missing.pkl; give the folder of a run, one of its training states, a network pickle "
        f"(path or URL), or one of {', '.join(presets.RESUME_SOURCES)}",
        "  no network at missing-p.pt: give another one",
        "  no network at missing-d.pt: give another one; --metrics=none trains without scores",
    ]
    trusted = []
    monkeypatch.setattr(sys.modules["training.perceptual"], "check_perceptual",
                        lambda *_, trust, **__: trusted.append(trust))
    for options in ([], ["--trust-net"]):
        assert run("--metrics=none", *options).exit_code == 0
    assert trusted == [False, True]


def test_a_wrong_choice_of_kernels_is_found_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("GLEAD_OPS", "fast")
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", "--data=32"])
    assert result.exit_code == 1 and "GLEAD_OPS=fast: expected one of auto" in result.output
    assert not (tmp_path / "runs").exists()


def test_labels_are_left_alone_without_cond(run, runs):
    dataset = resolved(run, runs, data="32-labels").dataset
    assert (dataset.use_labels, dataset.label_dim) == (False, 0)


def test_subset_of_all_images_is_no_subset(run, runs):
    assert resolved(run, runs, "--subset=1000").dataset.max_size is None


def test_resume_names(run, runs, tmp_path):
    assert resolved(run, runs, "--resume=ffhq256").resume.endswith("/ffhq-res256-mirror-paper256-noaug.pkl")
    assert resolved(run, runs, "--resume=noresume").resume is None
    (tmp_path / "net.pkl").write_bytes(b"x")
    assert resolved(run, runs, f"--resume={tmp_path / 'net.pkl'}").resume == str(tmp_path / "net.pkl")


@pytest.mark.parametrize(
    "args, lines",
    [
        ("--method=stylegan2 --res-g=8", ["--res-g (--glead_res_g) has no effect with --method=stylegan2"]),
        ("--reg_type=none --reg_target_real=None", ["--reg_target_real=None has no effect with --reg_type=none"]),
        ("--reg_target_real=None --reg_weight_real=5",
         ["--lambda-real (--reg_weight_real) has no effect with --reg_target_real=None"]),
        ("--detector=net.pt --metrics=none", ["--detector has no effect without --metrics"]),
        ("--freezed=2", ["--freezed=2 leaves layers of D as they are initialised, because there is no network to start "
                         "from (--resume)"]),
        ("--freezed=2 --resume=http://x/net.pkl", []),
    ],
)  # fmt: skip
def test_warnings(run, runs, args, lines):
    result = run(*args.split())
    assert result.exit_code == 0 and len(runs) == 1
    assert result.stderr.splitlines() == [f"Warning: {line}" for line in lines]


def test_metrics_none_needs_no_networks(run, runs):
    assert resolved(run, runs, "--metrics=none", "--method=stylegan2").metrics == ()
    assert resolved(run, runs, "--cfg=quickstart").metrics == ()
    assert resolved(run, runs).metrics == ("fid50k_full",)


def test_a_failing_run_leaves_its_options_and_log(run, tmp_path, monkeypatch):
    def fail(config, run_dir, **kwargs):
        raise UserError("the pickle is for other images")

    monkeypatch.setattr(sys.modules["training.training_loop"], "run_training", fail)
    result = run()
    assert result.exit_code == 1 and result.stderr == "Error: the pickle is for other images\n"
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (run_dir / "log.txt").read_text().endswith("Error: the pickle is for other images\n")
    json.loads((run_dir / "training_options.json").read_text())


def test_help_is_grouped_and_shows_defaults():
    result = CliRunner().invoke(train.main, ["--help"])
    assert result.exit_code == 0
    headings = [line for line in result.output.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[0] == "General options:" and "Tasks for the discriminator:" in headings and len(headings) == 10
    for option in train.main.params:
        assert option.opts[0] in result.output
    text = " ".join(result.output.split())
    assert text.count("[required, except to resume a run by its directory]") == 2       # --outdir and --data
    assert "[default: (1, under torchrun as many as it started processes)]" in text
    assert "[default: 600; 0<x<=1000000.0]" in text and "--resume auto|noresume|PATH|URL|NAME" in text
    assert max(map(len, result.output.splitlines())) <= 120


# ----------------------------------------------------------------------------------------------------------------------
# Resuming runs.


@pytest.fixture
def start(run, runs):
    """Call to start a run and leave it at `nimg` images; returns its directory."""

    def call(*args, nimg=1000, **kwargs):
        result = run("--resume=noresume", *args, **kwargs)
        assert result.exit_code == 0, result.output
        path = Path(runs.pop().run_dir)
        state_path(path, nimg).touch()
        return path

    return call


def last_line(result):
    assert result.exit_code == 1 and result.stdout == "", result.output
    return result.stderr.removeprefix("Error: ").removesuffix("\n")


def test_the_same_command_goes_on(run, runs, start, tmp_path):
    path = start("--batch=16")
    result = run("--batch=16", "--workers=0", "--metrics=none")
    assert result.exit_code == 0 and result.stderr == ""
    first, *_ = result.stdout.splitlines()
    assert first == f"Resuming in {path}; --resume=noresume starts a new run"
    assert result.stdout.count("\nDeparts from the paper in: data set, ") == 1
    (job,) = runs
    assert (job.run_dir, job.resume, job.config.workers, job.config.metrics) == (str(path), "newest", 0, ())
    options = json.loads((path / "training_options.json").read_text())
    assert from_json(options) == job.config
    assert options["command"]["workers"] == 0 and options["command"]["resume"] == "noresume"
    assert run("--batch=16", "--resume=auto").exit_code == 0
    assert runs[1] == job                                       # what it went on with is what it goes on with
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_second_run_beside_one_that_is_going_on_is_said(run, runs, start, tmp_path):
    path = start()
    with resume.locked(path):
        result = run()
        assert result.exit_code == 0 and Path(runs[0].run_dir).name.startswith("00001-") and runs[0].resume is None
        assert result.stderr == (f"Warning: {path}, which the same command started, is being trained by another "
                                 "program: this is a second run\n")
        for args in (["--resume=noresume"], ["--gamma=2"]):
            assert run(*args).stderr == ""


def test_an_outcome_of_another_time_is_deleted(run, runs, start, tmp_path):
    outcome = tmp_path / "outcome.txt"
    outcome.write_text("finished\n")
    assert run(f"--outcome={outcome}", "--dry-run").exit_code == 0 and outcome.read_text() == "finished\n"
    assert run(f"--outcome={outcome}").exit_code == 0 and outcome.read_text() == "stopped\n"  # it trained nothing
    assert run(f"--outcome={outcome}", "--gpus=2").exit_code == 0 and not outcome.exists()
    assert runs[-1].outcome == str(outcome)
    assert last_line(run(f"--outcome={tmp_path}")).startswith(f"--outcome: can't delete {tmp_path}: ")
    assert last_line(run("--outcome=/proc/o")).startswith("can't write /proc/o: /proc takes no files")
    path = start()
    assert run(f"--outcome={outcome}", "--gpus=2").exit_code == 0   # it is no other command
    assert (runs[-1].run_dir, runs[-1].outcome) == (str(path), str(outcome))


def test_a_new_run_where_there_is_nothing_to_go_on_with(run, runs, start, tmp_path):
    assert run("--resume=auto").exit_code == 0                  # no outdir yet
    assert run("--resume=auto").exit_code == 0                  # a run without a state
    path = start()
    assert run("--gamma=2").exit_code == 0                      # another command
    assert run("--resume=noresume").exit_code == 0
    state_path(path, 25_000_000).touch()
    pickle_path(path, 25_000_000).touch()
    assert run("--resume=auto").exit_code == 0                  # a finished run
    assert [(job.resume, Path(job.run_dir).name[:5]) for job in runs] == [
        (None, "00000"), (None, "00001"), (None, "00003"), (None, "00004"), (None, "00005"),
    ]  # fmt: skip


def test_a_run_directory_says_everything(run, runs, start):
    path = start("--batch=16", "--gamma=3", "--method=ggdr", "--metrics=fid50k", "--gpus=2", "--mirror=1", "--kimg=50",
                 "--cond=1", "--aug=fixed", "--p=0.2", data="32-labels")
    before = from_json(json.loads((path / "training_options.json").read_text()))
    result = CliRunner().invoke(train.main, [f"--resume={path}"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"Resuming in {path}"
    assert runs == [Job(before, str(path), "newest")]
    assert CliRunner().invoke(train.main, [f"--resume={path}/", "--outdir=elsewhere"]).exit_code == 0
    assert runs[1].config == before and not Path("elsewhere").exists()


def test_a_training_state_to_go_on_from(run, runs, start):
    path = start()
    state_path(path, 2000).touch()
    state = state_path(path, 1000)
    assert CliRunner().invoke(train.main, [f"--resume={state}"]).exit_code == 0
    assert (runs[0].run_dir, runs[0].resume) == (str(path), str(state))
    aside = path / "training-state-000003000.pt.unused"
    aside.touch()
    assert CliRunner().invoke(train.main, [f"--resume={aside}"]).exit_code == 0
    assert runs[1].resume == str(aside)
    missing = state_path(path, 5000)
    assert last_line(run(f"--resume={missing}")).startswith(f"--resume: there is no {missing} (there is {path}/train")
    for mistyped in (str(path)[:-1], path.with_name("00000-x")):
        assert f" (there is {path}); give the folder" in last_line(run(f"--resume={mistyped}"))


def test_a_finished_run_goes_on_if_it_is_to_be_longer(run, runs, start):
    path = start("--kimg=10", nimg=10_000)
    assert CliRunner().invoke(train.main, [f"--resume={path}", "--kimg=20"]).exit_code == 0
    assert (runs[0].run_dir, runs[0].config.total_kimg) == (str(path), 20)
    assert run("--kimg=30").exit_code == 0                      # found without being named, too
    assert (runs[1].run_dir, runs[1].config.total_kimg) == (str(path), 30)


def test_other_numbers_of_gpus_and_back(run, runs, start):
    path = start()                                              # batch size and gamma follow from one GPU
    first = from_json(json.loads((path / "training_options.json").read_text()))
    for args, num_gpus, batch_gpu in (
        (["--gpus=4"], 4, 8), ([], 4, 8), (["--gpus=16"], 16, 2), (["--gpus=1"], 1, 32), ([], 1, 32),
    ):  # fmt: skip
        result = CliRunner().invoke(train.main, [f"--resume={path}", *args])
        assert result.exit_code == 0, result.output
        assert runs[-1].config == dataclasses.replace(first, num_gpus=num_gpus, batch_gpu=batch_gpu)
    line = last_line(run(f"--resume={path}", "--gpus=64"))
    assert line.startswith("--batch is 32, expected at least 1 and divisible")
    assert last_line(run(f"--resume={path}", "--gpus=0")).startswith("--gpus is 0, expected a power of two")


def test_changes_of_what_is_learnt(run, runs, start):
    path = start("--batch=16")
    before = (path / "training_options.json").read_text()
    result = run(f"--resume={path}", "--gamma=5", "--batch=32")
    assert last_line(result) == (
        f"this command differs from the one that started {path}: --gamma was 0.0064, is 5; --batch was 16, is 32; "
        "--batch-gpu was 16, is 32. Leave these as they were, or say --resume-anyway"
    )
    refused = run(f"--resume={path}", "--res-g=4", "--resume-anyway")
    assert last_line(refused).startswith(f"no training state of {path} fits: --res-g was 8, is 4. Leave these")
    assert (path / "training_options.json").read_text() == before and not runs
    assert run(f"--resume={path}", "--gamma=5", "--resume-anyway").exit_code == 0
    assert (runs[0].config.loss.r1_gamma, runs[0].config.batch_size) == (5, 16)
    assert CliRunner().invoke(train.main, [f"--resume={path}"]).exit_code == 0
    assert runs[1] == runs[0]._replace(anyway=False)            # from now on it is so
    assert "--gamma was 5, is 6" in last_line(run(f"--resume={path}", "--gamma=6"))


def test_resume_anyway_counts_for_one_command(run, start):
    path = start("--resume-anyway")
    assert "--resume-anyway" in last_line(run(f"--resume={path}", "--gamma=6"))


def test_transfer_learning_goes_on_without_its_source(run, runs, start, tmp_path, monkeypatch):
    source = tmp_path / "net.pkl"
    source.touch()
    path = start(f"--resume={source}")
    source.unlink()
    before = from_json(json.loads((path / "training_options.json").read_text()))
    monkeypatch.setattr(prepare_run, "read_source", lambda *args, **kwargs: 1 / 0)
    assert CliRunner().invoke(train.main, [f"--resume={path}"]).exit_code == 0
    assert runs == [Job(before, str(path), "newest")] and before.resume == str(source)


def test_sizes_come_from_the_source_unless_said(run, runs, start, monkeypatch):
    sizes = {"map_depth": 8, "channel_base": 2048, "channel_max": 64}
    source = dict.fromkeys(("G", "G_ema"), fake_generator(**sizes))
    monkeypatch.setattr(prepare_run, "read_source", lambda *args, **kwargs: source)
    path = start("--resume=http://x/net.pkl")
    before = from_json(json.loads((path / "training_options.json").read_text()))
    for net in (before.G, before.D):
        assert (net.channel_base, net.channel_max) == (2048, 64)
    assert before.G.map_depth == 8
    line = ("http://x/net.pkl; mapping network: 8 layers, from the source instead of 2; cbase 2048 and cmax 64 instead "
            "of 16384 and 512")
    assert f"Start:             {line}\n" in (path / "log.txt").read_text()
    monkeypatch.setattr(prepare_run, "read_source", lambda *args, **kwargs: 1 / 0)
    assert CliRunner().invoke(train.main, [f"--resume={path}"]).exit_code == 0     # the source is not needed again
    assert runs.pop() == Job(before, str(path), "newest")
    monkeypatch.setattr(prepare_run, "read_source", lambda *args, **kwargs: source)
    config = resolved(run, runs, "--resume=http://x/net.pkl", "--cmax=32", "--map-depth=8")
    assert (config.G.map_depth, config.G.channel_base, config.D.channel_max) == (8, 2048, 32)
    source["G"] = fake_generator(width=256)
    message = ("--resume: z, w and the mapping layers of http://x/net.pkl have 256 and 512 numbers, "
               "those of this run 512")
    assert last_line(run("--resume=http://x/net.pkl")) == message


def test_names_of_source_networks_win_over_folders(run, runs, tmp_path, monkeypatch):
    (tmp_path / "ffhq256").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolved(run, runs, "--resume=ffhq256").resume == presets.RESUME_SOURCES["ffhq256"]


def test_runs_that_cannot_go_on(run, runs, start, tmp_path):
    path = start()
    options = path / "training_options.json"
    content = json.loads(options.read_text())
    for text, why in (
        ("{", ""), ("[]", ""), ("[" * 100_000, ""), (json.dumps({"config": content["config"]}), ""),
        (json.dumps(content | {"command": None}), ""),
        (json.dumps(content).replace('"max_size": null', '"max_size": ' + "[" * 900 + "]" * 900),
         " (config is no JSON that can be read: recursion limit exceeded at line 1 column "),
        (json.dumps(content | {"config": content["config"] | {"lr": 1}}), " (config.lr is unknown)"),
    ):  # fmt: skip
        options.write_text(text)
        expected = f"--resume: {options} is not as this version of train.py writes it, so the run can't resume{why}"
        assert last_line(run(f"--resume={path}")).startswith(expected)
    options.write_text(json.dumps(content))
    state_path(path, 1000).unlink()
    assert last_line(run(f"--resume={path}")).startswith(f"--resume: {path} holds no training state: start a new run")
    state_path(path, 1000).touch()
    with resume.locked(str(path)):
        assert last_line(run(f"--resume={path}")).startswith(f"another program is training in {path}")
        assert not runs
        assert run().exit_code == 0 and runs[0].resume is None  # beside it, in a directory of its own
    assert json.loads(options.read_text()) == content
    (path / "stats.jsonl").touch()
    os.mkfifo(state_path(path, 2000))
    message = f"can't open {state_path(path, 2000)}: a device or pipe, not a file"
    assert last_line(run(f"--resume={path}")) == f"--resume: {message}"
    for read in (run_scores.read_options, read_curves):
        with pytest.raises(UserError, match=re.escape(message)):
            read(path)


def test_a_run_that_is_not_resumed_after_all_stays_as_it_is(run, start, monkeypatch):
    """Images that are others, or a state that doesn't fit, show only when all else is set up."""
    path = start()

    def refuse(*args, **kwargs):
        print("Training on 1000 images")
        raise UserError("the images are not those of the run")

    for gpus in (1, 2):
        module, name = {1: (sys.modules["training.training_loop"], "run_training"), 2: (launch, "run_together")}[gpus]
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            patch.setattr(launch, "_run_processes", RUN_PROCESSES)
            files = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
            result = run(f"--resume={path}", "--data=32-b", "--kimg=3", f"--gpus={gpus}")
        assert result.exit_code == 1 and result.stderr == "Error: the images are not those of the run\n"
        assert files == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def test_paths_do_not_depend_on_the_current_folder(run, runs, start, tmp_path, monkeypatch):
    (tmp_path / "net.pt").touch()
    monkeypatch.chdir(tmp_path)
    said = ["--perceptual=net.pt", "--detector=net.pt", "--batch=8"]
    path = start(*said)
    options = json.loads((path / "training_options.json").read_text())
    net, data = str(tmp_path / "net.pt"), str(tmp_path / "32")
    assert (options["config"]["perceptual"], options["config"]["detector"]) == (net, net)
    earlier = options["config"] | {"perceptual": "net.pt", "detector": "net.pt"}    # as earlier versions wrote them
    earlier |= {"dataset": earlier["dataset"] | {"path": "32"}}
    command = options["command"] | {"data": "32", "perceptual": "net.pt", "detector": "net.pt"}
    relative = options | {"config": earlier, "command": command}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for content, folder, args, warned in (
        (options, elsewhere, [f"--resume={path}"], []),
        (relative, tmp_path, said, []),
        (relative, tmp_path, [f"--resume={path}"],
         [f"data by a relative path: taking {data}", "detector", "perceptual"]),
    ):
        (path / "training_options.json").write_text(json.dumps(content))
        monkeypatch.chdir(folder)
        result = run(*args) if args == said else CliRunner().invoke(train.main, args)
        assert result.exit_code == 0, result.output
        lines = result.stderr.splitlines()
        assert all(f"names its --{start}" in line for start, line in zip(warned, lines, strict=True))
        config = runs.pop().config
        assert (config.dataset.path, config.perceptual, config.detector) == (data, net, net)
    assert json.loads((path / "training_options.json").read_text())["command"] == options["command"]


def test_a_run_in_the_folder_of_its_images_is_refused(run, runs, start, tmp_path, monkeypatch):
    path = start()
    images = tmp_path / "32"
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(images)
    for data, outdir in ((".", "runs"), (images, "."), ("../link", "a/b"), (".", "../link/runs"), ("..", "../runs")):
        message = last_line(run(f"--data={data}", f"--outdir={outdir}"))
        assert message.startswith(f"{outdir} lies inside {os.path.abspath(data)}, so the pictures of the run would")
        assert message.endswith("choose an --outdir outside " + str(images if data != ".." else tmp_path))
    assert "move the images elsewhere" in last_line(run(f"--resume={path}", f"--data={tmp_path}"))
    assert not list(images.iterdir()) and not runs
    assert run("--data=.", "--outdir=../32-more").exit_code == 0


def test_dry_run_of_going_on(run, runs, start):
    path = start("--batch=16")
    files = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    result = run("--batch=16", "--dry-run", "--snap=3")
    assert result.exit_code == 0 and not runs
    assert result.stdout.splitlines()[0] == f"Would resume in {path}; --resume=noresume starts a new run"
    options, summary, _ = dry(run, f"--resume={path}", "--snap=3")
    assert (options["batch_size"], options["network_snapshot_ticks"]) == (16, 3) and "every 3 ticks" in summary
    assert files == {file: file.stat().st_mtime_ns for file in path.iterdir()}


# ----------------------------------------------------------------------------------------------------------------------
# torchrun.


@pytest.fixture
def torchrun(run, monkeypatch):
    """Call as process `rank` of `size`; the processes meet without a network. What each met with, and brought."""
    from torch_utils import distributed

    met = []
    brought = []

    def from_rank0(value):
        if value is not None:
            brought[:] = [json.dumps(value)]
        return json.loads(brought[0])

    monkeypatch.setattr(distributed, "join", lambda **kwargs: met.append(kwargs))
    monkeypatch.setattr(distributed, "from_rank0", from_rank0)

    def call(rank, size, *args):
        for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", min(size, 2)),
                            ("MASTER_ADDR", "localhost"), ("MASTER_PORT", 29500)):
            monkeypatch.setenv(name, str(value))
        return run(*args), met[-1] if met else None

    return call


def test_torchrun_says_how_many(torchrun, runs, gpus, tmp_path):
    gpus(2)                                                     # two machines, two GPUs each
    for rank in range(4):
        result, met = torchrun(rank, 4, "--timeout=30", "--device=auto")
        assert result.exit_code == 0, result.output
        assert met == {"device": "cuda", "timeout_sec": 30, "rank0_sec": 3600}
        assert ("Training in" in result.stdout) == (rank == 0)
    assert runs[0].config.num_gpus == 4 and runs == runs[:1] * 4
    assert len(list((tmp_path / "runs").iterdir())) == 1
    options = json.loads(Path(runs[0].run_dir, "training_options.json").read_text())
    assert options["command"]["gpus"] == 4


def test_torchrun_goes_on(torchrun, runs, start, gpus):
    gpus(0)
    path = start()
    for rank in range(2):
        result, met = torchrun(rank, 2, f"--resume={path}", "--device=auto")
        assert result.exit_code == 0, result.output
        assert met["device"] == "cpu"
    assert runs == runs[:1] * 2 and (runs[0].run_dir, runs[0].resume) == (str(path), "newest")
    assert (runs[0].config.num_gpus, runs[0].config.batch_gpu) == (2, 16)


def test_torchrun_mistakes(torchrun, runs, tmp_path):
    for args, message in (
        (["--gpus=4"], "--gpus is 4, but torchrun started 2 processes: leave out --gpus"),
        (["--batch=9"], "--batch is 9, expected at least 1 and divisible by --gpus=2"),
    ):
        result, met = torchrun(0, 2, *args)
        assert last_line(result) == message and met is None
    result, _ = torchrun(0, 3)
    assert last_line(result).startswith("--gpus is 3, expected a power of two")
    assert not runs and not (tmp_path / "runs").exists()


def test_variables_of_other_programs(torchrun, run, runs, monkeypatch, tmp_path):
    """Clusters and notebooks set some of them; a job of one process needs none."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "all")
    assert run().exit_code == 0 and len(runs) == 1
    shutil.rmtree(tmp_path / "runs")
    for more, message in (
        ({"WORLD_SIZE": "2"}, "RANK is '0', WORLD_SIZE is '2', MASTER_ADDR is not set, MASTER_PORT is not set. Start"),
        ({"MASTER_ADDR": "here"}, "MASTER_ADDR is 'here', MASTER_PORT is not set."),
        ({"MASTER_PORT": "first"}, "MASTER_PORT is 'first'."), ({"MASTER_PORT": "1", "RANK": "2"}, "RANK is '2', "),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is '', "),
    ):
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        error = last_line(run())
        assert error.startswith("these variables tell the processes of a run apart") and message in error
    assert len(runs) == 1 and not (tmp_path / "runs").exists()


def test_torchrun_dry_run(torchrun, runs):
    for rank in range(2):
        result, met = torchrun(rank, 2, "--dry-run")
        assert result.exit_code == 0 and met is None and not runs
        assert bool(result.stdout) == (rank == 0)


# ----------------------------------------------------------------------------------------------------------------------
# The real program.


def command(tmp_path, *args):
    """The real program, as users call it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *args],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    "args, code, message",
    [
        ([], 2, "Missing option '--outdir'"),
        (["--config=none.yaml"], 1, "Error: none.yaml can't be read as JSON or YAML: [Errno 2]"),
        (["--outdir=o", "--data=d", "--method=gan"], 2, "Invalid value for '--method'"),
        (["--outdir=o", "--data=d", "--method=ggdr", "--reg_type=glead"], 1, "Error: --method=ggdr contradicts"),
        (["--outdir=o", "--data=d", "--lambda-real=1", "--reg_weight_real=2"], 1, "Error: --lambda-real and"),
    ],
)
def test_command_before_the_data_is_opened(tmp_path, args, code, message):
    result = command(tmp_path, *args)
    assert result.returncode == code and message in result.stderr and result.stdout == ""
    assert "Traceback" not in result.stderr and (code == 2 or len(result.stderr.splitlines()) == 1)
    assert not list(tmp_path.iterdir())


needs_images = pytest.mark.skipif(not (SHARED / "golden/dataset").is_dir(), reason="no golden data: set GLEAD_SHARED")


@needs_images
def test_command_dry_run_on_real_data(tmp_path):
    data = f"--data={(SHARED / 'golden/dataset/rgb_int.zip').resolve()}"
    result = command(tmp_path, "--outdir=o", data, "--cond=1", "--dry-run", "--metrics=none", "--device=cpu")
    assert result.returncode == 0, result.stderr
    assert "Parameters:" in result.stdout and "Run:               rgb_int-glead\n" in result.stdout
    assert not list(tmp_path.iterdir())
    result = command(tmp_path, "--outdir=o", data, "--subset=100000")
    assert result.returncode == 1 and "\nError: --subset is 100000, expected 1 to " in result.stderr
    assert not list(tmp_path.iterdir())
