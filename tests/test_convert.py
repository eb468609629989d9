"""The command line that converts networks, run as users run it; and the other command lines on what it writes."""

import hashlib
import json
import os
import re
import subprocess
import sys
import types

import click.testing
import numpy as np
import onnxruntime
import PIL.Image
import pytest
import torch

import convert
import generate
import legacy
from paths import ROOT
from torch_utils.formats.network_pickle import save_network_pkl
from training.networks import Discriminator, Generator

SMALL = dict(channel_base=128, channel_max=8)
OPTIONS = {
    "config": {"method": "glead", "preset": "cifar"}, "batch_size": 32, "loss_kwargs": {"r1_gamma": 0.01},
    "training_set_kwargs": {"path": "elsewhere/shapes.zip", "resolution": 16, "xflip": True},
}


def make_networks(*, c_dim=0, w_dim=512):
    torch.manual_seed(0)
    G = Generator(w_dim, c_dim, w_dim, 16, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=SMALL)
    for name, parameter in G.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            parameter.data += 0.3
    G.mapping.w_avg.copy_(torch.randn(w_dim))
    D = Discriminator(c_dim, 16, 3, **SMALL)
    return dict(G=G, D=D, G_ema=G, training_set_kwargs={"path": "elsewhere/shapes.zip", "xflip": True})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory with two snapshots, and files that are wrong."""
    folder = tmp_path_factory.mktemp("00000-shapes")
    (folder / "training_options.json").write_text(json.dumps(OPTIONS))
    lines = []
    for kimg, value in ((12, 99.0), (25, 9.0), (25, 7.5)):
        name = f"network-snapshot-{kimg:06d}.pkl"
        lines.append(json.dumps({"results": {"fid1k@net": value}, "detector": {"name": "net"}, "snapshot_pkl": name}))
    (folder / "metric-fid1k.jsonl").write_text("\n".join(["damaged {", *lines, ""]))
    save_network_pkl(folder / "network-snapshot-000025.pkl", make_networks())
    save_network_pkl(folder / "labels.pkl", make_networks(c_dim=2, w_dim=8))
    save_network_pkl(folder / "d.pkl", {"D": Discriminator(0, 16, 3, **SMALL)})
    bad = make_networks(w_dim=8)
    bad["G"].synthesis.b4.const.data[0] = float("nan")
    save_network_pkl(folder / "nan.pkl", bad)
    data = (folder / "labels.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(data[: len(data) // 2])
    (folder / "text.pkl").write_text("not networks")
    return folder


@pytest.fixture
def source(run_dir):
    return run_dir / "network-snapshot-000025.pkl"


def run_process(cwd, *args, program="convert", **env):
    return subprocess.run(
        [sys.executable, str(ROOT / f"{program}.py"), *map(str, args)], cwd=cwd, capture_output=True, text=True,
        timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def run_here(cwd, *args, main=convert.main):
    """The same command in this process, which saves the start of another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = click.testing.CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return types.SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def run_ok(cwd, *args, run=run_here, **options):
    result = run(cwd, *args, **options)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    return result


def test_real_command_writes_networks_description_and_card(source, tmp_path):
    result = run_ok(tmp_path, f"--network={source}", "--out=new/folder/net.safetensors", run=run_process)
    folder = tmp_path / "new/folder"
    assert sorted(os.listdir(folder)) == ["net.json", "net.md", "net.safetensors"]
    digest = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
    assert result.stdout.splitlines() == [
        "new/folder/net.safetensors: G, D, G_ema, training_set_kwargs; "
        f"{os.path.getsize(folder / 'net.safetensors'):,} bytes, sha256 {digest}",
        result.stdout.splitlines()[1], "Model card: new/folder/net.md"]
    assert result.stdout.splitlines()[1].startswith("Images of the source and of net.safetensors differ by 0 at most; ")
    assert result.stderr == ""
    described = json.loads((folder / "net.json").read_text())
    assert described["format_version"] == 1 and described["networks"]["D"]["init_kwargs"] == SMALL
    ours, theirs = (legacy.load_network_pkl(path) for path in (folder / "net.safetensors", source))
    assert all(torch.equal(ours[key].state_dict()[name], tensor)
               for key in ("G", "D", "G_ema") for name, tensor in theirs[key].state_dict().items())

    card = (folder / "net.md").read_text()
    num_parameters = sum(p.numel() for p in theirs["G"].parameters())
    for text in (
        "# net\n", "StyleGAN2 with GLeaD (Bai et al., CVPR 2023)",
        "| images shown to D until this snapshot (kimg) | 25 |",
        "| batch | 32 |", "| R1 gamma | 0.01 |", "| preset | cifar |", "| name | shapes.zip |",
        "| mirrored copies | yes |", "| fid1k@net | 7.5 | net |", "no published FID",
        f"| `G_ema` | Generator | 3x16x16 | {num_parameters:,} | skip, z 512", f"`{digest}`",
        hashlib.sha256(source.read_bytes()).hexdigest(), "differ by 0 at most", "--network=net.safetensors",
        "under the licence that their maker gives them", "*(To fill in:", "## Not known", "memorised",
    ):
        assert text in card, text
    assert "| 99" not in card and "elsewhere" not in card and str(tmp_path) not in card


