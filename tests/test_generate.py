"""The command line that makes images, run as users run it."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import types
import zipfile

import click.testing
import numpy as np
import PIL.Image
import pytest
import torch

import generate
import small_networks
from paths import ROOT
from sampling import video
from sampling.images import psnr
from small_networks import make_discriminator, make_generator
from training.tasks import reconstruct


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Paths of network pickles, by what they hold."""
    folder = tmp_path_factory.mktemp("networks")
    kinds = {"plain": {}, "classes": {"c_dim": 3}, "gray": {"img_channels": 1}}
    for kind, options in kinds.items():
        small_networks.save(folder / f"{kind}.pkl", G_ema=make_generator(**options))
    small_networks.save(folder / "no_ema.pkl", G=make_generator())
    G = make_generator()
    small_networks.save(folder / "glead.pkl", G=G, D=make_discriminator())
    small_networks.save(folder / "glead_w.pkl", G=G, D=make_discriminator(res_g=1, decoder_res=16), G_ema=G)
    classes = make_generator(c_dim=3, img_channels=1)
    small_networks.save(folder / "glead_gray.pkl", D=make_discriminator(c_dim=3, img_channels=1), G_ema=classes)
    small_networks.save(folder / "ggdr.pkl", G=G, D=make_discriminator(decoder_out_channel=0))
    small_networks.save(folder / "baseline.pkl", G=G, D=make_discriminator(decoder_res=None))
    small_networks.save(folder / "unfit.pkl", G=G, D=make_discriminator(decoder_out_channel=16))
    (folder / "text.pkl").write_text("not a pickle")
    (folder / "linear.pkl").write_bytes(pickle.dumps({"G_ema": torch.nn.Linear(2, 2)}))
    return {path.stem: str(path) for path in folder.iterdir()}


def run_process(cwd, *args, env=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), "--device=cpu", *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
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
    c = torch.zeros(1, G.c_dim) if label is None else torch.tensor([label], dtype=torch.float32)
    for seed in seeds:
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
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


def test_polarity_chooses_among_seeds(networks, tmp_path, monkeypatch):
    """rho = 0 is ordinary sampling; others choose among the first seeds, always the same ones."""
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    images = {}
    for folder, options in (("plain", []), ("zero", ["--polarity=0"]), ("modes", ["--polarity=-3", "--candidates=4"]),
                            ("again", ["--polarity=-3", "--candidates=4"])):
        run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=0-3,90", f"--outdir={folder}", *options)
        images[folder] = [(tmp_path / folder / f"seed{seed:04d}.png").read_bytes() for seed in (0, 1, 2, 3, 90)]
    assert images["plain"] == images["zero"] != images["modes"] == images["again"]
    assert set(images["modes"]) <= set(images["plain"][:4])
    result = run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=0", "--outdir=a", "--candidates=9")
    assert "--candidates: no effect without --polarity" in result.stderr



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


