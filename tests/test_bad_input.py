"""Mistakes, damage and interruption: the real commands say what is wrong in one line, in time, and leave nothing."""

import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import train
from paths import ROOT
from small_networks import Overwriting, save_torchscript
from torch_utils.formats.network_pickle import save_network_pkl
from training.config import schema as configs
from training.config.options import Options
from training.config.resolve import resolve
from training.networks import Discriminator, Generator

TRAIN = "train --outdir=runs --device=cpu --metrics=none --perceptual=mse --data={data}/"


class Failing(torch.nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False, resize_images: bool = False,
                return_lpips: bool = False) -> torch.Tensor:
        if img.shape[2] != 299:
            raise RuntimeError("needs 299 pixels")
        return img.flatten(1)


class WrongShape(torch.nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.to(torch.float32)[:, 0]


def png(index, side=16):
    pixels = np.random.RandomState(index).randint(0, 256, [side, side, 3]).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path, files, labels=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def write_network(path, *, resolution=16, w_dim=8, bad_weight=False, **content):
    torch.manual_seed(0)
    small = dict(channel_base=128, channel_max=16)
    G = Generator(8, 0, w_dim, resolution, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=small)
    if bad_weight:
        G.synthesis.b4.const.data[0] = float("nan")
    D = Discriminator(0, resolution, 3, **small)
    save_network_pkl(path, dict(G=G, D=D, G_ema=G, **content))


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_net):
    """A folder of inputs that are good or bad in one way each."""
    folder = tmp_path_factory.mktemp("data")
    images = {f"{i:03d}.png": png(i) for i in range(40)}
    write_zip(folder / "good.zip", images, [[name, i % 2] for i, name in enumerate(images)])
    write_zip(folder / "gaps.zip", images, [[name, 999_999] for name in images])
    write_zip(folder / "cut\nimage.zip", images | {"bad\nname.png": png(0)[:200]})
    content = (folder / "good.zip").read_bytes()
    (folder / "cut.zip").write_bytes(content[: len(content) // 2])
    os.mkfifo(folder / "pipe.zip")
    (folder / "link.zip").symlink_to("nowhere.zip")
    (folder / "file").write_text("x")
    write_network(folder / "net.pkl", training_set_kwargs={"path": str(folder / "good.zip")})
    write_network(folder / "nan.pkl", bad_weight=True)
    write_network(folder / "odd-set.pkl", training_set_kwargs={"path": 5})
    (folder / "call.pkl").write_bytes(b"\x80\x04cos\nsystem\nX\x0a\0\0\0touch here\x85R.")
    (folder / "strings.pkl").write_bytes(pickle.dumps({"G": "a", "D": "b", "G_ema": "c"}))
    shutil.copy(tiny_net, folder / "good.pt")
    save_torchscript(folder / "failing.pt", Failing(), trust=False)
    save_torchscript(folder / "wrong-shape.pt", WrongShape(), trust=False)
    save_torchscript(folder / "overwriting.pt", Overwriting("hacked"), trust=False)
    return folder


def command(words, data, tmp_path):
    """The program's arguments and environment."""
    program, *args = [word.replace("{data}", str(data)).replace("\\n", "\n") for word in words.split()]
    offline = "http://127.0.0.1:9"
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLEAD_CACHE_DIR": str(tmp_path.parent / "cache"),
                        "https_proxy": offline, "HTTPS_PROXY": offline, "TORCH_HOME": str(tmp_path.parent / "hub")}
    return [sys.executable, str(ROOT / f"{program}.py"), *args], dict(cwd=tmp_path, env=env, text=True)


def left_behind(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def no_disk_space():
    """Stands in for a full disk: no file can grow beyond 100 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


MISTAKES = [
    # What is given as data.
    (TRAIN + "cut.zip", "cut.zip is no zip, or the end of it is missing"),
    (TRAIN + "cut\\nimage.zip", "image 'bad\\nname.png' in "),
    (TRAIN + "pipe.zip", "pipe.zip is a device or pipe: expected the path of a folder or zip"),
    (TRAIN + "gaps.zip --cond=1", "go up to 999999 for 40 images"),
    ("dataset_tool --dest=out.zip --source={data}/link.zip", "link.zip is a link to nothing"),
    # Options.
    (TRAIN + "good.zip --lambda-real=nan", "--lambda-real is nan, expected a finite number"),
    (TRAIN + "good.zip --outdir={data}/file/runs", "/file is not a folder"),
    (TRAIN + "good.zip --outdir=/proc/runs", "/proc takes no files"),
    ("generate --outdir=out --network={data}/net.pkl --seeds=1 --grid=9999x9999", "more than the 536,870,912 pixels"),
    ("feature_net --data={data}/good.zip --out={data}/file/net.pt", "/file is not a folder"),
    # Networks.
    (TRAIN + "good.zip --resume={data}/file", "--resume: {data}/file: the file is something else"),
    (TRAIN + "good.zip --resume={data}/net.pkl", "numbers, those of this run 512"),
    (TRAIN + "good.zip --trust-net --perceptual={data}/failing.pt", "failed: builtins.RuntimeError: needs 299 pixels"),
    (TRAIN + "good.zip --metrics=fid1k --detector={data}/wrong-shape.pt --trust-net",
     "wrong-shape gives [2, 64, 64] for 2 images"),
    ("generate --outdir=out --seeds=1 --network={data}/call.pkl", "asks for os.system"),
    ("generate --outdir=out --seeds=1 --network={data}/strings.pkl --trust-pickle", "G_ema is no network"),
    ("generate --outdir=out --seeds=1 --network={data}/nan.pkl", "training has diverged"),
    ("calc_metrics --network={data}/odd-set.pkl --metrics=fid1k --detector={data}/good.pt",
     "what it says of its training set is damaged"),
    ("calc_metrics --network={data}/net.pkl --metrics=fid1k --detector={data}/failing.pt --trust-net",
     "needs 299 pixels"),
    ("calc_metrics --network={data}/net.pkl --metrics=fid1k --detector={data}/overwriting.pt", "is a program"),
]  # fmt: skip


@pytest.mark.parametrize("words, message", MISTAKES, ids=[words.replace("{data}/", "") for words, _ in MISTAKES])
def test_one_line_and_nothing_left(data, tmp_path, words, message):
    args, options = command(words, data, tmp_path)
    result = subprocess.run(args, capture_output=True, timeout=120, **options)
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip() and "img/s" not in line]
    assert [line for line in lines if not line.startswith("Checking")] == lines[-1:], result.stderr
    assert lines[-1].startswith("Error: ") and message.replace("{data}", str(data)) in lines[-1]
    assert result.stdout == "" and left_behind(tmp_path) == []


def test_nets_that_cannot_be_had_are_told_together(data, tmp_path):
    words = TRAIN.replace("--perceptual=mse ", "").replace("--metrics=none", "--metrics=fid50k_full,pr50k3_full,is50k")
    args, options = command(f"{words}good.zip --resume=ffhq256", data, tmp_path)
    start = time.monotonic()
    result = subprocess.run(args, capture_output=True, timeout=120, **options)
    assert result.returncode == 1 and time.monotonic() - start < 60
    first, *others = [line for line in result.stderr.replace("\r", "\n").splitlines() if "Downloading" not in line]
    lines = [line for line in others if line.strip()]
    assert first == "Error: 4 things are missing or wrong:" and len(lines) == 4
    for line, parts in zip(lines, (
        ("--resume: can't download https://nvlabs-fi-cdn.nvidia.com/", "put it at"),
        ("lpips-vgg needs vgg16-397923af.pth", "no connection to download.pytorch.org", "put it at",
         "--perceptual=lpips-alex"),
        ("fid50k_full: ", "inception-2015-12-05.pt", "no connection to nvlabs-fi", "put it at", "--detector=PATH"),
        ("pr50k3_full: ", "vgg16.pt", "put it at", "--detector=PATH", "feature_net.py", "--metrics=none"),
    )):
        assert all(part in line for part in parts), line
    assert left_behind(tmp_path) == []


def test_a_foreign_run_opens_no_program_of_its_own(data, tmp_path, monkeypatch):
    """Whatever its options say of trust, and in a dry run, too."""
    net, run_dir = str(data / "overwriting.pt"), tmp_path / "run"
    nets = dict(metrics=("fid1k",), detector=net, perceptual=net)
    config = resolve(Options(**nets), configs.DatasetConfig(path=str(data / "good.zip"), resolution=16), device="cpu")
    command = dict(nets, metrics=["fid1k"], data=str(data / "good.zip"), device="cpu", trust_net=True)
    run_dir.mkdir()
    (run_dir / "training_options.json").write_text(json.dumps(configs.to_legacy_kwargs(config) | {"command": command}))
    (run_dir / "training-state-000000100.pt").write_bytes(b"")
    (run_dir / "log.txt").write_text("")
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = left_behind(tmp_path)
    for options, status, start in ((["-n"], 0, "Warning: a run would stop here: "), ([], 1, "  ")):
        result = CliRunner().invoke(train.main, [f"--resume={run_dir}", *options])
        told = [line for line in result.stderr.splitlines() if "--trust-net" in line]
        assert result.exit_code == status and len(told) == 2, result.output
        assert told[0].startswith(start + net) and told[1].startswith(f"{start}fid1k: the feature net {net}")
        assert told[1].endswith("--metrics=none trains without scores") and left_behind(tmp_path) == before
    result = CliRunner().invoke(train.main, [f"--resume={run_dir}", "-n", "--trust-net"])
    assert "hacked" in left_behind(tmp_path) and "no perceptual net" in result.stderr


@pytest.mark.parametrize("words", [
    "generate --outdir=out --network={data}/net.pkl --seeds=1",
    "dataset_tool --source=synthetic --resolution=16 --max-images=20 --dest=out/a.zip",
])
def test_full_disk(data, tmp_path, words):
    args, options = command(words, data, tmp_path)
    result = subprocess.run(args, capture_output=True, timeout=120, preexec_fn=no_disk_space, **options)
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if "img/s" not in line]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert lines[-1].startswith("Error: ") and "out/" in lines[-1] and "File too large" in lines[-1]
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("words, begun", [
    ("generate --outdir=out --network={data}/net.pkl --seeds=0-99999 --batch=2", "out/seed0001.png"),
    ("calc_metrics --network={data}/net.pkl --metrics=is50k --batch=4 --detector={tiny}", "generated"),
    ("feature_net --data={data}/good.zip --out=net.pt --epochs=100000 --width=2", "Training"),
])
def test_interrupt(data, tiny_net, tmp_path, words, begun):
    """Whole files only, no traceback."""
    args, options = command(words.replace("{tiny}", str(tiny_net)), data, tmp_path)
    log = tmp_path.parent / f"{tmp_path.name}.log"
    with open(log, "w") as stderr:
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=stderr, **options)
        deadline = time.monotonic() + 60
        while not ((tmp_path / begun).exists() or begun in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 1 and log.read_text().endswith("Aborted!\n") and "Traceback" not in log.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix == ".png" and not path.name.startswith(".") for path in files)
    for path in files:
        PIL.Image.open(path).load()