def test_every_format_samples_alike(source, tmp_path):
    outs = ["a.safetensors", "b.pt", "c.pkl", "d.onnx", "e.pkl"]
    steps = list(zip([source, *outs], outs))
    for network, out in steps:
        result = run_ok(tmp_path, f"--network={network}", f"--out={out}", "--no-card")
        numbers = re.search(r"differ by (\S+) at most; their largest value is (\S+)", result.stdout)
        difference, largest = numbers.groups()
        assert float(difference) <= 1e-5 * max(1, float(largest))
    assert sorted(os.listdir(tmp_path)) == ["a.json", *sorted(out for _, out in steps)]
    images = []
    for network in (source, *(out for _, out in steps)):
        run_ok(tmp_path, f"--network={network}", "--outdir=img", "--seeds=1,2", "--grid=auto", "--trunc=0.6",
               "--device=cpu", main=generate.main)
        images.append(np.asarray(PIL.Image.open(tmp_path / "img/grid.png")))
    assert all(np.array_equal(image, images[0]) for image in images)

    session = onnxruntime.InferenceSession(tmp_path / "d.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["z"]
    z = np.random.RandomState(1).randn(1, 512).astype(np.float32)
    (img,) = session.run(["img"], {"z": z, "truncation_psi": np.array(0.6, np.float32)})
    pixels = (img * 127.5 + 128).clip(0, 255).astype(np.uint8)[0].transpose(1, 2, 0)
    shown = images[0][2:18, 2:18].astype(int)
    assert np.abs(pixels - shown).max() <= 1 and (pixels != shown).mean() < 0.01  # rounding of a few pixels


def test_float16_halves_a_file(source, tmp_path):
    for name, options in (("full", []), ("half", ["--format=safetensors-float16"])):
        run_ok(tmp_path, f"--network={source}", f"--out={name}.safetensors", "--only=G_ema", "--no-card", *options)
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert half.stat().st_size < 0.55 * full.stat().st_size
    expected, found = (legacy.load_network_pkl(path)["G_ema"].state_dict() for path in (full, half))
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x.half().float() if x.is_floating_point() else x, rtol=0, atol=0)


def test_what_is_left_out_is_said(source, tmp_path):
    assert "no place for it: D, training_set_kwargs" in run_ok(tmp_path, f"--network={source}", "--out=a.pt").stderr
    result = run_ok(tmp_path, f"--network={source}", "--out=a.pkl", "--only=G_ema")
    assert result.stderr.splitlines() == [
        "Warning: a.md is kept as it is: --overwrite writes a new card",
        "Warning: the legacy.py of other projects asks for G, D and G_ema; this file opens there with pickle.load"]
    assert [key for key, value in legacy.load_network_pkl(tmp_path / "a.pkl").items() if value is not None] == ["G_ema"]
    before = (tmp_path / "a.md").read_text()
    run_ok(tmp_path, "--network=a.pt", "--out=a.pkl", "--overwrite")
    after = (tmp_path / "a.md").read_text()
    assert after != before and "the source lay in no run directory" in after
    channels = "{4: 8, 8: 8, 16: 8}"
    assert f"`Generator(16, 512, 2)`, after setting `channels` in its constructor to `{channels}`" in before
    assert legacy.load_network_pkl(tmp_path / "a.pkl")["G"] is not None
    run_ok(tmp_path, f"--network={source.parent / 'labels.pkl'}", "--out=b", "--format=safetensors", "--only=D")
    assert [key for key, value in legacy.load_network_pkl(tmp_path / "b").items() if value is not None] == ["D"]
    assert "The file holds no generator." in (tmp_path / "b.md").read_text()


