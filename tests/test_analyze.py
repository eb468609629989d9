"""The command line that draws figures: files for what runs and networks hold, one line for mistakes."""

import csv
import json
import os
import subprocess
import sys
import types

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch

import analyze
import small_networks
from dataset_fakes import noise, save
from paths import ROOT
from small_networks import make_discriminator, make_generator


class Averages(torch.nn.Module):
    """A detector whose features are the means of 16 places."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(img.float(), 4).flatten(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with images, networks, and two runs of GLeaD that differ in the seed."""
    folder = tmp_path_factory.mktemp("analyze")
    for index in range(12):
        save(folder / f"data/{index:02d}.png", noise(index))
    save(folder / "unseen/a.png", noise(99))
    save(folder / "unseen/b.png", noise(98))
    G = make_generator()
    trained_on = {"path": str(folder / "data"), "max_size": 8, "random_seed": 0, "xflip": False}
    networks = {"G": G, "D": make_discriminator(), "G_ema": G, "training_set_kwargs": trained_on}
    small_networks.save(folder / "glead.pkl", **networks)
    small_networks.save(folder / "baseline.pkl", **(networks | {"D": make_discriminator(decoder_res=None)}))
    small_networks.save(folder / "alone.pkl", G_ema=G)
    for seed in (0, 1):
        run = folder / f"0000{seed}-data-glead"
        run.mkdir()
        os.link(folder / "glead.pkl", run / "network-snapshot-000004.pkl")
        options = {"total_kimg": 8, "training_set_kwargs": trained_on, "config": {"method": "glead"},
                   "command": {"data": "data", "seed": seed}}
        (run / "training_options.json").write_text(json.dumps(options))
        ticks = [{"Progress/kimg": kimg, "Loss/scores/real": kimg + seed, "Loss/scores/fake": -kimg}
                 for kimg in (0, 4, 8)]
        (run / "stats.jsonl").write_text("".join(
            json.dumps({name: {"num": 1, "mean": value, "std": 0} for name, value in tick.items()}) + "\n"
            for tick in ticks))
    return folder