def test_labels(networks, tmp_path):
    run_ok(tmp_path, f"--network={networks['classes']}", "--seeds=7", "--class=2", "--outdir=out")
    expected = expected_images(make_generator(c_dim=3), [7], label=[0, 0, 1])[0]
    assert_same_image(read(tmp_path / "out/seed0007.png"), expected)
    run_ok(tmp_path, f"--network={networks['classes']}", "--seeds=7", "--label=0.5,-2, 1e-1", "--outdir=vector")
    expected = expected_images(make_generator(c_dim=3), [7], label=[0.5, -2, 0.1])[0]
    assert_same_image(read(tmp_path / "vector/seed0007.png"), expected)


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
    run_ok(tmp_path, f"--network={networks['plain']}", f"--projected_w=w.{form}", "--outdir=out", "--batch=2")
    assert sorted(os.listdir(tmp_path / "out")) == ["proj00.png", "proj01.png", "proj02.png"]
    img = (G.synthesis(ws, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for idx in range(3):
        assert_same_image(read(tmp_path / f"out/proj{idx:02d}.png"), img[idx])


def test_noise_maps_of_a_projection_are_used(networks, tmp_path):
    G = make_generator()
    ws = G.mapping(torch.randn(1, 8), torch.zeros(1, 0))
    noise = {name: torch.randn_like(value) for name, value in G.synthesis.named_buffers() if "noise_const" in name}
    np.savez(tmp_path / "w.npz", w=ws.numpy(), **{name: value.numpy() for name, value in noise.items()})
    run_ok(tmp_path, f"--network={networks['plain']}", "--projected-w=w.npz", "--outdir=out")
    G.synthesis.load_state_dict(noise, strict=False)
    img = (G.synthesis(ws, noise_mode="const") * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert_same_image(read(tmp_path / "out/proj00.png"), img[0])


# ----------------------------------------------------------------------------------------------------------------------
# Videos.


def read_video(path):
    image = PIL.Image.open(path)
    frames = []
    for index in range(image.n_frames):
        image.seek(index)
        frames.append(np.asarray(image.convert("RGB")))
    return frames


@pytest.mark.parametrize("way", ["w", "z"])
def test_keys_of_a_lossless_video_are_the_images_of_the_seeds(networks, tmp_path, way):
    common = [f"--network={networks['plain']}", "--seeds=4,7,9", "--trunc=0.8", "--batch=1", "--outdir=out"]
    run_ok(tmp_path, *common)
    options = [f"--interpolate={way}", "--video=walk.webp", "--lossless", "--frames-per-key=5", "--fps=10"]
    result = run_ok(tmp_path, *common, *options)
    assert result.stdout == "15 frames in out/walk.webp\n" and "frame/s" in result.stderr
    frames = read_video(tmp_path / "out/walk.webp")
    assert len(frames) == 15
    for index, seed in enumerate([4, 7, 9]):
        assert np.array_equal(frames[5 * index], read(tmp_path / f"out/seed{seed:04d}.png"))
    steps = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, frames[1:] + frames[:1])]
    assert min(steps) > 0 and max(steps) < 0.5 * np.abs(frames[0].astype(int) - frames[5]).mean()


def test_grid_of_videos(networks, tmp_path):
    common = [f"--network={networks['gray']}", "--batch=1"]
    run_ok(tmp_path, *common, "--seeds=1-4", "--video=./sub/a.webp", "--grid=1x2", "--lossless", "--frames-per-key=3")
    run_ok(tmp_path, *common, "--seeds=3-4", "--video=b.webp", "--lossless", "--frames-per-key=3")
    both, second = read_video(tmp_path / "sub/a.webp"), read_video(tmp_path / "b.webp")
    assert len(both) == len(second) == 6 and both[0].shape == (16, 32, 3)
    assert all(np.array_equal(a[:, 16:], b) for a, b in zip(both, second))


def test_video_of_projected_ws_and_of_a_class(networks, tmp_path):
    ws = make_generator().mapping(torch.randn(2, 8), torch.zeros(2, 0)).numpy()
    np.savez(tmp_path / "w.npz", w=ws)
    common = ["--frames-per-key=2", "--batch=1"]
    run_ok(tmp_path, f"--network={networks['plain']}", "--projected-w=w.npz", "--video=a.gif", *common)
    assert len(read_video(tmp_path / "a.gif")) == 4
    options = ["--class=2", "--seeds=7,8", "--video=b.webp", "--lossless", "--interpolate=z"]
    run_ok(tmp_path, f"--network={networks['classes']}", *options, *common)
    expected = expected_images(make_generator(c_dim=3), [7, 8], label=[0, 0, 1])
    frames = read_video(tmp_path / "b.webp")
    assert_same_image(frames[0], expected[0])
    assert_same_image(frames[2], expected[1])


@pytest.mark.skipif(video.find_ffmpeg() is None, reason="no ffmpeg")
def test_mp4(networks, tmp_path):
    run_ok(tmp_path, f"--network={networks['plain']}", "--seeds=1,2", "--video=a.mp4", "--frames-per-key=4")
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp" and os.listdir(tmp_path) == ["a.mp4"]


def test_without_ffmpeg_an_mp4_becomes_a_webp_and_says_so(networks, tmp_path):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/imageio_ffmpeg.py").write_text("raise ImportError")
    options = ["--seeds=1,2", "--video=out/a.mp4", "--frames-per-key=4"]
    env = {"PYTHONPATH": "stub", "PATH": ""}
    result = run_ok(tmp_path, f"--network={networks['plain']}", *options, run=functools.partial(run_process, env=env))
    assert "Warning: no ffmpeg (pip install imageio-ffmpeg): writing out/a.webp in place of out/a.mp4" in result.stderr
    assert result.stdout == "8 frames in out/a.webp\n" and os.listdir(tmp_path / "out") == ["a.webp"]
    assert len(read_video(tmp_path / "out/a.webp")) == 8


@pytest.mark.skipif(video.find_ffmpeg() is None, reason="no ffmpeg")
def test_interrupted_video(networks, tmp_path):
    args = [f"--network={networks['plain']}", "--seeds=1,2", "--video=out/a.mp4", "--frames-per-key=100000"]
    process = subprocess.Popen([sys.executable, str(ROOT / "generate.py"), "--device=cpu", *args], cwd=tmp_path,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "frame/s" not in seen:  # the bar shows a rate once frames are being made
        seen += process.stderr.read(1)
    assert [path.name for path in (tmp_path / "out").iterdir()] != ["a.mp4"]
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and rest.endswith("Aborted!\n") and "Traceback" not in rest
    assert os.listdir(tmp_path) == []


# ----------------------------------------------------------------------------------------------------------------------
# Reconstructions.


def write_photos(folder):
    """Images of all kinds; those in `square` fit 16x16 RGB as they are."""
    rng = np.random.RandomState(0)
    (folder / "square").mkdir(parents=True)
    for index in range(6):
        pixels = rng.randint(0, 256, [16, 16, 3]).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"square/{index}.png")
    PIL.Image.fromarray(rng.randint(0, 256, [32, 40, 3]).astype(np.uint8)).save(folder / "wide.png")
    PIL.Image.fromarray(rng.randint(0, 256, [16, 16]).astype(np.uint8)).save(folder / "0.bmp")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "square/3.png", "deep/3.png")


