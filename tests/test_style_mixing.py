"""The command line that mixes styles, run as users run it."""

import os
import subprocess
import sys

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch

import small_networks
import style_mixing
from paths import ROOT
from small_networks import make_generator


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    small_networks.save(folder / "plain.pkl", G_ema=make_generator())
    small_networks.save(folder / "classes.pkl", G_ema=make_generator(c_dim=3, img_channels=1))
    return {path.stem: str(path) for path in folder.iterdir()}


def run(cwd, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = click.testing.CliRunner().invoke(style_mixing.main, ["--device=cpu", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def read(path):
    return np.asarray(PIL.Image.open(path))


def expected_image(G, row, col, styles, *, label=None, psi=1):
    """By the definition: the row's ws, but the column's in some layers."""
    c = torch.zeros(1, G.c_dim) if label is None else torch.eye(G.c_dim)[[label]]
    w = [G.mapping(torch.from_numpy(np.random.RandomState(seed).randn(1, 8)).float(), c, truncation_psi=psi)
         for seed in (row, col)]
    ws = torch.stack([w[layer in styles][:, layer] for layer in range(6)], dim=1)
    img = G.synthesis(ws, noise_mode="const")
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()


def assert_same_image(actual, expected):
    """Up to rounding, which the number of images made at a time may tip by one level."""
    assert np.abs(actual.astype(int).reshape(expected.shape) - expected).max() <= 1


def test_every_pair_and_the_grid(networks, tmp_path):
    command = [sys.executable, str(ROOT / "style_mixing.py"), f"--network={networks['plain']}", "--rows=1,2",
               "--cols=3-5", "--styles=0,2-3", "--trunc=0.7", "--outdir=a/b", "--device=cpu", "--batch=4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "11 images and grid.png in a/b; layers 0,2,3 are the columns'\n"
    out = tmp_path / "a/b"
    pairs = [(row, col) for row in (1, 2) for col in (3, 4, 5)]
    own = [(seed, seed) for seed in (1, 2, 3, 4, 5)]
    assert sorted(os.listdir(out)) == sorted([f"{r}-{c}.png" for r, c in pairs + own] + ["grid.png"])
    G = make_generator()
    grid = read(out / "grid.png")
    assert grid.shape == (3 * 18 + 2, 4 * 18 + 2, 3) and (grid[:20, :20] == 255).all()
    places = {(0, x): (col, col) for x, col in enumerate((3, 4, 5), 1)}
    places |= {(y, 0): (row, row) for y, row in enumerate((1, 2), 1)}
    places |= {(y, x): (row, col) for y, row in enumerate((1, 2), 1) for x, col in enumerate((3, 4, 5), 1)}
    for (y, x), (row, col) in places.items():
        image = read(out / f"{row}-{col}.png")
        assert_same_image(image, expected_image(G, row, col, (0, 2, 3), psi=0.7))
        assert np.array_equal(grid[2 + 18 * y:18 + 18 * y, 2 + 18 * x:18 + 18 * x], image)


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_all_layers_give_the_columns_image(networks, tmp_path, noise_mode):
    run(tmp_path, f"--network={networks['plain']}", "--rows=1-2", "--cols=8", "--styles=0-5", "--outdir=out",
        "--batch=1", f"--noise-mode={noise_mode}")
    for row in (1, 2):
        assert np.array_equal(read(tmp_path / f"out/{row}-8.png"), read(tmp_path / "out/8-8.png"))
    assert not np.array_equal(read(tmp_path / "out/1-1.png"), read(tmp_path / "out/8-8.png"))


def test_labels_gray_seeds_given_twice_and_default_layers(networks, tmp_path):
    options = ["--rows=1,1,2", "--cols=2,3", "--label=0,1,0", "--outdir=out"]
    result = run(tmp_path, f"--network={networks['classes']}", *options)
    assert result.exit_code == 0 and "layers 0,1,2,3,4 are" in result.stdout
    G = make_generator(c_dim=3, img_channels=1)
    assert_same_image(read(tmp_path / "out/1-3.png"), expected_image(G, 1, 3, range(5), label=1))
    assert_same_image(read(tmp_path / "out/2-2.png"), expected_image(G, 2, 2, (), label=1))
    grid = read(tmp_path / "out/grid.png")
    assert np.array_equal(grid[20:36], grid[38:54])  # the rows of seed 1
    own = read(tmp_path / "out/2-2.png")
    assert all(np.array_equal(grid[y:y + 16, x:x + 16], own) for y, x in ((2, 20), (56, 2), (56, 20)))


@pytest.mark.parametrize("args, status, message", [
    (["--cols=1", "--outdir=out"], 2, "--rows"),
    (["--rows=", "--cols=1", "--outdir=out"], 2, "is no list of numbers"),
    (["--rows=1", "--cols=1", "--styles=4-6", "--outdir=out"], 1, "--styles holds 6; this network has the layers 0"),
    (["--rows=1", "--cols=1", "--styles=-1", "--outdir=out"], 2, "is no list of numbers"),
    (["--rows=1", "--cols=9999999999", "--outdir=out"], 1, "--cols holds 9999999999; seeds go up to 4294967295"),
    (["--rows=1-2000", "--cols=1-2000", "--outdir=out"], 1, "more than the 536,870,912 pixels"),
    (["--rows=1", "--cols=1", "--outdir="], 1, "--outdir is empty"),
    (["--rows=1", "--cols=1", "--outdir=file/x"], 1, "is not a folder"),
])
def test_mistakes_are_one_line(networks, tmp_path, args, status, message):
    (tmp_path / "file").write_text("a file")
    result = run(tmp_path, f"--network={networks['plain']}", *args)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == status and lines[-1].startswith("Error: ") and message in lines[-1]
    assert len(lines) == 1 or status == 2
    assert result.stdout == "" and os.listdir(tmp_path) == ["file"]
