"""The command feature_net.py and the net that it makes."""

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from paths import ROOT
from torch_utils.formats.classifier_net import ClassifierNet
from torch_utils.formats.feature_nets import open_net
from training.jobs import classifier_training
from training.jobs.classifier_training import LabelledImages, TrainingOptions
from training.perceptual import build_perceptual


def write_images(path, *, labels="classes", channels=3, side=16, count=60):
    """Noisy images whose brightness tells which of three classes they are of."""
    rng = np.random.RandomState(0)
    names = [f"00000/img{i:08d}.png" for i in range(count)]
    values = {"classes": [i % 3 for i in range(count)], "vectors": [[0.5, float(i)] for i in range(count)],
              "one": [0] * count, "none": None}[labels]
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            pixels = (rng.randint(0, 40, (side, side, channels)) + i % 3 * 100).astype(np.uint8)
            data = BytesIO()
            PIL.Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(data, "png")
            archive.writestr(name, data.getvalue())
        pairs = None if values is None else [[n, v] for n, v in zip(names, values)]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return path


def run(*arguments, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, ROOT / "feature_net.py", *arguments],
                          capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The result of a run of the command, used by several tests."""
    folder = tmp_path_factory.mktemp("feature_net")
    data = write_images(folder / "data.zip", channels=1, count=240)
    done = run(f"--data={data}", "--out=sub/net.pt", "--epochs=6", "--width=8", "--batch=16", "--seed=3", "--lr=0.01",
               "--holdout=0.2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "sub" / "net.pt", done


def small_net(seed=0):
    """A net whose normalisation does something, at resolution 16."""
    torch.manual_seed(seed)
    net = ClassifierNet(4, width=8, resolution=16)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def pixels(n=3, channels=3, side=16, seed=0):
    return torch.randint(256, (n, channels, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_command_trains_and_exports_both_interfaces(made):
    path, done = made
    assert "held-out accuracy" in done.stdout and "48 images" in done.stdout and "3 classes" in done.stdout
    assert "img/s" in done.stderr
    assert "Warning" not in done.stderr
    net = open_net(path, "cpu").module
    with safe_open(path, "pt") as f:
        metadata = json.loads(f.metadata()["glead_feature_net"])["training"]
    assert metadata["name"] == "net" and metadata["dataset"] == "data"
    assert (metadata["seed"], metadata["width"], metadata["resolution"], metadata["images"]) == (3, 8, 16, 192)
    assert metadata["accuracy"] > 0.9  # chance is 1/3
    for n, channels, side in ((1, 3, 16), (2, 1, 8), (3, 3, 64)):
        img = pixels(n, channels, side)
        features = net(img, return_features=True)
        probabilities = net(img, no_output_bias=True)
        embedding = net(img.float(), resize_images=False, return_lpips=True)
        assert features.shape == (n, 64) and features.dtype == torch.float32
        assert probabilities.shape == (n, 3)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(n))
        assert embedding.ndim == 2 and len(embedding) == n
    assert os.listdir(path.parent) == ["net.pt"]


def test_exported_net_is_a_perceptual_distance(made):
    loss = build_perceptual(str(made[0]), device="cpu", img_channels=1)
    x = pixels(channels=1, side=32).float() / 127.5 - 1
    target = loss.embed(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    distances = [loss.distance(x + amount * noise, target) for amount in (0, 0.05, 0.2, 0.8)]
    assert distances[0].abs().max() < 1e-6
    assert all((a < b).all() for a, b in zip(distances, distances[1:]))
    assert (distances[-1] < 4 * 2).all()  # four stages, each at most 2 for features that are no opposites
    img = (x + 0.2 * noise).requires_grad_()
    loss.distance(img, target).sum().backward()
    assert torch.isfinite(img.grad).all() and img.grad.abs().sum() > 0


def test_same_seed_gives_the_same_net(tmp_path):
    rng = np.random.RandomState(0)
    images = torch.from_numpy(rng.randint(0, 256, (40, 3, 8, 8)).astype(np.uint8))
    data = LabelledImages(images, torch.arange(40) % 2, 2, "noise")
    nets = [classifier_training.train(data, torch.arange(40), TrainingOptions(
        epochs=2, width=4, batch_size=16, lr=1e-3, seed=seed, holdout=0.1), torch.device("cpu")) for seed in (1, 1, 2)]
    first, second, other = (net(images, return_features=True) for net in nets)
    assert torch.equal(first, second) and not torch.allclose(first, other)


def test_folding_changes_nothing():
    net, img = small_net(), pixels(side=16)
    with torch.no_grad():
        before = net(img, return_features=True), net(img), net(img, resize_images=False, return_lpips=True)
        net.fold()
        after = net(img, return_features=True), net(img), net(img, resize_images=False, return_lpips=True)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_embedding_is_a_mean_over_positions_of_unit_vectors():
    net, x, y = small_net(), pixels(side=16), pixels(side=16, seed=1)
    with torch.no_grad():
        a, b = (net(img, resize_images=False, return_lpips=True) for img in (x, y))
        expected = 0
        for f, g in zip(*(net.stage_outputs(net.preprocess(img, False)) for img in (x, y))):
            cosine = torch.nn.functional.cosine_similarity(f, g, dim=1)
            expected = expected + (2 - 2 * cosine).mean(dim=(1, 2))  # |u - v|^2 of unit vectors
    torch.testing.assert_close((a - b).square().sum(1), expected, rtol=1e-4, atol=1e-5)


def test_sizes_and_channels():
    net = small_net()
    with torch.no_grad():
        grey = pixels(channels=1)
        torch.testing.assert_close(net(grey, return_features=True), net(grey.repeat(1, 3, 1, 1), return_features=True))
        flat = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)  # scaling keeps a flat image as it is
        torch.testing.assert_close(net(flat), net(flat[:, :, :16, :16]))
        native = net(flat, resize_images=False, return_lpips=True)
        resized = net(flat, resize_images=True, return_lpips=True)
    assert native.shape[1] == 16 * resized.shape[1]


def test_gradient_agrees_with_finite_differences():
    net = small_net()
    net.fold()
    net.preprocess = lambda x, resize: x / 127.5 - 1  # keeps float64
    img = pixels(n=1, side=8).double().requires_grad_()
    net.double()
    assert torch.autograd.gradcheck(lambda x: net(x, resize_images=False, return_lpips=True).square().sum() + (
        net(x, resize_images=False, return_lpips=True)[:, ::7]).sum(), img, atol=1e-6)


def test_augment_keeps_what_an_image_shows():
    img = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    img[:, :, 6:10, 6:10] = 255  # a bright square in the middle stays one, and no pixel moves farther than 2
    out = classifier_training.augment(img, torch.Generator().manual_seed(0))
    assert out.shape == img.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 255
    bright = out.mean(dim=1) > 128  # [N, R, R]
    assert (bright.sum(dim=(1, 2)) == 16).all()
    assert not bright[:, :4].any() and not bright[:, 12:].any() and not bright[:, :, :4].any()
    corners = {tuple(image.nonzero()[0].tolist()) for image in bright}
    assert corners == {(row, column) for row in range(4, 9) for column in range(4, 9)}


@pytest.mark.parametrize("count, holdout, expected", [(10, 0.1, 1), (1000, 0.25, 250), (2, 0.01, 1), (3, 0.5, 2)])
def test_split(count, holdout, expected):
    train, test = classifier_training.split(count, holdout, seed=0)
    assert len(test) == expected
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(count))


@pytest.mark.parametrize("labels, message", [
    ("none", "label"),
    ("vectors", "vectors of 2 numbers"),
    ("one", "all images in data.zip are of one class"),
])
def test_labels_that_do_not_serve(tmp_path, labels, message):
    write_images(tmp_path / "data.zip", labels=labels)
    done = run("--data=data.zip", "--out=net.pt", cwd=tmp_path)
    assert_one_line_error(done, message)
    assert os.listdir(tmp_path) == ["data.zip"]


@pytest.mark.parametrize("arguments, message", [
    (["--data=none.zip", "--out=net.pt"], "none.zip"),
    (["--data=data.zip", "--out=."], "is no file"),
    (["--data=data.zip", "--out=net.pt", "--device=gpu"], "--device=gpu can't be used here"),
    (["--data=data.zip", "--out=net.pt", "--device=cuda:7"], "--device=cuda:7"),
    (["--data=data.zip", "--out=net.pt", "--lr=1e30", "--width=2"], "diverged"),
])
def test_mistakes(tmp_path, arguments, message):
    write_images(tmp_path / "data.zip")
    assert_one_line_error(run(*arguments, cwd=tmp_path), message)
    assert os.listdir(tmp_path) == ["data.zip"]


def assert_one_line_error(done, message):
    assert done.returncode == 1
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("Error")]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_wrong_usage(tmp_path):
    done = run("--data=a.zip", "--out=b.pt", "--epochs=0", cwd=tmp_path)
    assert done.returncode == 2 and "--epochs" in done.stderr


@pytest.mark.parametrize("progress, share", [(0, 0), (0.125, 0.5), (0.25, 1), (0.625, 0.5), (1, 0)])
def test_learning_rate_schedule(progress, share):
    assert classifier_training._one_cycle(progress) == pytest.approx(share)
