"""The benchmarks of data, metrics and profiles at tiny sizes: both ways that they compare do the same work."""

import itertools

import pytest
import torch

from benchmarks import data, metrics, profile_step
from training.data.dataset import ImageFolderDataset


def test_both_loaders_give_the_same_images_from_every_container(tmp_path):
    paths = data.write_containers(data.draw_files(10, 16), tmp_path)
    batches = {}
    for kind, path in paths.items():
        dataset = ImageFolderDataset(path, use_labels=True)
        assert len(dataset) == 10
        for name, opener in data.OPENERS.items():
            loader = opener(dataset, batch=4, workers=0, pin=False)
            batches[kind, name] = list(itertools.islice(loader, 4))  # beyond the end of an epoch
    for kind in paths:
        for (images, labels), (other_images, other_labels) in zip(batches[kind, "ours"], batches[kind, "DataLoader"]):
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    assert torch.equal(batches["zip", "ours"][0][0], batches["folder", "ours"][0][0])


def test_a_turn_counts_the_work_of_workers(tmp_path):
    dataset = ImageFolderDataset(data.write_containers(data.draw_files(8, 16), tmp_path)["zip"])
    turn = data.time_turn(data.open_ours, dataset, batch=4, workers=1, pin=False, sec=0.3)
    assert turn.first_sec > 0 and turn.img_per_sec > 0 and turn.cpu_us_per_img > turn.host_us_per_img > 0


def test_ours_and_the_plain_way_give_the_same_numbers():
    options = dict(device="cpu", resolution=16, cbase=64, cmax=8, detector=None, features=6, data=None, files=12,
                   batch=4, workers=0)
    with metrics.prepared(**options) as (opts, net):
        work = metrics.stages(opts, net, images=9, neighbours=40, root=8)
        rows = metrics.measure(work, baseline="plain", repeats=1, device="cpu")
    assert len(rows) == 7
    for row in rows:
        assert row["sec"] > 0 and row["plain_sec"] > 0 and float(row["difference"]) < 1e-5, row


def test_overlapping_intervals_count_once():
    assert profile_step.busy_sec([]) == 0
    assert profile_step.busy_sec([(5e6, 6e6), (1e6, 3e6), (2e6, 2.5e6), (2e6, 4e6)]) == pytest.approx(4)
