import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from dnnlib.util import UserError
from paths import ROOT
from tests.training.data.test_dataset import assert_user_error, make_zip, some_files
from training.data.dataset import ImageFolderDataset
from training.data.loader import BatchLoader, TrainingOrder

# --- The training order.


@pytest.mark.parametrize("size", [1, 2, 11, 1000])
def test_order_is_a_permutation_in_every_epoch(size):
    order = TrainingOrder(size, 5)
    epochs = [order.take(e * size, size) for e in range(4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size > 10:
        assert len({e.tobytes() for e in epochs}) == 4
        assert not np.array_equal(epochs[0], TrainingOrder(size, 6).take(0, size))


def test_order_from_anywhere_is_the_same():
    straight = TrainingOrder(37, 3).take(0, 500)
    order = TrainingOrder(37, 3)
    for k in (499, 0, 36, 37, 38, 250, 111):
        assert TrainingOrder(37, 3).take(k, 1) == straight[k : k + 1]
        np.testing.assert_array_equal(order.take(k, 100)[: 500 - k], straight[k : k + 100])
    assert order.take(5, 0).shape == (0,)
    with pytest.raises(IndexError):
        order.take(-1, 1)
    with pytest.raises(ValueError):
        TrainingOrder(0, 0)


def test_order_does_not_change_between_releases():
    assert TrainingOrder(10, 0).take(0, 20).tolist() == [6, 1, 0, 5, 3, 8, 7, 9, 2, 4, 7, 3, 5, 0, 1, 4, 6, 8, 9, 2]


def test_order_is_uniform():
    # Each of the 24 permutations of four items equally often: chi-square with 23 degrees of freedom, p = 1e-5 at 66.
    counts = {}
    for seed in range(20):
        order = TrainingOrder(4, seed)
        for e in range(120):
            key = order.epoch(e).tobytes()
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 66


def test_order_of_millions_is_quick():
    start = time.process_time()
    order = TrainingOrder(3_000_000, 0)
    part = order.take(2_999_990, 20)
    assert part.dtype == np.int64 and time.process_time() - start < 5
    assert len(set(part[:10].tolist())) == 10


# --- The loader.


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(
        make_zip(tmp_path / "a.zip", some_files(7, [0, 1, 2, 0, 1, 2, 2])), use_labels=True, xflip=True
    )


def take(loader, count):
    with loader:
        batches = [next(loader) for _ in range(count)]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_follows_the_order(dataset, num_workers):
    order = TrainingOrder(len(dataset), 1)
    images, labels = take(BatchLoader(dataset, order=order, batch_size=4, num_workers=num_workers), 8)
    assert images.dtype == torch.uint8 and images.shape == (32, 3, 16, 16)
    assert labels.dtype == torch.float32 and labels.shape == (32, 3)
    for k in range(32):
        image, label = dataset[order.take(k, 1)[0]]
        np.testing.assert_array_equal(images[k], image)
        np.testing.assert_array_equal(labels[k], label)


def test_loader_resumes_and_ranks_reassemble(dataset):
    def order():
        return TrainingOrder(len(dataset), 9)

    straight, straight_labels = take(BatchLoader(dataset, order=order(), batch_size=6, num_workers=0), 10)
    resumed, _ = take(BatchLoader(dataset, order=order(), batch_size=6, start_index=24, num_workers=0), 6)
    assert torch.equal(resumed, straight[24:])
    for num_ranks in (2, 3):
        parts = [
            take(BatchLoader(dataset, order=order(), batch_size=6, rank=r, num_ranks=num_ranks, num_workers=0), 10)
            for r in range(num_ranks)
        ]
        for which, whole in enumerate((straight, straight_labels)):
            by_rank = [p[which].reshape(10, 6 // num_ranks, *whole.shape[1:]) for p in parts]
            assert torch.equal(torch.cat(by_rank, dim=1).flatten(0, 1), whole)
    with pytest.raises(ValueError):
        BatchLoader(dataset, order=order(), batch_size=6, num_ranks=4)
    with pytest.raises(ValueError):
        BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=5)


def test_loader_without_labels(dataset):
    plain = dataset.replace(use_labels=False)
    _, labels = take(BatchLoader(plain, order=TrainingOrder(14, 0), batch_size=2, num_workers=0), 1)
    assert labels.shape == (2, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_ends_the_loader_with_its_name(tmp_path, num_workers):
    files = some_files(5)
    files["00000/img00000003.png"] = files["00000/img00000003.png"][:300]
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", files))
    loader = BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=1, num_workers=num_workers)
    with pytest.raises(UserError) as e:
        for _ in range(6):
            next(loader)
    assert_user_error(e, "img00000003.png")
    assert type(e.value) is UserError
    with pytest.raises(StopIteration):
        next(loader)


def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    path = make_zip(tmp_path / "a.zip", some_files(5))
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from training.dataset import ImageFolderDataset
from training.data.loader import BatchLoader, TrainingOrder
if __name__ == "__main__":
    loader = BatchLoader(ImageFolderDataset({str(path)!r}), order=TrainingOrder(5, 0), batch_size=2, num_workers=1)
    next(loader)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    # Workers and their server hold the pipe open: the end of it is the end of them all.
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_signal_to_all_processes_leaves_readers_to_the_main_one(dataset):
    """Schedulers send SIGTERM and SIGUSR1 to every process of a job; the main one still saves, and may need images."""
    loader = BatchLoader(dataset, order=TrainingOrder(14, 0), batch_size=2, num_workers=2)
    next(loader)
    for process in loader._pool.processes:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(process.pid, number)
    for _ in range(50):
        next(loader)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 3


def test_interrupt_shows_no_traceback_of_workers(tmp_path):
    path = make_zip(tmp_path / "a.zip", some_files(5))
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from training.dataset import ImageFolderDataset
from training.data.loader import BatchLoader, TrainingOrder
if __name__ == "__main__":
    dataset = ImageFolderDataset({str(path)!r})
    loader = BatchLoader(dataset, order=TrainingOrder(5, 0), batch_size=2, num_workers=2)
    try:
        if sys.argv[1] == "later":
            next(loader)
        print("ready", flush=True)
        while True:
            next(loader)
    except KeyboardInterrupt:
        loader.close()
        print("interrupted", flush=True)
""")
    for when in ("at once", "later"):
        process = subprocess.Popen([sys.executable, script, when], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C does: to every process of the group.
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "interrupted\n"), err
        assert err == ""


def test_readers_are_small_and_do_not_import_torch(dataset):
    with BatchLoader(dataset, order=TrainingOrder(14, 0), batch_size=2, num_workers=1) as loader:
        next(loader)
        process = psutil.Process(loader._pool.processes[0].pid)
        assert process.memory_info().rss < 100e6
        assert not any("torch" in part.path for part in process.memory_maps())


def test_killed_worker_is_told_in_one_line(dataset):
    loader = BatchLoader(dataset, order=TrainingOrder(14, 0), batch_size=2, num_workers=2)
    next(loader)
    os.kill(loader._pool.processes[0].pid, signal.SIGKILL)
    with pytest.raises(UserError) as e:
        while True:
            next(loader)
    assert_user_error(e, "was killed", "--workers")
    with pytest.raises(StopIteration):
        next(loader)


def test_close_is_quick_and_leaves_no_process(dataset):
    loader = BatchLoader(dataset, order=TrainingOrder(14, 0), batch_size=2, num_workers=2)
    processes = [psutil.Process(process.pid) for process in loader._pool.processes]
    assert processes
    start = time.monotonic()
    loader.close()  # While they are starting.
    loader.close()
    assert time.monotonic() - start < 3
    assert not any(process.is_running() for process in processes)


def test_large_batches_go_through_in_parts(tmp_path):
    """Each reader holds 4 MiB of pixels at most: batches of 24 images of 256x256 are written in two parts."""
    dataset = ImageFolderDataset(make_zip(tmp_path / "a.zip", some_files(3, side=256)))
    with BatchLoader(dataset, order=TrainingOrder(3, 0), batch_size=24, num_workers=1) as loader:
        batches = [next(loader) for _ in range(3)]
    order = TrainingOrder(3, 0)
    for k in range(72):
        np.testing.assert_array_equal(batches[k // 24].images[k % 24], dataset[order.take(k, 1)[0]][0])