MISTAKES = [
    (["--out=a.pt"], 2, "--network"),
    (["--network={run}/labels.pkl", "--out=a.pt", "--format=zip"], 2, "--format"),
    (["--network={run}/labels.pkl", "--out=a.bin"], 1, "--out=a.bin has none of the suffixes .pkl, .safetensors, .pt,"),
    (["--network={run}/labels.pkl", "--out=a.md", "--format=pkl"], 1, "this suffix is for what is written beside"),
    (["--network={run}/labels.pkl", "--out=there.pkl"], 1, "there.pkl exists: --overwrite replaces it"),
    (["--network={run}/labels.pkl", "--out=there.safetensors"], 1, "there.json exists: --overwrite replaces it"),
    (["--network=there.pkl", "--out=./there.pkl", "--overwrite"], 1, "is --network itself"),
    (["--network={run}/labels.pkl", "--out=/proc/a.pkl"], 1, "/proc takes no files"),
    (["--network={run}/labels.pkl", "--out=a.pkl", "--only=G_avg"], 1, "--only=G_avg: choose from G, D, G_ema"),
    (["--network={run}/labels.pkl", "--out=a.pkl", "--only=augment_pipe"], 1, "holds no augment_pipe"),
    (["--network={run}/labels.pkl", "--out=a.onnx", "--only=D"], 1, "D doesn't fit in the format onnx, which holds"),
    (["--network={run}/labels.pkl", "--out=a.pkl", "--only=training_set_kwargs"], 1, "there is no network for"),
    (["--network={run}/d.pkl", "--out=a.pt"], 1, "no network for the format pt, which holds G, G_ema; found D"),
    (["--network={run}/labels.pkl", "--out=a.pt"], 1, "G_ema is conditional (labels of 2 numbers): .pt files"),
    (["--network={run}/nan.pkl", "--out=a.pt"], 1, "weights that are not finite"),
    (["--network={run}/text.pkl", "--out=a.pt"], 1, "text.pkl: the file is something else"),
    (["--network={run}/cut.pkl", "--out=a.safetensors"], 1, "cut.pkl: "),
    (["--network=nothing.pkl", "--out=a.safetensors"], 1, "can't open nothing.pkl: No such file"),
    (["--network=http://127.0.0.1:9/a.pkl", "--out=a.safetensors"], 1, "can't download http://127.0.0.1:9/a.pkl: no"),
]  # fmt: skip


@pytest.mark.parametrize("args, status, message", MISTAKES, ids=[" ".join(args) for args, *_ in MISTAKES])
def test_mistakes_are_one_line(run_dir, tmp_path, monkeypatch, args, status, message):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path.parent / "cache"))
    for name in ("there.pkl", "there.json"):
        (tmp_path / name).write_text("something else")
    result = run_here(tmp_path, *(arg.format(run=run_dir) for arg in args))
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Warning: left out", "Downloading"))]
    assert result.returncode == status and message in lines[-1] and lines[-1].startswith("Error: "), result.stderr
    assert len(lines) == 1 or status == 2  # click shows the usage first
    assert result.stdout == "" and sorted(os.listdir(tmp_path)) == ["there.json", "there.pkl"]
    assert (tmp_path / "there.pkl").read_text() == "something else"


def test_images_that_change_too_much_leave_no_file(tmp_path):
    G = Generator(8, 0, 8, 16, 3, synthesis_kwargs=dict(SMALL, conv_clamp=0.1))
    save_network_pkl(tmp_path / "clamped.pkl", {"G_ema": G})
    result = run_here(tmp_path, "--network=clamped.pkl", "--out=a/b.pt")
    assert result.returncode == 1 and re.fullmatch(
        r"Error: images change by \S+ \(largest value \S+\) in the format pt \(it has no conv_clamp, which this "
        r"generator reaches\); at most 1e-05 of it is allowed: nothing was written\n", result.stderr)
    assert os.listdir(tmp_path) == ["clamped.pkl"]


def test_missing_packages_are_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run_here(tmp_path, f"--network={source}", "--out=a.onnx", "--only=G_ema")
    assert result.returncode == 1 and "pip install onnx onnxscript onnxruntime" in result.stderr
    assert os.listdir(tmp_path) == []


def test_training_starts_from_any_format(source, tiny_dataset, tmp_path):
    run_ok(tmp_path, f"--network={source}", "--out=net.safetensors", "--no-card")
    result = run_ok(
        tmp_path, "--outdir=runs", f"--data={tiny_dataset}", "--resume=net.safetensors", "--cfg=cifar",
        "--method=stylegan2", "--aug=noaug", "--batch=4", "--kimg=0.004", "--metrics=none", "--device=cpu",
        "--cbase=128", "--cmax=8", "--map-depth=2",
        run=run_process, program="train")
    copied = re.findall(r"Copied (\d+) of (\d+) tensors from (\w+) of \S*net.safetensors", result.stdout)
    assert [name for *_, name in copied] == ["G", "G_ema", "D"]
    assert all(ours == theirs for ours, theirs, name in copied if name != "D")
