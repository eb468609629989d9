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
    assert not any(x.requires_grad for _, x in training_stats._reports)


def test_going_on_from_what_is_pending_changes_nothing():
    """Bit by bit, and without pollution by a value that is no number."""
    rng = np.random.RandomState(0)
    iterations = [{"a": rng.randn(5), "b": rng.randn(3), "c": rng.randn()}, {"b": rng.randn(7)},
                  {"a": rng.randn(2), "c": float("nan")}, {"d": 1.0, "a": rng.randn(4)}]
    results = []
    for stop in (None, 2, 3):
        for number, values in enumerate(iterations):
            if number == stop:
                training_stats.load_state_dict(training_stats.state_dict())
            for name, value in values.items():
                training_stats.report(name, torch.as_tensor(value))
            training_stats.flush()
        results.append(training_stats.collect())
    assert str(results[0]) == str(results[1]) == str(results[2])  # NaN differs from itself
    for name in "abd":
        values = np.concatenate([np.ravel(values[name]) for values in iterations if name in values])
        assert results[0][name]["num"] == len(values)
        assert results[0][name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert np.isnan(results[0]["c"]["mean"])


def test_one_process_is_rank_0_of_1():
    assert distributed.rank() == 0 and distributed.world_size() == 1
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(distributed.all_reduce_mean_(x.clone()), x)
    assert torch.equal(distributed.all_reduce_sum_(x.clone()), x)


def test_hosts_agree_before_one_waits_for_its_device(monkeypatch):
    """A device that waits for a process that is lost would never come to the end, nor would its host."""
    order, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(distributed, "any_rank", lambda flag: order.append("hosts"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: order.append("device") or cpu(x))
    training_stats.report("a", torch.ones(3))
    assert training_stats.collect()["a"]["num"] == 3
    assert order == ["hosts", "device"]


def test_all_reports_of_tensors_are_of_one_type():
    """Tensors of several types are joined one by one."""
    training_stats.report("a", torch.ones(3))
    training_stats.report("b", torch.tensor(5))
    training_stats.report("c", torch.tensor([True, False]))
    assert {x.dtype for _, x in training_stats._reports} == {torch.float32}
    stats = training_stats.collect()
    assert stats["b"] == dict(num=1, mean=5, std=0) and stats["c"]["mean"] == 0.5
