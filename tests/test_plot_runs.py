"""Plots of runs: a picture for whatever the runs hold, one line for mistakes."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from analysis.curves import method_of
from paths import ROOT
from plot_runs import read_curves, smooth
from sampling.story import read_story

PRECISION_RECALL = json.dumps({"results": {"pr1k3_precision": 0.5, "pr1k3_recall": 0.25},
                               "snapshot_pkl": "network-snapshot-000016.pkl"}) + "\n"


def make_run(path, *, task):
    path.mkdir()
    with open(path / "stats.jsonl", "w") as f:
        for tick in range(4):
            record = {"Progress/kimg": tick * 4, "Loss/scores/real": 0.5 / (tick + 1), "Loss/scores/fake": -0.5,
                      "Metrics/fid1k@net": 100 - tick}
            if task:
                record["Loss/D/real_reconstruction"] = 10 - tick
            line = {name: dict(num=1, mean=value, std=0) for name, value in record.items()}
            f.write(json.dumps(dict(line, timestamp=tick)) + "\n")
    return path


def plot(*args):
    return subprocess.run([sys.executable, str(ROOT / "plot_runs.py"), *map(str, args)], capture_output=True, text=True,
                          timeout=120)


def test_plot_of_two_runs(tmp_path):
    runs = [make_run(tmp_path / "a", task=False), make_run(tmp_path / "b", task=True)]
    result = plot(*runs, f"--out={tmp_path / 'curves.png'}", "--labels=one,two")
    assert result.returncode == 0 and not result.stderr
    with PIL.Image.open(tmp_path / "curves.png") as img:
        assert img.size == (1500, 360)  # score, realness, tasks
    (runs[0] / "metric-pr1k3.jsonl").write_text(PRECISION_RECALL)
    assert plot(*runs, f"--out={tmp_path / 'more.png'}").returncode == 0
    with PIL.Image.open(tmp_path / "more.png") as img:
        assert img.size == (2000, 720)  # and precision, recall


def save_grid(path, value):
    """Two rows of 20 images of 8x8, the number `value` in their first pixel, that of the row in the second."""
    grid = np.zeros([16, 160, 3], np.uint8)
    grid[:, :, 0] = value
    grid[8:, :, 1] = 1
    PIL.Image.fromarray(grid).save(path)


def test_pictures_of_a_run(tmp_path):
    run = make_run(tmp_path / "a", task=True)
    (run / "training_options.json").write_text('{"config": {"dataset": {"resolution": 8}}}')
    save_grid(run / "reals.png", 100)
    for kimg in range(7):
        save_grid(run / f"fakes{2 * kimg:06d}.png", kimg)
        save_grid(run / f"reconstructions{2 * kimg:06d}.png", 50 + kimg)
    save_grid(run / "fakes_init.png", 99)
    rows = read_story(run, moments=4)
    assert [(row.what, row.kimg) for row in rows] == [
        ("real", None), ("rebuilt", 12), ("generated", 0), ("generated", 4), ("generated", 8), ("generated", 12)]
    assert [int(row.pixels[0, 0, 0]) for row in rows] == [100, 56, 0, 2, 4, 6]
    assert [int(row.pixels[0, 0, 1]) for row in rows] == [0, 1, 0, 0, 0, 0]     # the second row has what was rebuilt
    assert {row.pixels.shape for row in rows} == {(8, 128, 3)}

    done = plot(run, "--pictures", f"--out={tmp_path / 'story.png'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("100.0 at 0 kimg, 99.0 at 4 kimg, 98.0 at 8 kimg, 97.0 at 12 kimg")
    with PIL.Image.open(tmp_path / "story.png") as img:
        assert img.width == 1100


def test_runs_are_labelled_by_their_composition(tmp_path):
    composed = {"method": "glead", "loss": {"rivals": {"zcr": {}}, "adversarial": "wgan-gp"}}
    for config, label in ((composed, "glead+wgan-gp+zcr"), ({"method": "glead"}, "glead"), ({}, None), ([], None)):
        (tmp_path / "training_options.json").write_text(json.dumps({"config": config}))
        assert method_of(tmp_path) == label


def test_read_curves(tmp_path):
    curves = read_curves(make_run(tmp_path / "a", task=True))
    assert curves["Loss/D/real_reconstruction"] == ([0, 4, 8, 12], [10, 9, 8, 7])


def test_scores_that_came_later(tmp_path):
    """They stand beside those of training; the last one of a pickle counts, and other protocols stand apart."""
    run = make_run(tmp_path / "a", task=False)
    here, there = {"name": "net", "sha256": "0a1b2c3d" * 8}, {"name": "net", "sha256": "f" * 64}
    with open(run / "metric-fid1k.jsonl", "w") as f:
        for kimg, value, more in (
            (4, 99, {}), (12, 50, {}), (20, 1, {"detector": here}), (20, 90, {"detector": here}),
            (16, 91, {"detector": here}), (16, 7, {"detector": there}), (16, 8, {"protocol": {"seed": 1}}),
            (16, 9, {"protocol": {"data": "b" * 64, "seed": 2}}), ("best", 5, {}), (16, "low", {}),
        ):
            name = f"network-snapshot-{kimg if isinstance(kimg, str) else f'{kimg:06d}'}.pkl"
            f.write(json.dumps({"results": {"fid1k@net": value}, "snapshot_pkl": name, **more}) + "\n")
        f.write('{"half')
    (run / "metric-pr1k3.jsonl").write_text(PRECISION_RECALL)
    scores = {name: curve for name, curve in read_curves(run).items() if name.startswith("Metrics/")}
    assert scores == {
        "Metrics/fid1k@net": ([0, 4, 8, 12, 16, 20], [100, 99, 98, 50, 91, 90]),
        "Metrics/fid1k@net (net ffffffff)": ([16], [7]),
        "Metrics/fid1k@net (seed 1)": ([16], [8]),
        "Metrics/fid1k@net (data bbbbbbbb, seed 2)": ([16], [9]),
        "Metrics/pr1k3_precision": ([16], [0.5]),
        "Metrics/pr1k3_recall": ([16], [0.25]),
    }


def test_ticks_within_a_kimg_stay_apart(tmp_path):
    """Training scored the pickles 000001 (at 1.008 kimg) and 000001_408; calc_metrics.py those before, too."""
    (tmp_path / "stats.jsonl").write_text("".join(
        json.dumps({"Progress/kimg": {"mean": kimg}} | ({"Metrics/fid": {"mean": kimg}} if scored else {})) + "\n"
        for kimg, scored in ((0.008, False), (0.208, False), (1.008, True), (1.208, False), (1.408, True))))
    lines = [json.dumps({"results": {"fid": value}, "snapshot_pkl": f"network-snapshot-{name}.pkl"}) + "\n"
             for name, value in (("000000", 5), ("000000_208", 4), ("000001", 3), ("000001_408", 2))]
    (tmp_path / "metric-fid.jsonl").write_text("".join(lines))
    assert read_curves(tmp_path)["Metrics/fid"] == ([0, 0.208, 1.008, 1.408], [5, 4, 3, 2])


def test_smoothing_keeps_constants_and_weighs_the_past():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3, 3, 3])
    assert smooth([1.0, 2.0], 0.5) == pytest.approx([1, (0.5 * 1 + 2) / 1.5])
    assert smooth([1.0, 2.0], 0) == [1, 2]


def test_mistakes_are_one_line(tmp_path):
    out = tmp_path / "curves.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "stats.jsonl").write_text("[" * 100_000 + "\n")
    run = make_run(tmp_path / "a", task=False)
    for args, words in [([tmp_path / "empty"], "stats.jsonl"), ([tmp_path / "odd"], "none of its 1 lines is a record"),
                        ([run, "--labels=a,b"], "2 names for 1 runs"), ([run, "--pictures"], "fakesKKKKKK.png"),
                        ([run, run, "--pictures"], "shows one run")]:
        result = plot(*args, f"--out={out}")
        assert result.returncode == 1 and words in result.stderr
        assert len(result.stderr.splitlines()) == 1 and not out.exists()
