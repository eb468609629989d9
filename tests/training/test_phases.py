"""Lazy regularisation, the moving average, and what happens to gradients on their way to the optimiser."""

import copy
import json

import pytest
import torch

from dnnlib.util import UserError
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig, OptimizerConfig, discriminator_kwargs, generator_kwargs
from training.ema import ema_beta, update_ema
from training.loss import Batch, StyleGAN2Loss
from training.networks import Discriminator, Generator
from training.phases import CHECK_INTERVAL, GradientGuard, build_phases, lazy_optimizer


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
    assert (net[0].weight.grad[1:] == 1).all() and (net[2].weight.grad == 1).all() and (net[2].bias.grad == 0).all()
    assert guard.end_iteration() == 3 and guard.state_dict() == {"streak": 1}
    guard.process(net)
    assert guard.end_iteration() == 0 and guard.state_dict() == {"streak": 0}


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


def test_every_parameter_takes_a_step_in_every_phase():
    """Those that Dreg does not reach (11 of D's 33 in the paper's recipe) by a gradient of 0, as in published programs.

    With beta1 = 0 they stay where they are, and Adam's second moment decays: by the closed form after 16 steps with
    gradients of 1 and one without.
    """
    config = resolve(Options(method="glead", cbase=64, cmax=8),
                     DatasetConfig(path="d", resolution=32), device="cpu")
    G, D = Generator(**generator_kwargs(config)), Discriminator(**discriminator_kwargs(config))
    phases = {phase.name: phase for phase in build_phases(config, StyleGAN2Loss(G, D, config=config.loss))}
    guard, dreg = GradientGuard(torch.device("cpu")), phases["Dreg"]
    for _ in range(16):
        for p in D.parameters():
            p.grad = torch.ones_like(p)
        dreg.opt.step()
    dreg.opt.zero_grad(set_to_none=True)
    data = Batch(torch.randn([4, 3, 32, 32]), torch.zeros([4, 0]), torch.randn([4, 512]), torch.zeros([4, 0]))
    for term in dreg.loss(data):
        term.backward()
    unreached = [name for name, p in D.named_parameters() if p.grad is None]
    assert (len(unreached), len(list(D.parameters()))) == (11, 33)
    before = {name: p.detach().clone() for name, p in D.named_parameters()}
    guard.process(D)
    dreg.opt.step()
    beta2 = lazy_optimizer(config.D_opt, 16).beta2
    for name, p in D.named_parameters():
        state = dreg.opt.state[p]
        assert state["step"] == 17
        if name in unreached:
            assert torch.equal(p, before[name])
            torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(p, beta2 * (1 - beta2**16)))


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
