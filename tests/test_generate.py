"""The command line that makes images, run as users run it."""

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch

import generate
from torch_utils import network_pickle
from training.networks import Generator

ROOT = Path(__file__).resolve().parents[1]


def make_generator(*, c_dim=0, img_channels=3):
    torch.manual_seed(0)
    synthesis_kwargs = {"channel_base": 128, "channel_max": 16}
    G = Generator(8, c_dim, 12, 16, img_channels, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=synthesis_kwargs)
    with torch.no_grad():
        G.mapping.w_avg.copy_(torch.randn(12))
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.2)
    return G.eval()


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Paths of network pickles, by what they hold."""
    folder = tmp_path_factory.mktemp("networks")
    kinds = {"plain": {}, "classes": {"c_dim": 3}, "gray": {"img_channels": 1}}
    for kind, options in kinds.items():
        network_pickle.save_network_pkl(folder / f"{kind}.pkl", {"G_ema": make_generator(**options)})
    network_pickle.save_network_pkl(folder / "no_ema.pkl", {"G": make_generator()})
    (folder / "text.pkl").write_text("not a pickle")
    return {path.stem: str(path) for path in folder.iterdir()}


def run_process(cwd, *args):
    return subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), "--device=cpu", *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_here(cwd, *args):
    """The same command in this process, which saves the start of another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = click.testing.CliRunner().invoke(generate.main, ["--device=cpu", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return types.SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def run_ok(cwd, *args, run=run_here):
    result = run(cwd, *args)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def read(path):
    return np.asarray(PIL.Image.open(path))


def expected_images(G, seeds, *, label=None, **options):
    """By the definition of a seed, one image at a time."""
    images = []
    for seed in seeds:
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
        c = torch.zeros(1, G.c_dim)
        if label is not None:
            c[0, label] = 1
        img = G(z, c, noise_mode="const", **options)
        images.append((img * 127.5 + 128).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy())
    return images


def assert_same_image(actual, expected):
    """Up to rounding, which the number of images made at a time may tip by one level."""
    assert actual.shape == expected.shape and actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1


def test_images_are_those_of_the_seeds(networks, tmp_path):
    options = ["--seeds=3,85,1000-1001", "--outdir=out/deep", "--grid=2x3", "--trunc=0.7"]
    result = run_ok(tmp_path, f"--network={networks['plain']}", *options, run=run_process)
    assert result.stdout == "4 images in out/deep\n" and "img/s" in result.stderr
    names = ["seed0003.png", "seed0085.png", "seed1000.png", "seed1001.png"]
    assert sorted(os.listdir(tmp_path / "out/deep")) == ["grid.png", *names]
    expected = expected_images(make_generator(), [3, 85, 1000, 1001], truncation_psi=0.7)
    grid = read(tmp_path / "out/deep/grid.png")
    assert grid.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    for idx, (name, image) in enumerate(zip(names, expected)):
        assert_same_image(read(tmp_path / "out/deep" / name), image)
        y, x = 2 + idx // 3 * 18, 2 + idx % 3 * 18
        assert np.array_equal(grid[y:y + 16, x:x + 16], read(tmp_path / "out/deep" / name))
    assert (grid[20:, 20 + 18:] == 255).all() and (grid[:2] == 255).all()


def test_batch_size_does_not_change_images(networks, tmp_path):
    for batch in (1, 3, 8):
        run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=0-4", f"--outdir={batch}", f"--batch={batch}")
    for name in os.listdir(tmp_path / "1"):
        for batch in (3, 8):
            assert_same_image(read(tmp_path / str(batch) / name), read(tmp_path / "1" / name))


def test_random_noise_belongs_to_the_seed(networks, tmp_path):
    run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=0-2", "--outdir=a", "--noise-mode=random", "--batch=3")
    run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=2", "--outdir=b", "--noise-mode=random")
    assert np.array_equal(read(tmp_path / "a/seed0002.png"), read(tmp_path / "b/seed0002.png"))
    assert not np.array_equal(read(tmp_path / "b/seed0002.png"), expected_images(make_generator(), [2])[0])


def test_class_label(networks, tmp_path):
    run_ok(tmp_path, f"--network={networks['classes']}", "--seeds=7", "--class=2", "--outdir=out")
    assert_same_image(read(tmp_path / "out/seed0007.png"), expected_images(make_generator(c_dim=3), [7], label=2)[0])


def test_class_label_of_an_unconditional_network_is_a_warning(networks, tmp_path):
    result = run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=7", "--class=2", "--outdir=out")
    assert "Warning: --class has no effect" in result.stderr


def test_grayscale_jpeg_and_auto_grid(networks, tmp_path):
    options = ["--seeds=1-5", "--outdir=out", "--format=jpg", "--grid=auto", "--trunc-cutoff=2"]
    run_ok(tmp_path, f"--network={networks['gray']}", *options)
    image = PIL.Image.open(tmp_path / "out/seed0001.jpg")
    assert (image.format, image.mode, image.size) == ("JPEG", "L", (16, 16))
    assert read(tmp_path / "out/grid.png").shape == (2 * 18 + 2, 3 * 18 + 2)


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_projected_w(networks, tmp_path, form):
    G = make_generator()
    ws = G.mapping(torch.randn(3, 8), torch.zeros(3, 0)).detach()
    if form == "npz":
        np.savez(tmp_path / "w.npz", w=ws.numpy())
    else:
        np.save(tmp_path / "w.npy", ws.numpy().astype(np.float64))
    run_ok(tmp_path, f"--network={networks['plain']}", f"--projected-w=w.{form}", "--outdir=out", "--batch=2")
    assert sorted(os.listdir(tmp_path / "out")) == ["proj00.png", "proj01.png", "proj02.png"]
    img = (G.synthesis(ws, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for idx in range(3):
        assert_same_image(read(tmp_path / f"out/proj{idx:02d}.png"), img[idx])


def test_existing_images_are_replaced(networks, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/seed0000.png").write_text("old")
    run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=0", "--outdir=out")
    assert read(tmp_path / "out/seed0000.png").shape == (16, 16, 3) and os.listdir(tmp_path / "out") == ["seed0000.png"]


def make_bad_inputs(folder):
    np.savez(folder / "other.npz", v=np.zeros(3))
    np.save(folder / "shape.npy", np.zeros([1, 5, 12], np.float32))
    np.save(folder / "nan.npy", np.full([1, 6, 12], np.nan, np.float32))
    np.save(folder / "text.npy", np.array([["a"]]))
    (folder / "junk.npz").write_bytes(b"PK\x03\x04junk")
    (folder / "code.npy").write_bytes(pickle.dumps([1, 2]))
    (folder / "file").write_text("a file, not a folder")


@pytest.mark.parametrize(
    "args, status, message",
    [
        (["--network={plain}", "--outdir=out", "--seeds=1", "--projected-w=nan.npy"], 2, "give either --seeds or"),
        (["--network={plain}", "--seeds=1"], 2, "--outdir"),
        (["--outdir=out", "--seeds=1"], 2, "--network"),
        (["--network={plain}", "--outdir=out", "--seeds=5-1"], 2, "'5-1' is no list of numbers"),
        (["--network={plain}", "--outdir=out", "--seeds=1", "--grid=0x3"], 2, "'0x3' is neither 'auto' nor rows"),
        (["--network={plain}", "--outdir=out", "--seeds=1", "--batch=0"], 2, "--batch"),
        (["--network={plain}", "--outdir=file", "--seeds=1"], 2, "is a file"),
        (["--network={plain}", "--outdir=file/x", "--seeds=1"], 1, "is not a folder"),
        (["--network={plain}", "--outdir=out", "--seeds=4294967296"], 1, "seeds go up to 4294967295"),
        (["--network={plain}", "--outdir=out", "--seeds=0-9", "--grid=3x3"], 1, "has 9 places; there are 10 images"),
        (["--network={plain}", "--outdir=out", "--seeds=1", "--device=gpu"], 1, "--device=gpu can't be used here"),
        (["--network={classes}", "--outdir=out", "--seeds=1"], 1, "give --class, from 0 to 2"),
        (["--network={classes}", "--outdir=out", "--seeds=1", "--class=3"], 1, "--class=3 is out of range"),
        (["--network={no_ema}", "--outdir=out", "--seeds=1"], 1, "holds no G_ema"),
        (["--network={text}", "--outdir=out", "--seeds=1"], 1, "a network pickle was expected"),
        (["--network=nothing.pkl", "--outdir=out", "--seeds=1"], 1, "can't open nothing.pkl: No such file"),
        (["--network={plain}", "--outdir=out", "--projected-w=nothing.npz"], 1, "can't read nothing.npz: No such file"),
        (["--network={plain}", "--outdir=out", "--projected-w=other.npz"], 1, "holds v, no array 'w'"),
        (["--network={plain}", "--outdir=out", "--projected-w=shape.npy"], 1, "takes float32 [N, 6, 12]"),
        (["--network={plain}", "--outdir=out", "--projected-w=nan.npy"], 1, "not finite"),
        (["--network={plain}", "--outdir=out", "--projected-w=text.npy"], 1, "w is <U1 [1, 1]"),
        (["--network={plain}", "--outdir=out", "--projected-w=junk.npz"], 1, "neither .npz nor .npy"),
        (["--network={plain}", "--outdir=out", "--projected-w=code.npy"], 1, "neither .npz nor .npy"),
    ],
)
def test_mistakes_are_one_line(networks, tmp_path, args, status, message):
    check_mistake(tmp_path, [arg.format(**networks) for arg in args], status, message, run_here)


@pytest.mark.parametrize(
    "args, status, message",
    [
        (["--network={plain}", "--outdir=out"], 2, "give either --seeds or --projected-w"),
    ],
)
def test_mistakes_are_one_line_in_a_process_of_its_own(networks, tmp_path, args, status, message):
    check_mistake(tmp_path, [arg.format(**networks) for arg in args], status, message, run_process)


def check_mistake(tmp_path, args, status, message, run):
    make_bad_inputs(tmp_path)
    before = sorted(os.listdir(tmp_path))
    result = run(tmp_path, *args)
    assert result.returncode == status, result.stderr
    lines = result.stderr.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("Error: ")
    assert len(lines) == 1 or status == 2  # click shows the usage first
    assert result.stdout == "" and sorted(os.listdir(tmp_path)) == before
