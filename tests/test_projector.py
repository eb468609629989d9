"""The command line that projects images, run as users run it."""

import os
import re
import subprocess
import sys

import click.testing
import numpy as np
import PIL.Image
import pytest

import generate
import projector
import small_networks
from paths import ROOT
from sampling import video
from small_networks import make_generator


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    small_networks.save(folder / "plain.pkl", G_ema=make_generator())
    small_networks.save(folder / "classes.pkl", G_ema=make_generator(c_dim=3, img_channels=1))
    return {path.stem: str(path) for path in folder.iterdir()}


def run(cwd, *args, main=projector.main):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = click.testing.CliRunner().invoke(main, ["--device=cpu", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def read(path):
    return np.asarray(PIL.Image.open(path))


def write_photos(folder):
    """Smooth colours, which video formats keep well."""
    rng = np.random.RandomState(0)
    folder.mkdir()
    for name, size in (("a.png", (16, 16)), ("b.jpg", (20, 40))):
        corners = PIL.Image.fromarray(rng.randint(0, 256, [2, 2, 3]).astype(np.uint8))
        corners.resize(size, PIL.Image.Resampling.BILINEAR).save(folder / name)


def distances(line):
    return [float(number) for number in re.search(r"distance ([\d.]+) -> ([\d.]+), psnr", line).groups()]


def test_self_test_with_a_net(networks, tiny_net, tmp_path):
    command = [sys.executable, str(ROOT / "projector.py"), f"--network={networks['plain']}", "--self-test",
               f"--perceptual={tiny_net}", "--num-steps=40", "--device=cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    before, after = distances(first)
    assert after < 0.5 * before and second.startswith("self-test passed: the distance is ")
    assert "40/40" in result.stderr and "distance=" in result.stderr and os.listdir(tmp_path) == []


def test_files_of_a_target(networks, tmp_path):
    write_photos(tmp_path / "in")
    options = [f"--network={networks['plain']}", "--perceptual=mse", "--num-steps=20", "--target=in/a.png"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "find_ffmpeg", lambda: None)
        result = run(tmp_path, *options, "--outdir=out")
    assert result.exit_code == 0, result.stderr
    assert "Warning: no ffmpeg" in result.stderr and "proj.webp" in result.stderr
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["proj.png", "proj.webp", "projected_w.npz", "target.png"]
    assert np.array_equal(read(out / "target.png"), read(tmp_path / "in/a.png"))
    before, after = distances(result.stdout)
    assert after < before
    error = np.square((read(out / "proj.png").astype(float) - read(out / "target.png")) / 127.5).mean()
    assert error < 1.05 * after + 0.01

    frames = PIL.Image.open(out / "proj.webp")
    assert frames.size == (32, 16) and 2 < frames.n_frames <= 20  # WebP makes one of equal neighbours
    frames.seek(frames.n_frames - 1)
    last = np.asarray(frames.convert("RGB")).astype(int)
    assert np.abs(last - np.concatenate([read(out / "target.png"), read(out / "proj.png")], axis=1)).mean() < 16

    with np.load(out / "projected_w.npz") as content:
        assert content["w"].shape == (1, 6, 12) and content["w"].dtype == np.float32
        assert len(content.files) == 6  # w and five noise maps
    run(tmp_path, f"--network={networks['plain']}", "--projected-w=out/projected_w.npz", "--outdir=again",
        main=generate.main)
    difference = np.abs(read(tmp_path / "again/proj00.png").astype(int) - read(out / "proj.png"))
    assert difference.max() <= 1  # rounding, which the number of images made at a time may tip

    assert run(tmp_path, *options, "--outdir=twice", "--save-video=0").exit_code == 0
    assert sorted(os.listdir(tmp_path / "twice")) == ["proj.png", "projected_w.npz", "target.png"]
    assert np.array_equal(read(tmp_path / "twice/proj.png"), read(out / "proj.png"))


def test_several_targets_for_a_class(networks, tmp_path):
    write_photos(tmp_path / "in")
    result = run(tmp_path, f"--network={networks['classes']}", "--label=0,1,0", "--perceptual=mse", "--num-steps=2",
                 "--target=in", "--outdir=out", "--save-video=false")
    assert result.exit_code == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["a", "b"]
    assert "Note: a made fit for 16x16: grayscale" in result.stderr
    assert "Note: b made fit for 16x16: grayscale, cropped, scaled" in result.stderr
    for name in ("a", "b"):
        assert sorted(os.listdir(tmp_path / "out" / name)) == ["proj.png", "projected_w.npz", "target.png"]
        assert read(tmp_path / "out" / name / "proj.png").shape == (16, 16)


def test_a_self_test_that_fails_says_so(networks, tmp_path):
    result = run(tmp_path, f"--network={networks['plain']}", "--self-test", "--perceptual=mse", "--num-steps=1")
    assert result.exit_code == 1 and "self-test failed" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("Error: the image was not found again")


@pytest.mark.parametrize("args, status, message", [
    (["--outdir=out"], 2, "give either --target or --self-test"),
    (["--target=file", "--self-test"], 2, "give either --target or --self-test"),
    (["--target=file"], 2, "--outdir"),
    (["--target=nothing.png", "--outdir=out"], 1, "nothing.png: there is no such file or folder"),
    (["--target=", "--outdir=out"], 1, "'': there is no such file or folder"),
    (["--target=file", "--outdir=out"], 1, "file can't be decoded"),
    (["--target=in/a.png", "--target=file", "--outdir=out"], 1, "file can't be decoded"),
    (["--target=in/a.png", "--outdir=file/x"], 1, "is not a folder"),
    (["--target=in/a.png", "--outdir="], 1, "--outdir is empty"),
    (["--target=in", "--outdir=in/out"], 1, "--outdir=in/out lies in in, so the results would join the images there"),
    (["--target=in/a.png", "--outdir=out", "--num-steps=0"], 2, "--num-steps"),
    (["--target=in/a.png", "--outdir=out", "--perceptual=vgg"], 1, "unknown perceptual net 'vgg'"),
    (["--target=in/a.png", "--outdir=out", "--perceptual=file"], 1, "is no feature net"),
    (["--target=in/a.png", "--outdir=out", "--network={classes}"], 1, "give --class, from 0 to 2"),
    (["--target=in/a.png", "--outdir=out", "--network=file", "--perceptual=vgg"], 1, "unknown perceptual net 'vgg'"),
])
def test_mistakes_are_one_line(networks, tmp_path, args, status, message):
    write_photos(tmp_path / "in")
    (tmp_path / "file").write_text("a file")
    args = [arg.format(**networks) for arg in args]
    result = run(tmp_path, f"--network={networks['plain']}", "--perceptual=mse", *args)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == status and message in lines[-1], result.stderr
    if lines[0] == "Error: 2 things are missing or wrong:":
        assert len(lines) == 3 and "file: the file is something else" in lines[1]
    else:
        assert lines[-1].startswith("Error: ") and (len(lines) == 1 or status == 2)
    assert result.stdout == "" and sorted(os.listdir(tmp_path)) == ["file", "in"]
