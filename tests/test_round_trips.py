"""From every kind of source to training: dataset_tool.py, its check, and a few iterations of train.py."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dataset_fakes import encoded, noise, python2_batch, save, write_idx, write_lmdb, write_tar
from paths import ROOT


def run(folder, program, *arguments):
    command = [sys.executable, str(ROOT / program), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def photos(folder):
    for label in ("cat", "dog"):
        for i in range(6):
            save(folder / "photos" / label / f"{i}.jpg", noise(i, 40, 52))
    return ["--source=photos", "--transform=center-crop", "--width=32", "--height=32"]


def lsun(folder):
    (folder / "church_lmdb").mkdir()
    write_lmdb(folder / "church_lmdb", {f"{i:05d}".encode(): encoded(noise(i, 36, 48), "WEBP") for i in range(12)})
    return ["--source=church_lmdb", "--transform=center-crop", "--width=32", "--height=32"]


def cifar(folder):
    rng = np.random.default_rng(0)
    write_tar(folder / "cifar-10-python.tar.gz", {
        f"cifar-10-batches-py/data_batch_{number}":
            python2_batch(rng.integers(0, 256, [3, 3072], dtype=np.uint8), rng.integers(0, 10, 3))
        for number in range(1, 6)
    })
    return ["--source=cifar-10-python.tar.gz"]


def cifar_in_shards(folder):
    return [*cifar(folder), "--shard-size=4"]


def mnist(folder):
    rng = np.random.default_rng(0)
    write_idx(folder / "train-images-idx3-ubyte.gz", rng.integers(0, 256, [12, 28, 28], dtype=np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte.gz", rng.integers(0, 10, [12], dtype=np.uint8))
    return ["--source=train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize("make, images, channels, labelled", [
    (photos, 12, 3, True), (lsun, 12, 3, False), (cifar_in_shards, 15, 3, True), (mnist, 12, 1, True),
])
def test_source_to_training(tmp_path, make, images, channels, labelled):
    arguments = make(tmp_path)
    dest = "set" if make is cifar_in_shards else "set.zip"
    result = run(tmp_path, "dataset_tool.py", *arguments, f"--dest={dest}")
    assert result.returncode == 0, result.stderr
    result = run(tmp_path, "dataset_tool.py", "check", dest)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Images      {images}, " in result.stdout and f"32x32, {channels} channel" in result.stdout
    result = run(
        tmp_path, "train.py", "--outdir=runs", f"--data={dest}", f"--cond={labelled}", "--method=glead", "--aug=ada",
        "--perceptual=mse", "--cfg=auto", "--cbase=64", "--cmax=4", "--map-depth=1", "--batch=4", "--mbstd-group=4",
        "--kimg=0.008", "--snap=0", "--device=cpu", "--workers=1", "--metrics=none",
    )
    assert result.returncode == 0, result.stderr
    assert f"Training on {images} images [{channels}, 32, 32]" in result.stdout
    assert list((tmp_path / "runs").glob("*/network-snapshot-000000.pkl"))
