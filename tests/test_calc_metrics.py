"""The command line, run as users run it."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import PIL.Image
import pytest
import torch

from torch_utils.network_pickle import save_network_pkl
from training.networks import Generator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "metrics"))
from metric_fakes import random_images, save_net  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """A run directory with a network, and beside it images and a feature net."""
    save_images(tmp_path / "images.zip")
    save_net(tmp_path / "small-net.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    save_network(tmp_path / "run" / "network-snapshot-000200.pkl", training_set_kwargs={
        "class_name": "training.dataset.ImageFolderDataset", "path": str(tmp_path / "images.zip"), "xflip": True,
        "use_labels": False, "max_size": 500, "resolution": 16, "random_seed": 0})
    return tmp_path


def save_images(path, **options):
    with zipfile.ZipFile(path, "w") as z:
        for i, img in enumerate(random_images(600, **options)):
            buffer = io.BytesIO()
            PIL.Image.fromarray(img.transpose(1, 2, 0)).save(buffer, format="PNG")
            z.writestr(f"00000/img{i:08d}.png", buffer.getvalue())


def save_network(path, *, c_dim=0, training_set_kwargs=None):
    torch.manual_seed(0)
    G = Generator(8, c_dim, 8, 16, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=dict(channel_base=128))
    save_network_pkl(path, dict(G=G, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=training_set_kwargs))


def run(folder, *args):
    env = os.environ | {
        "GLEAD_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9",  # no downloads in tests
    }
    return subprocess.run([sys.executable, str(ROOT / "calc_metrics.py"), *map(str, args)], env=env, cwd=folder,
                          capture_output=True, text=True, timeout=120)


def assert_one_line_error(result, pattern, *, code=1):
    assert result.returncode == code, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()
    assert re.search(pattern, message[-1]), result.stderr
    if code == 1:
        assert len(message) == 1


def test_metrics_of_a_run(folder):
    network = folder / "run" / "network-snapshot-000200.pkl"
    result = run(folder, "--network", network, "--metrics=fid1k_full,is1k", "--detector", folder / "small-net.pt",
                 "--table", "--device=cpu")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    fid, score = json.loads(lines[0]), json.loads(lines[1])
    assert list(fid["results"]) == ["fid1k_full@small-net"] and fid["snapshot_pkl"] == "network-snapshot-000200.pkl"
    assert list(score["results"]) == ["is1k_mean@small-net", "is1k_std@small-net"]
    assert "Measured on images" in lines[2] and any("GLeaD+GGDR" in line for line in lines)
    assert "fid1k_full generated" in result.stderr and "Warning" not in result.stderr
    assert (folder / "run" / "metric-fid1k_full.jsonl").read_text() == lines[0] + "\n"
    assert (folder / "run" / "metric-is1k.jsonl").is_file()

    other = folder / "elsewhere.pkl"
    other.write_bytes(network.read_bytes())
    again = run(folder, "--network", other, "--metrics=fid1k_full", "--detector=small-net.pt", "--verbose=false",
                "--device=cpu", "--batch=50")
    assert again.returncode == 0 and again.stderr == ""
    assert json.loads(again.stdout)["results"]["fid1k_full@small-net"] == pytest.approx(
        fid["results"]["fid1k_full@small-net"], rel=1e-3)
    assert not list(folder.glob("metric-*.jsonl"))


def test_mirror_and_seed_change_the_score(folder):
    def fid(*args):
        result = run(folder, "--network=run/network-snapshot-000200.pkl", "--metrics=fid1k", "--detector=small-net.pt",
                     "--device=cpu", *args)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["results"]["fid1k@small-net"]

    first = fid()  # mirrored, as in training
    assert fid("--mirror=false") != first
    assert fid("--seed=1") != first


@pytest.mark.parametrize("args,pattern", [
    (["--metrics=fid50k_ful"], r"unknown metric fid50k_ful: .*fid<N>k_full.*ppl2_wend"),
    (["--metrics=none"], "names no metric"),
    (["--gpus=2"], "--gpus=2: .* one GPU"),
    (["--device=gpu"], "--device=gpu can't be used"),
    (["--data=nowhere.zip"], "no images at nowhere.zip|nowhere.zip"),
    (["--data=small.zip"], r"images of shape \[3, 8, 8\], the network makes \[3, 16, 16\]"),
    (["--detector=nowhere.pt"], r"nowhere\.pt can't be had.*feature_net\.py"),
    (["--detector=images.zip"], "images.zip is no TorchScript file"),
    (["--detector=small-net.pt", "--network=nowhere.pkl"], "can't open nowhere.pkl"),
    (["--network=small-net.pt"], "small-net.pt"),
    (["--network=bare.pkl"], "bare.pkl does not say what it was trained on.*--data"),
    (["--network=conditional.pkl"], "labels of width 10, and the data set images has no labels"),
    ([], r"inception-2015-12-05.pt can't be had.*cache/downloads.*--detector=PATH"),
])
def test_mistakes_are_one_line(folder, args, pattern):
    save_images(folder / "small.zip", resolution=8)
    save_network(folder / "bare.pkl")
    save_network(folder / "conditional.pkl", c_dim=10, training_set_kwargs={"path": str(folder / "images.zip")})
    result = run(folder, "--network=run/network-snapshot-000200.pkl", *args)
    if not args:  # what the attempt to download says comes first
        result.stderr = "".join(line for line in result.stderr.splitlines(True) if not line.startswith("Downloading"))
    assert_one_line_error(result, pattern)
    assert not list(folder.rglob("*.jsonl")) and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("args,pattern", [
    ([], "Missing option '--network'"),
    (["--network=a.pkl", "--batch=0"], "--batch"),
    (["--network=a.pkl", "--colour=red"], "No such option"),
])
def test_usage_errors_exit_with_2(folder, args, pattern):
    assert_one_line_error(run(folder, *args), pattern, code=2)


def test_help_shows_defaults(folder):
    result = run(folder, "--help")
    assert result.returncode == 0 and "fid50k_full" in result.stdout and "--detector" in result.stdout
