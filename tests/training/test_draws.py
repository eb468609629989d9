"""Parts of a batch: whatever number of images is computed at once, the same is learnt."""

import numpy as np
import pytest
import torch

from training import draws
from training.build import build_networks
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.loss import StyleGAN2Loss
from training.phases import Phase, build_phases
from training.tasks import build_tasks
from training.training_loop import Trainer

SHARE, UNIT, GROUP = 16, 8, 4   # Two units of two groups each.


def divide(at_once, share=SHARE):
    return draws.Division(share, at_once=at_once, unit=UNIT, group=GROUP, device=torch.device("cpu"))


def groups_of(index):
    """The sets of images that share a minibatch deviation, in a part in this order."""
    count = len(index) // GROUP
    return {frozenset(index[k::count].tolist()) for k in range(count)}


@pytest.mark.parametrize("at_once", [4, 8, 16])
def test_groups_are_those_of_the_units(at_once):
    parts = divide(at_once).parts
    assert sorted(np.concatenate([part.positions for part in parts])) == list(range(SHARE))
    alone = [groups_of(np.arange(first, first + UNIT)) for first in (0, UNIT)]
    assert set().union(*(groups_of(part.positions) for part in parts)) == set().union(*alone)


def test_units_computed_one_by_one_keep_their_order():
    assert [part.positions.tolist() for part in divide(UNIT).parts] == [list(range(8)), list(range(8, 16))]
    assert all(part.units is None for part in divide(UNIT).parts)


def test_order_of_units():
    (part,) = divide(SHARE).parts
    assert part.positions[part.units.order].tolist() == list(range(SHARE))
    assert part.units.number.tolist() == (part.positions // UNIT).tolist()


def test_halving_ends_at_a_group():
    division = divide(16)
    assert [division.halve() for _ in range(3)] == [True, True, False]
    assert division.at_once == GROUP and len(division.parts) == 4


@pytest.fixture(scope="module")
def networks():
    said = dict(method="glead", aug="noaug", batch=SHARE, batch_gpu=UNIT, mbstd_group=GROUP, cbase=128, cmax=8,
                fp32=True, map_depth=2, perceptual="random-alex")
    config = resolve(Options(**said), DatasetConfig(path="d", resolution=32), device="cpu")
    torch.manual_seed(0)
    G, D = (net.train().requires_grad_(False) for net in build_networks(config))
    real_tasks, fake_tasks = build_tasks(config, G)
    return config, G, D, real_tasks, fake_tasks, torch.randn(SHARE, 3, 32, 32).clamp(-1, 1)


def gradients(networks, at_once, monkeypatch):
    """By phase. Noise is left out, and the direction of path length is always the same: these are drawn by part."""
    config, G, D, real_tasks, fake_tasks, images = networks
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    loss_config = resolve(Options(gamma=1.0), config.dataset, device="cpu").loss
    loss = StyleGAN2Loss(G, D, config=loss_config.__class__(**{**vars(config.loss), "style_mixing_prob": 0.0}),
                         real_tasks=real_tasks, fake_tasks=fake_tasks)
    division, found = divide(at_once), {}
    for number, phase in enumerate(build_phases(config, loss)):
        phase.opt.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        for rows in division.parts:
            batch = draws.draw_part(rows, images, torch.zeros(SHARE, 0), key=(0, 0, number), unit=UNIT, z_dim=G.z_dim,
                                    dataset=None)
            for term in phase.loss(batch):
                (term / len(division.parts)).backward()
        phase.module.requires_grad_(False)
        found[phase.name] = torch.cat([p.grad.flatten() for name, p in phase.module.named_parameters()
                                       if p.grad is not None and "noise_strength" not in name])
    loss.update_pl_mean()
    return found, loss.pl_mean


def test_gradients_do_not_depend_on_how_many_images_are_computed_at_once(networks, monkeypatch):
    expected, pl_mean = gradients(networks, UNIT, monkeypatch)
    found, found_pl_mean = gradients(networks, SHARE, monkeypatch)
    assert expected.keys() == {"Gmain", "Greg", "Dmain", "Dreg"}
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm(), name
    assert found_pl_mean == pytest.approx(pl_mean.item(), rel=1e-5)
    # Other groups of minibatch deviation give other gradients: the comparison would notice.
    shuffled = draws.Division(SHARE, at_once=SHARE, unit=SHARE, group=GROUP, device=torch.device("cpu"))
    assert groups_of(shuffled.parts[0].positions) != groups_of(divide(SHARE).parts[0].positions)


def test_each_unit_mixes_styles_at_a_layer_of_its_own(networks):
    config, G, D, *_ = networks
    (rows,) = divide(SHARE).parts
    loss = StyleGAN2Loss(G, D, config=config.loss.__class__(**{**vars(config.loss), "style_mixing_prob": 1.0}))
    torch.manual_seed(3)
    z = torch.randn(SHARE, G.z_dim)
    first = G.mapping(z, None, skip_w_avg_update=True)
    same = (loss._map(z, torch.zeros(SHARE, 0), rows.units) == first).all(2)     # [N, num_ws]
    cutoffs = [same[rows.units.number == unit].sum(1) for unit in (0, 1)]
    assert all((c == c[0]).all() and 1 <= c[0] < G.mapping.num_ws for c in cutoffs) and cutoffs[0][0] != cutoffs[1][0]


def test_parts_of_one_unit_draw_different_noise(networks):
    images, noise = networks[-1], []
    for rows in divide(GROUP).parts[:2]:
        batch = draws.draw_part(rows, images, torch.zeros(SHARE, 0), key=(0, 0, 0), unit=UNIT, z_dim=8, dataset=None)
        assert torch.equal(batch.real_img, images[rows.on_device])
        noise.append(torch.randn(4))
    assert not torch.equal(*noise)


def test_out_of_memory_halves_the_parts_and_the_iteration_goes_on(networks, monkeypatch, capsys):
    """A loss that fails for more than 8 images at once: the gradients are those of 8."""
    config, G, *_ = networks
    trainer = object.__new__(Trainer)
    trainer.config = config.__class__(**{**vars(config), "fill_gpu": True})
    trainer.device, trainer.division, trainer.dataset, trainer.G = torch.device("cpu"), divide(SHARE), None, G
    trainer.progress = type("Progress", (), {"nimg": 0})()
    sizes, weight = [], torch.nn.Linear(1, 1, bias=False)
    phase = Phase(name="P", module=weight, opt=torch.optim.SGD(weight.parameters()), loss=lambda batch: loss(batch),
                  interval=1, gain=1)

    def loss(batch):
        sizes.append(len(batch.gen_z))
        if len(batch.gen_z) > UNIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        yield weight(batch.gen_z[:, :1]).mean()

    images = networks[-1]
    assert not trainer._accumulate(0, phase, images, torch.zeros(SHARE, 0))
    assert trainer._accumulate(0, phase, images, torch.zeros(SHARE, 0)) and sizes == [SHARE, UNIT, UNIT]
    assert "out of memory: computing 8 images at once from now on" in capsys.readouterr().err
    trainer.config = config
    sizes.clear()
    trainer.division = divide(SHARE)
    with pytest.raises(torch.OutOfMemoryError):     # --batch-gpu=16 was said
        trainer._accumulate(0, phase, images, torch.zeros(SHARE, 0))
