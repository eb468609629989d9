import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from dataset_fakes import (
    cifar10_members,
    contents,
    encoded,
    huge_png,
    left_behind,
    noise,
    save,
    write_idx,
    write_lmdb,
    write_tar,
)
from paths import ROOT
from training.data.dataset import ImageFolderDataset
from training.data.scenes import CLASS_NAMES

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*args, cwd):
    return subprocess.run([sys.executable, ROOT / "dataset_tool.py", *args], cwd=cwd, capture_output=True, text=True,
                          env=ENVIRONMENT)


def lines_of(stderr):
    """Without the progress bar."""
    return [line for line in stderr.replace("\r", "\n").splitlines()
            if line.strip() and "img/s" not in line and "img]" not in line]


def pixels(path, index=0):
    return ImageFolderDataset(path)[index][0].transpose(1, 2, 0)


def test_synthetic_command(tmp_path):
    result = run("--source=synthetic", "--resolution=16", "--max-images=203", "--dest=sub/a.zip", "--seed=4",
                 cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Wrote 203 images of 16x16x3 to sub/a.zip; labels: 6 classes: disc (35), ring (")
    assert len(result.stdout.splitlines()) == 1 and "img/s" in result.stderr and not lines_of(result.stderr)
    dataset = ImageFolderDataset(tmp_path / "sub/a.zip", use_labels=True)
    assert len(dataset) == 203 and dataset.label_dim == len(CLASS_NAMES)
    assert left_behind(tmp_path / "sub") == ["a.zip"]


def test_starts_without_pytorch(tmp_path):
    code = "import sys, dataset_tool; sys.exit(any(m == 'torch' or m.startswith('torch.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT).returncode == 0


def lanczos(image, width, height):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One source of each kind that has to be unpacked."""
    root = tmp_path_factory.mktemp("sources")
    for i, name in enumerate(("train/cat/1.png", "train/dog/2.png", "test/cat/3.png")):
        save(root / "afhq" / name, noise(i, 512, 512))
    write_lmdb(root / "lsun_lmdb", {bytes([97 + i]) * 5: encoded(noise(i, 30 + i, 40), "WEBP", lossless=True)
                                    for i in range(4)})
    images = np.stack([noise(i, 32, 32) for i in range(10)])
    members, order = cifar10_members(images.transpose(0, 3, 1, 2).reshape(10, 3072), np.arange(10))
    assert order[1] == 5
    write_tar(root / "cifar-10-python.tar.gz", members)
    (root / "mnist").mkdir()
    write_idx(root / "mnist/train-images-idx3-ubyte.gz", np.stack([noise(i, 28, 28, 1) for i in range(3)]))
    write_idx(root / "mnist/train-labels-idx1-ubyte.gz", np.uint8([7, 8, 9]))
    return root


# Commands as users of StyleGAN2-ADA know them, then ours. (Options, last line on stdout, image, pixels)
COMMANDS = [
    ("--source=afhq/test/cat --width=256 --height=256 --resize-filter=box", "1 images of 256x256x3", 0,
     lambda: np.asarray(Image.fromarray(noise(2, 512, 512)).resize((256, 256), Image.Resampling.BOX))),
    ("--source=afhq/test/cat --width=256 --height=256", "1 images of 256x256x3", 0,
     lambda: lanczos(noise(2, 512, 512), 256, 256)),
    ("--source=lsun_lmdb --transform=center-crop --width=16 --height=16 --max-images=2", "2 images of 16x16x3", 1,
     lambda: lanczos(noise(1, 31, 40)[:, 4:35], 16, 16)),
    ("--source=lsun_lmdb --transform=center-crop-wide --width=32 --height=24", "4 images of 32x32x3", 0,
     lambda: np.pad(lanczos(noise(0, 30, 40)[3:27], 32, 24), [(4, 4), (0, 0), (0, 0)])),
    ("--source=lsun_lmdb --width=32 --height=32", "4 images of 32x32x3", 3, lambda: lanczos(noise(3, 33, 40), 32, 32)),
    ("--source=cifar-10-python.tar.gz", "10 images of 32x32x3", 1, lambda: noise(5, 32, 32)),
    ("--source=mnist/train-images-idx3-ubyte.gz", "3 images of 32x32x1", 2,
     lambda: np.pad(noise(2, 28, 28, 1), 2)[..., None]),
    ("--source=afhq --preset=afhq", "2 images of 512x512x3", 1, lambda: noise(1, 512, 512)),
    ("--source=afhq/train/dog --preset=ffhq256", "1 images of 256x256x3", 0,
     lambda: np.asarray(Image.fromarray(noise(1, 512, 512)).resize((256, 256), Image.Resampling.BOX))),
    ("--source=lsun_lmdb/data.mdb --preset=lsun256", "4 images of 256x256x3", 3,
     lambda: lanczos(noise(3, 33, 40)[:, 3:36], 256, 256)),
    ("--source=lsun_lmdb --preset=lsun256 --resolution=8 --resize-filter=box --workers=1", "4 images of 8x8x3", 0,
     lambda: np.asarray(Image.fromarray(noise(0, 30, 40)[:, 5:35]).resize((8, 8), Image.Resampling.BOX))),
]


@pytest.mark.parametrize("options, told, index, expected", COMMANDS, ids=[row[0] for row in COMMANDS])
def test_commands(sources, tmp_path, options, told, index, expected):
    result = run(*options.split(), f"--dest={tmp_path}/out.zip", cwd=sources)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {told} to "), result.stdout
    np.testing.assert_array_equal(pixels(tmp_path / "out.zip", index), expected())


def test_shards_and_notes(sources, tmp_path):
    result = run("--source=cifar-10-python.tar.gz", f"--dest={tmp_path}/c10", "--shard-size=4", cwd=sources)
    assert result.returncode == 0, result.stderr
    assert left_behind(tmp_path) == ["c10"]
    assert left_behind(tmp_path / "c10") == [f"c10-0000{i}.zip" for i in range(3)]
    labels = [json.loads(contents(tmp_path / "c10" / name)["dataset.json"])["labels"]
              for name in left_behind(tmp_path / "c10")]
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert sum(labels, []) == [[f"00000/img{i:08d}.png", label] for i, label in enumerate(order)]
    result = run("--source=afhq", f"--dest={tmp_path}/a.zip", "--preset=afhq", "--resolution=4", cwd=sources)
    assert lines_of(result.stderr) == ["Note: taking the 2 images below train/, and not the 1 others",
                                       "Note: labels are 2 classes from sub-folders: cat (1), dog (1)"]
    assert result.stdout.endswith("labels: 2 classes from sub-folders: cat (1), dog (1)\n")


def test_skip_bad(tmp_path):
    for i in range(10):
        save(tmp_path / f"in/{i}.png", noise(i))
    (tmp_path / "in/0.png").write_bytes(huge_png())
    for i in range(1, 8):
        (tmp_path / f"in/{i}.png").write_bytes(encoded(noise(i))[:200])
    result = run("--source=in", "--dest=out.zip", "--skip-bad", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.startswith("Wrote 2 images")
    *named, total = lines_of(result.stderr)
    assert total == "8 of 10 images can't be read, and were skipped"
    assert len(named) == 5 and named[0].startswith("bad: image 0.png in in announces more than") and "1.png" in named[1]
    save(tmp_path / "mixed/cat/a.png", noise(0))
    save(tmp_path / "mixed/dog/b.png", noise(1, channels=1))
    save(tmp_path / "mixed/wild/c.png", noise(2))
    result = run("--source=mixed", "--dest=mixed.zip", "--skip-bad", "--max-images=2", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.endswith("2 of 3 classes from sub-folders: cat (1), dog (1)\n")
    assert "recolored: image dog/b.png in mixed is 16x16 L" in result.stderr
    assert "1 of 2 images are not RGB or grayscale like the first" in result.stderr
    np.testing.assert_array_equal(pixels(tmp_path / "mixed.zip", 1), np.repeat(noise(1, channels=1)[..., None], 3, 2))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Folders with something wrong in each."""
    root = tmp_path_factory.mktemp("bad")
    save(root / "good/a.png", noise(0))
    save(root / "wide/a.png", noise(0, width=32))
    save(root / "odd/a.png", noise(0, height=20, width=20))
    for name, second in (("sizes", noise(1, 32, 32)), ("mixed", noise(1, channels=1)), ("broken", None)):
        save(root / name / "a.png", noise(0))
        if second is None:
            (root / name / "b.png").write_bytes((root / name / "a.png").read_bytes()[:400])
        else:
            save(root / name / "b.png", second)
    save(root / "labels/a.png", noise(0))
    (root / "labels/dataset.json").write_text('{"labels": [["b.png", 0]]}')
    (root / "empty").mkdir()
    save(root / "precious/a.png", noise(0))
    (root / "existing.zip").write_bytes(b"precious")
    save(root / "bomb/a.png", noise(0))
    (root / "bomb/b\n.png").write_bytes(huge_png(15000, 11000))
    write_lmdb(root / "cut_lmdb", {bytes([i]) * 9: encoded(noise(i)) for i in range(40)})
    data = (root / "cut_lmdb/data.mdb").read_bytes()
    (root / "cut_lmdb/data.mdb").write_bytes(data[: len(data) // 2])
    write_idx(root / "train-images-idx3-ubyte.gz", np.zeros([3, 28, 28], np.uint8))
    write_idx(root / "train-labels-idx1-ubyte.gz", np.zeros([2], np.uint8))
    members, _ = cifar10_members(np.zeros([10, 3072], np.uint8), np.arange(10))
    write_tar(root / "cifar-10-python.tar.gz", members)
    (root / "cut.tar.gz").write_bytes((root / "cifar-10-python.tar.gz").read_bytes()[:200])
    (root / "cut.zip").write_bytes(b"PK\3\4" + bytes(100))
    (root / "words.txt").write_text("words")
    (root / "pipes").mkdir()
    (root / "pipe_lmdb").mkdir()
    for name in ("pipes/a.png", "pipes/b", "pipe_lmdb/data.mdb"):
        os.mkfifo(root / name)
    (root / "pipes/zero.png").symlink_to("/dev/zero")
    return root


@pytest.mark.parametrize("args, parts", [
    (["--source=nothing", "--dest=out.zip"], ["nothing", "does not exist"]),
    (["--source=words.txt", "--dest=out.zip"], ["words.txt is no known kind", "LSUN", "MNIST", "cifar-10"]),
    (["--source=empty", "--dest=out.zip"], ["no images in empty"]),
    (["--source=wide", "--dest=out.zip"], ["a.png in wide", "32x16", "--transform=center-crop"]),
    (["--source=odd", "--dest=out.zip"], ["a.png in odd", "20x20", "--resolution"]),
    (["--source=sizes", "--dest=out"], ["b.png in sizes", "32x32", "16x16"]),
    (["--source=mixed", "--dest=out"], ["b.png in mixed", "grayscale", "--color"]),
    (["--source=broken", "--dest=out", "--shard-size=1"], ["b.png in broken", "can't be decoded", "--skip-bad"]),
    (["--source=broken", "--dest=out.zip"], ["b.png in broken", "can't be decoded"]),
    (["--source=bomb", "--dest=out.zip"], ["image 'b\\n.png' in bomb announces 15000x11000", "134217728"]),
    (["--source=labels", "--dest=out.zip"], ["dataset.json of labels", "a label for b.png", "2 problems"]),
    (["--source=cut_lmdb", "--dest=out.zip"], ["cut_lmdb/data.mdb", "truncated"]),
    (["--source=train-images-idx3-ubyte.gz", "--dest=out.zip"], ["2 labels for the 3 images"]),
    (["--source=cut.tar.gz", "--dest=out.zip"], ["cut.tar.gz can't be unpacked"]),
    (["--source=cut.zip", "--dest=out.zip"], ["cut.zip is no zip"]),
    (["--source=good", "--labels=folders", "--dest=out.zip"], ["a.png in good", "no sub-folder"]),
    (["--source=good", "--dest=existing.zip"], ["existing.zip exists", "--overwrite"]),
    (["--source=good", "--dest=precious"], ["precious exists", "not empty"]),
    (["--source=good", "--dest=precious", "--overwrite"], ["a.png", "not made by this tool"]),
    (["--source=good", "--dest=out.zip", "--shard-size=5"], ["out.zip", "--shard-size writes several"]),
    (["--source=good/a.png", "--dest=good"], ["--source=good/a.png inside"]),
    (["--source=good", "--dest=good/sub/out.zip"], ["--dest=good/sub/out.zip is inside --source=good"]),
    (["--source=.", "--dest=out"], ["--dest=out is inside --source=."]),
    (["--source=good", "--dest=existing.zip/out"], ["existing.zip"]),
    (["--source=pipes", "--dest=out.zip"], ["no images in pipes", "device or pipe: 3, first a.png)"]),
    (["--source=pipe_lmdb", "--dest=out.zip"], ["data.mdb is a folder, device or pipe"]),
    (["--source=good", "--resolution=20", "--dest=out.zip"], ["--resolution=20:", "power of two", "16"]),
    (["--source=good", "--width=16", "--height=8", "--dest=out.zip"], ["--width=16 --height=8", "square"]),
    (["--source=good", "--width=16", "--dest=out.zip"], ["--width and --height go together"]),
    (["--source=good", "--width=16", "--resolution=8", "--dest=out.zip"], ["--resolution is width and height"]),
    (["--source=good", "--transform=center-crop-wide", "--dest=out.zip"], ["--width and --height"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5"], ["--resolution and --max-images"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5", "--resolution=512"], ["8, 16, 32"]),
    (["--source=synthetic", "--dest=out.zip", "--max-images=5", "--resolution=8", "--color=gray"], ["--color"]),
], ids=lambda value: " ".join(value) if value[0].startswith("--source") else "")
def test_bad_input(bad, args, parts):
    before = left_behind(bad)
    result = run(*args, cwd=bad)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    lines = lines_of(result.stderr)
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    for part in parts:
        assert part in lines[0]
    assert left_behind(bad) == before
    assert (bad / "existing.zip").read_bytes() == b"precious" and (bad / "precious/a.png").is_file()


def test_usage_errors(tmp_path):
    for args in (["--dest=a.zip"], ["--source=x", "--dest=y", "--max-images=0"],
                 ["--source=x", "--dest=y", "--resize-filter=nearest"], ["--source=x", "--dest=y", "--workers=0"]):
        assert run(*args, cwd=tmp_path).returncode == 2
    assert left_behind(tmp_path) == []


def start_long_conversion(folder, *options):
    """A conversion that has begun to write, and the ids of its workers."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "dataset_tool.py", "--source=synthetic", "--resolution=64", "--max-images=1000000",
         "--workers=2", *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT, start_new_session=True,
    )
    deadline = time.monotonic() + 60
    workers = []
    while (len(workers) < 2 or not left_behind(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
    time.sleep(0.5)
    return process, workers


@pytest.mark.parametrize("options, number", [
    (["--dest=out.zip"], signal.SIGINT), (["--dest=out"], signal.SIGTERM),
    (["--dest=out", "--shard-size=100"], signal.SIGINT),
])
def test_interrupt_leaves_nothing(tmp_path, options, number):
    process, workers = start_long_conversion(tmp_path, *options)
    os.killpg(process.pid, number)  # As the terminal does: the workers get it, too.
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert lines_of(err) == ["Aborted!"] or number == signal.SIGTERM and len(lines_of(err)) == 1
    assert left_behind(tmp_path) == []
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_workers_do_not_outlive_the_main_process(tmp_path):
    process, workers = start_long_conversion(tmp_path, "--dest=out.zip")
    process.kill()
    process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2 and not alive