def run(cwd, *args):
    """The command in this process, which saves the start of another one."""
    command = getattr(analyze, args[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = click.testing.CliRunner().invoke(command, [*args[1:], "--device=cpu", "--outdir=out"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return types.SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def run_ok(cwd, *args):
    result = run(cwd, *args)
    assert result.returncode == 0, result.stderr
    return result


def table(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def size(path):
    with PIL.Image.open(path) as image:
        assert np.asarray(image).std() > 0
        return image.size


def test_scores_of_two_seeds(files, tmp_path):
    runs = sorted(map(str, files.glob("0000?-*")))
    result = run_ok(tmp_path, "scores", *runs, "--left-out", "--num-images=4", "--smooth=0.5")
    assert sorted(os.listdir(tmp_path / "out")) == ["scores.csv", "scores.pdf", "scores.png", "scores.svg"]
    assert "00001-data-glead at 4 kimg: accuracy" in result.stdout
    rows = table(tmp_path / "out/scores.csv")
    real = [row for row in rows if row["statistic"] == "Loss/scores/real" and row["run"] == "00001-data-glead"]
    assert [(row["label"], float(row["kimg"]), float(row["value"])) for row in real] == [
        ("glead", 0, 1), ("glead", 4, 5), ("glead", 8, 9)]
    assert [float(row["smoothed"]) for row in real] == pytest.approx([1, 5.5 / 1.5, 11.75 / 1.75], rel=1e-5)
    assert {row["statistic"] for row in rows} == {
        "Loss/scores/real", "Loss/scores/fake", "train_score", "held_out_score", "fake_score", "train_accuracy",
        "held_out_accuracy", "fake_accuracy", "gap"}
    assert "2 seeds" in (tmp_path / "out/scores.svg").read_text()  # the comment beside the outline of a text
    assert size(tmp_path / "out/scores.png")[0] > 1400
    run_ok(tmp_path, "scores", runs[0], f"--data={files / 'unseen'}")
    assert len(table(tmp_path / "out/scores.csv")) == len(rows) / 2


def test_reconstructions_of_two_networks(files, tmp_path):
    nets = [f"--network={files / 'glead.pkl'}"] * 2
    result = run_ok(tmp_path, "reconstruct", *nets, f"--data={files / 'unseen'}", "--seeds=0-2", "--labels=A,B",
                    "--perceptual=mse")
    rows = table(tmp_path / "out/reconstructions.csv")
    assert [row["image"] for row in rows] == 2 * ["a", "b", "mean"] + 2 * ["seed0000", "seed0001", "seed0002", "mean"]
    values = [float(row["mse"]) for row in rows[:3]]
    assert values[2] == pytest.approx(sum(values[:2]) / 2, rel=1e-4)
    assert result.stdout.startswith(f"A, mean of 2 real images: mse {values[2]:.4f}, psnr ")
    size(tmp_path / "out/reconstructions.png")


def test_attention_on_given_images_and_on_the_worst_ones(files, tmp_path):
    nets = [f"--network={files / name}" for name in ("glead.pkl", "baseline.pkl")]
    run_ok(tmp_path, "attention", *nets, f"--data={files / 'unseen'}", "--res=8", "--labels=G,S")
    rows = table(tmp_path / "out/attention.csv")
    assert [(row["label"], row["image"]) for row in rows] == [("G", "a"), ("G", "b"), ("S", "a"), ("S", "b")]
    result = run_ok(tmp_path, "attention", *nets, "--seeds=0-7", "--worst=3", f"--fakes-of={files / 'alone.pkl'}")
    assert "glead: 80 % of the attention is on 0." in result.stdout and "8x8" in result.stdout
    scores = [float(row["score"]) for row in table(tmp_path / "out/attention.csv")]
    assert len(scores) == 6 and scores[:3] == sorted(scores[:3])    # the worst one first
    size(tmp_path / "out/attention.png")


def test_features_and_neighbours(files, tmp_path, monkeypatch):
    run_ok(tmp_path, "features", f"--network={files / 'glead.pkl'}", "--seeds=0-2", f"--data={files / 'unseen'}")
    size(tmp_path / "out/features.png")
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    small_networks.save_torchscript(tmp_path / "net.pt", Averages())
    result = run_ok(tmp_path, "neighbours", f"--network={files / 'glead.pkl'}", "--detector=net.pt", "--neighbours=2",
                    "--seeds=3,4")
    rows = table(tmp_path / "out/neighbours.csv")
    assert [(row["image"], row["rank"]) for row in rows] == [
        ("seed0003", "1"), ("seed0003", "2"), ("seed0004", "1"), ("seed0004", "2")]
    assert "median distance by net from the nearest training image: generated" in result.stdout
    size(tmp_path / "out/neighbours.png")
    assert run(tmp_path, "neighbours", f"--network={files / 'glead.pkl'}", "--detector=net.pt", "--neighbours=8"
               ).stderr == "Error: --neighbours is 8, and there are 8 training images\n"  # the subset alone


def test_mistakes_are_one_line(files, tmp_path):
    glead, baseline, alone = (f"--network={files / name}.pkl" for name in ("glead", "baseline", "alone"))
    small_networks.save(tmp_path / "large.pkl", G=type(make_generator())(
        8, 0, 12, 32, 3, synthesis_kwargs=small_networks.SMALL), D=make_discriminator())
    (tmp_path / "bare").mkdir()
    runs = sorted(map(str, files.glob("0000?-*")))
    (tmp_path / "bare/stats.jsonl").write_text((files / runs[0] / "stats.jsonl").read_text())
    for args, words in [
        (["scores", str(tmp_path)], "holds no stats.jsonl"),
        (["scores", "bare", "--left-out"], "bare holds no network pickles"),
        (["scores", runs[0], f"--data={files / 'data'}"], "is what"),
        (["scores", *runs, "--labels=a,b"], "--labels has 2 names for 1 runs"),
        (["reconstruct", baseline], "D needs a decoder with heads for G; this one has none"),
        (["reconstruct", alone], "holds no D"),
        (["reconstruct", glead, "--network=large.pkl"], "all networks must be for images of one size"),
        (["attention", glead, "--res=64"], "--res is 64, and D has feature maps of 4, 8 pixels a side"),
        (["attention", glead, "--data=nothing"], "nothing: there is no such file or folder"),
        (["attention", glead, "--data=."], "--outdir=out lies in ., so the results would join the images there"),
        (["features", glead, baseline], "its D has no decoder"),
        (["neighbours", alone, "--detector=net.pt"], "does not say what it was trained on"),
    ]:
        result = run(tmp_path, *args)
        assert result.returncode == 1 and words in result.stderr, (args, result.stderr)
        assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists(), args


def test_the_command_as_users_run_it(files, tmp_path):
    """Damaged lines are counted in a warning."""
    stats = (files / "00000-data-glead/stats.jsonl").read_text()
    (tmp_path / "stats.jsonl").write_text(stats + "{half\n")
    command = [sys.executable, str(ROOT / "analyze.py"), "scores", ".", "--outdir=out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout == "scores.png, .pdf, .svg and .csv in out\n"
    assert result.stderr == f"Warning: {tmp_path}/stats.jsonl: left out 1 of 4 lines, which are damaged; the first " \
                            "one is line 4\n"
    assert size(tmp_path / "out/scores.png")[0] < 800     # without the panels of --left-out
