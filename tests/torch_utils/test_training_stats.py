"""Statistics: counts, means and deviations over whatever was reported."""

import numpy as np
import pytest
import torch

from torch_utils import distributed, training_stats


@pytest.fixture(autouse=True)
def fresh():
    training_stats.collect()


def test_moments_of_all_that_was_reported():
    rng = np.random.RandomState(0)
    parts = [rng.randn(5, 2), rng.randn(3), rng.randn()]
    training_stats.report("a", torch.tensor(parts[0], dtype=torch.float32))
    training_stats.report("a", parts[1])
    training_stats.report("a", float(parts[2]))
    training_stats.report("b", torch.tensor([1, -1, 1, 1]))
    stats = training_stats.collect()
    values = np.concatenate([np.ravel(p) for p in parts])
    assert list(stats) == ["a", "b"]
    assert stats["a"]["num"] == 14
    assert stats["a"]["mean"] == pytest.approx(values.mean(), abs=1e-7)
    assert stats["a"]["std"] == pytest.approx(values.std(), abs=1e-6)
    assert stats["b"] == dict(num=4, mean=0.5, std=pytest.approx(0.75**0.5))


def test_collecting_starts_anew():
    training_stats.report("a", 1)
    training_stats.collect()
    assert training_stats.collect() == {}
    training_stats.report("a", torch.zeros([0]))
    assert training_stats.collect() == {}


def test_report_gives_the_value_back_and_keeps_no_graph():
    x = torch.ones([2], requires_grad=True)
    y = x * 2
    assert training_stats.report("a", y) is y
    assert not any(m.requires_grad for m in training_stats._moments.values())


def test_one_process_is_rank_0_of_1():
    assert distributed.rank() == 0 and distributed.world_size() == 1
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(distributed.all_reduce_mean_(x.clone()), x)
    assert torch.equal(distributed.all_reduce_sum_(x.clone()), x)