@pytest.mark.parametrize("kind, res_g", [("glead", 8), ("glead_w", 1)])
def test_reconstructions_are_what_d_and_g_make(networks, tmp_path, kind, res_g):
    write_photos(tmp_path / "in")
    result = run_ok(tmp_path, f"--network={networks[kind]}", "--outdir=out", "--reconstruct=in/square")
    originals = np.stack([read(tmp_path / f"in/square/{index}.png") for index in range(6)])
    D = make_discriminator(res_g=res_g, decoder_res=8 if res_g == 8 else 16)
    img = torch.from_numpy(originals.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    out = D.run(torch.cat([img, img[:2]]), torch.zeros(8, 0))  # two groups of minibatch standard deviation
    expected = reconstruct(make_generator(), out, res_g=res_g, noise_mode="const")[:6]
    pixels = (expected * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    strip = read(tmp_path / "out/reconstructions.png")
    lines = result.stdout.splitlines()
    for index in range(6):
        rebuilt = read(tmp_path / f"out/{index}-rec.png")
        assert_same_image(rebuilt, pixels[index])
        mse = (expected[index] - img[index]).square().mean().item()
        assert lines[index] == f"{index}: mse {mse:.5f}, psnr {psnr(originals[index], rebuilt):.2f} dB"
        x = 2 + 18 * index
        assert np.array_equal(strip[2:18, x:x + 16], originals[index])
        assert np.array_equal(strip[20:36, x:x + 16], rebuilt)
    assert lines[6].startswith("mean of 6: mse ") and len(lines) == 7 and "Note" not in result.stderr


def test_reconstruct_has_a_limit_and_batches(networks, tmp_path):
    """Batches of any size give the same: no group of minibatch standard deviation is too small."""
    write_photos(tmp_path / "in")
    options = [f"--network={networks['glead']}", "--reconstruct=in/square", "--reconstruct=in/wide.png"]
    for batch in (1, 5):
        result = run_ok(tmp_path, *options, f"--outdir={batch}", "--max-images=5", f"--batch={batch}")
        assert "Note: only the first 5 of 7 images are rebuilt: --max-images takes more\n" in result.stderr
    assert sorted(os.listdir(tmp_path / "5")) == [*(f"{index}-rec.png" for index in range(5)), "reconstructions.png"]
    for index in range(5):
        assert_same_image(read(tmp_path / f"5/{index}-rec.png"), read(tmp_path / f"1/{index}-rec.png"))


def test_reconstructions_of_images_of_g(networks, tmp_path):
    options = [f"--network={networks['glead_gray']}", "--label=0.2,0.8,0", "--trunc=0.7", "--batch=2"]
    result = run_ok(tmp_path, *options, "--fakes=3", "--outdir=out")
    names = [f"seed{seed:04d}-rec.png" for seed in range(3)]
    assert sorted(os.listdir(tmp_path / "out")) == ["reconstructions.png", *names]
    G, D = make_generator(c_dim=3, img_channels=1), make_discriminator(c_dim=3, img_channels=1)
    z = torch.from_numpy(np.concatenate([np.random.RandomState(seed).randn(1, 8) for seed in range(3)])).float()
    img = G(z, torch.tensor([[0.2, 0.8, 0]]).repeat(3, 1), truncation_psi=0.7, noise_mode="const")
    rebuilt = reconstruct(G, D.run(img, torch.zeros(3, 3)), res_g=8, noise_mode="const")
    grid = read(tmp_path / "out/reconstructions.png")
    for index, (name, line) in enumerate(zip(names, result.stdout.splitlines(), strict=False)):
        before, after = ((x[index, 0] * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy() for x in (img, rebuilt))
        assert_same_image(grid[2:18, 2 + 18 * index:18 + 18 * index], before)
        assert_same_image(read(tmp_path / "out" / name), after)
        mse = float(line.split("mse ")[1].split(",")[0])
        assert mse == pytest.approx((rebuilt[index] - img[index]).square().mean().item(), abs=2e-5)


def test_images_are_made_fit_and_named(networks, tmp_path):
    write_photos(tmp_path / "in")
    sources = ["--reconstruct=in/*.bmp", "--reconstruct=in/wide.png", "--reconstruct=in/a.zip",
               "--reconstruct=in/square/0.png"]
    result = run_ok(tmp_path, f"--network={networks['glead']}", "--outdir=out", *sources)
    assert "Note: 1 of 4 images made fit for 16x16x3: L to RGB" in result.stderr
    assert "Note: 1 of 4 images made fit for 16x16x3: cropped, scaled" in result.stderr
    names = ["0-2-rec.png", "0-rec.png", "3-rec.png", "reconstructions.png", "wide-rec.png"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    middle = read(tmp_path / "in/wide.png")[:, 4:36].reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(middle - read(tmp_path / "out/reconstructions.png")[2:18, 20:36]).max() <= 1


def test_a_single_image_of_a_gray_network_with_labels(networks, tmp_path):
    write_photos(tmp_path / "in")
    options = [f"--network={networks['glead_gray']}", "--class=1", "--reconstruct=in/0.bmp"]
    result = run_ok(tmp_path, *options, "--outdir=a")
    assert "Warning: --class: no effect on --reconstruct" in result.stderr
    assert "holds no G, only its average" in result.stderr
    (tmp_path / "in/a.zip").unlink()  # a folder holds zips or images
    run_ok(tmp_path, f"--network={networks['glead_gray']}", "--reconstruct=in", "--outdir=b")
    assert np.array_equal(read(tmp_path / "a/0-rec.png"), read(tmp_path / "b/0-rec.png"))
    img = torch.from_numpy(read(tmp_path / "in/0.bmp")[None, None].copy()).float() / 127.5 - 1
    D = make_discriminator(c_dim=3, img_channels=1)
    for label in torch.eye(3):
        rebuilt = reconstruct(make_generator(c_dim=3, img_channels=1), D.run(img, label[None]), res_g=8,
                              noise_mode="const")
        pixels = (rebuilt[0, 0] * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
        assert_same_image(read(tmp_path / "a/0-rec.png"), pixels)


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
    with zipfile.ZipFile(folder / "bytes.npz", "w") as archive:
        archive.writestr("w.npy", "no array")
    with zipfile.ZipFile(folder / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"")
    content = (folder / "large.npz").read_bytes()   # the directory at its end announces 4 GB
    start = content.index(b"PK\x01\x02") + 24
    (folder / "large.npz").write_bytes(content[:start] + b"\0\0\0\xf0" + content[start + 4:])
    os.mkfifo(folder / "pipe.npz")
    (folder / "code.npy").write_bytes(pickle.dumps([1, 2]))
    (folder / "file").write_text("a file, not a folder")
    (folder / "empty").mkdir()
    PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, [64, 64, 3]).astype(np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])


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
        (["--network={classes}", "--outdir=out", "--seeds=1", "--label=1,2"], 1,
         "--label has 2 numbers, the labels of"),
        (["--network={classes}", "--outdir=out", "--seeds=1", "--label=1,2,3", "--class=1"], 1,
         "leave out one of them"),
        (["--network={classes}", "--outdir=out", "--seeds=1", "--label=1,,nan"], 2, "'' is not a valid float"),
        (["--network={no_ema}", "--outdir=out", "--seeds=1"], 1, "holds no G_ema"),
        (["--network={linear}", "--outdir=out", "--seeds=1", "--trust-pickle"], 1,
         "of class Linear, which can't be used"),
        (["--network={text}", "--outdir=out", "--seeds=1"], 1, "a network pickle was expected"),
        (["--network=nothing.pkl", "--outdir=out", "--seeds=1"], 1, "can't open nothing.pkl: No such file"),
        (["--network={plain}", "--outdir=out", "--projected-w=nothing.npz"], 1, "can't open nothing.npz: No such file"),
        (["--network={plain}", "--outdir=out", "--projected-w=other.npz"], 1, "holds v, no array 'w'"),
        (["--network={plain}", "--outdir=out", "--projected-w=shape.npy"], 1, "takes float32 [N, 6, 12]"),
        (["--network={plain}", "--outdir=out", "--projected-w=nan.npy"], 1, "not finite"),
        (["--network={plain}", "--outdir=out", "--projected-w=text.npy"], 1, "w is <U1 [1, 1]"),
        (["--network={plain}", "--outdir=out", "--projected-w=junk.npz"], 1, "neither .npz nor .npy"),
        (["--network={plain}", "--outdir=out", "--projected-w=bytes.npz"], 1, "holds nothing, no array 'w'"),
        (["--network={plain}", "--outdir=out", "--projected-w=large.npz"], 1, "arrays take more than 1 GiB"),
        (["--network={plain}", "--outdir=out", "--projected-w=pipe.npz"], 1, "a device or pipe, not a file"),
        (["--network={plain}", "--outdir=out", "--projected-w=code.npy"], 1, "neither .npz nor .npy"),
        (["--network={plain}", "--outdir=out", "--seeds="], 2, "is no list of numbers"),
        (["--network={plain}", "--outdir=out", "--seeds=1", "--reconstruct=a.png"], 2, "give either --seeds or"),
        (["--network={plain}", "--video=out/a.mp4", "--seeds=1"], 1, "two or more seeds or w's; there are 1"),
        (["--network={plain}", "--video=out/a.gif", "--seeds=1-6", "--grid=2x2"], 1, "--grid=2x2, equally many"),
        (["--network={plain}", "--video=out/a.gif", "--seeds=1-4", "--grid=auto"], 1, "such as 2x4"),
        (["--network={plain}", "--video=out/a.avi", "--seeds=1-4"], 1, "ends in .mp4, .webp, .gif"),
        (["--network={plain}", "--video=", "--seeds=1-4"], 1, "ends in .mp4, .webp, .gif"),
        (["--network={plain}", "--video=out/a.gif", "--seeds=1-4", "--fps=60"], 1, "GIF has at most 50"),
        (["--network={plain}", "--video=out/a.gif", "--seeds=1-4", "--lossless"], 1, "can't be lossless"),
        (["--network={plain}", "--video=out/a.webp", "--seeds=1-4", "--noise-mode=random"], 1, "would flicker"),
        (["--network={plain}", "--video=file/a.webp", "--seeds=1-4"], 1, "is not a folder"),
        (["--network={plain}", "--video=out/a.webp", "--seeds=1-4", "--fps=nan"], 2, "no finite number"),
        (["--network={glead}", "--reconstruct=file"], 2, "--outdir"),
        (["--network={glead}", "--reconstruct=file", "--fakes=2", "--outdir=out"], 2, "give either --seeds or"),
        (["--network={plain}", "--outdir=out", "--reconstruct=file"], 1, "holds no D; rebuilding images needs"),
        (["--network={baseline}", "--outdir=out", "--reconstruct=file"], 1, "with heads for G; this one has none"),
        (["--network={ggdr}", "--outdir=out", "--reconstruct=file"], 1, "without heads for G, as GGDR has it"),
        (["--network={unfit}", "--outdir=out", "--reconstruct=file"], 1, "they don't belong together"),
        (["--network={glead}", "--outdir=out", "--reconstruct=nothing.png"], 1, "nothing.png: there is no such file"),
        (["--network={glead}", "--outdir=out", "--reconstruct=*.bmp"], 1, "*.bmp: no file fits this pattern"),
        (["--network={glead}", "--outdir=out", "--reconstruct=file"], 1, "file can't be decoded: replace or remove it"),
        (["--network={glead}", "--outdir=out", "--reconstruct=cut.png"], 1, "cut.png can't be decoded"),
        (["--network={glead}", "--outdir=out", "--reconstruct=empty"], 1, "no images in empty"),
        (["--network={glead}", "--outdir=empty", "--reconstruct=empty"], 1, "--outdir=empty lies in empty"),
        (["--network={glead}", "--outdir=empty/a/b", "--reconstruct=empty"], 1, "results would join the images there"),
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
