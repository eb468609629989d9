"""Lazy regularisation, the moving average, and what happens to gradients on their way to the optimiser."""

import copy
import json

import pytest
import torch

from dnnlib.util import UserError
from training.config import OptimizerConfig
from training.ema import ema_beta, update_ema
from training.phases import CHECK_INTERVAL, GradientGuard, lazy_optimizer


@pytest.fixture
def facts(shared):
    return json.loads((shared / "golden/misc/train_configs_glead.json").read_text())["loop_facts"]


@pytest.mark.parametrize("key", ["lazy_G", "lazy_D"])
def test_lazy_optimizer_golden(facts, key):
    fact = facts[key]
    for lr in (0.0025, 0.002):
        ours = lazy_optimizer(OptimizerConfig(lr=lr), fact["reg_interval"])
        assert ours.lr == pytest.approx(fact[f"lr_{str(lr).replace('.', '_')}"], rel=1e-12)
        assert [ours.beta1, ours.beta2] == pytest.approx(fact["betas"], rel=1e-12)
        assert ours.eps == fact["eps"]


def test_ema_beta_golden(facts):
    for fact in facts["ema"]:
        beta = ema_beta(batch_size=fact["batch"], cur_nimg=fact["cur_nimg"], ema_kimg=fact["ema_kimg"],
                        ema_rampup=fact["ema_rampup"])
        assert beta == pytest.approx(fact["beta"], rel=1e-12, abs=1e-300)


def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def test_update_ema_is_a_lerp_of_parameters_and_a_copy_of_buffers():
    net = small_net()
    average = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    net[1].running_mean.fill_(7)
    before = [p.clone() for p in average.parameters()]
    update_ema(average, net, 0.9)
    for old, new, now in zip(before, net.parameters(), average.parameters()):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    assert (average[1].running_mean == 7).all()


def test_half_life_of_the_average():
    """After ema_kimg the weight of the start is one half."""
    beta = ema_beta(batch_size=32, cur_nimg=10**9, ema_kimg=10, ema_rampup=None)
    assert beta ** (10_000 / 32) == pytest.approx(0.5)


def test_guard_replaces_and_counts():
    net, guard = small_net(), GradientGuard(torch.device("cpu"))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[0].weight.grad[0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    net[2].bias.grad = None
    guard.process(net)
    assert net[0].weight.grad[0].tolist() == [0, 1e5, -1e5]
    assert (net[0].weight.grad[1:] == 1).all() and (net[2].weight.grad == 1).all() and net[2].bias.grad is None
    assert guard.end_iteration() == 3 and guard.state() == 1
    guard.process(net)
    assert guard.end_iteration() == 0 and guard.state() == 0


def test_gradients_keep_the_layout_of_their_parameters():
    """Fused optimisers insist on it; values stay where they belong."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    net(torch.randn([2, 3, 5, 5])).square().sum().backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    GradientGuard(torch.device("cpu")).process(net)
    for name, p in net.named_parameters():
        assert p.grad.stride() == p.stride() and torch.equal(p.grad, before[name])


def test_a_check_looks_at_the_streak_of_the_check_before():
    net, guard = small_net(), GradientGuard(torch.device("cpu"))
    for iteration in range(1, 111):
        net[0].weight.grad = torch.full_like(net[0].weight, float("nan"))
        guard.process(net)
        guard.end_iteration()
        if iteration % CHECK_INTERVAL == 0 and iteration < 110:
            guard.check()
    with pytest.raises(UserError, match="non-finite for 100 iterations"):
        guard.check()


def test_guard_leaves_gradients_that_an_optimiser_can_use():
    net, guard = small_net(), GradientGuard(torch.device("cpu"))
    other = copy.deepcopy(net)
    x = torch.randn([5, 3])
    for module in (net, other):
        module(x).square().sum().backward()
    guard.process(net)
    for module in (net, other):
        torch.optim.Adam(module.parameters(), lr=0.1).step()
    for a, b in zip(net.parameters(), other.parameters()):
        assert torch.equal(a, b)
