"""The controller of ADA: its steps against golden numbers, its statistic, and what the loss tells it."""

import dataclasses
import json

import pytest
import torch

from training.ada import AdaController, build_augmentation, current_strength
from training.augment import AugmentPipe
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig


def controller(target=0.6, step=0.01, p=0.5):
    pipe = AugmentPipe(xflip=1)
    pipe.p.fill_(p)
    return AdaController(pipe, target=target, step=step, device=torch.device("cpu"))


def config(**said):
    return resolve(Options(method="stylegan2", **said), DatasetConfig(path="x", resolution=32), device="cpu")


@pytest.mark.parametrize("program", ["sg2", "ggdr", "glead"])
def test_golden_adjustments(shared, program):
    facts = json.loads((shared / f"golden/misc/train_configs_{program}.json").read_text())["loop_facts"]["ada_adjust"]
    for fact in facts:
        base = config(aug="ada", batch=fact["batch"], target=fact["target"])
        augment = dataclasses.replace(base.augment, ada_kimg=fact["ada_kimg"], interval=fact["interval"], p=0.25)
        pipe, ada = build_augmentation(dataclasses.replace(base, augment=augment), torch.device("cpu"))
        positive = round((1 + fact["sign_mean"]) / 2 * 100)
        ada.observe(torch.cat([torch.ones(positive), -torch.ones(100 - positive)]))
        ada.adjust()
        assert current_strength(pipe, ada) == pytest.approx(0.25 + fact["adjust"], abs=1e-7)


def test_p_moves_towards_the_target_and_not_below_zero():
    ada = controller(p=0.015)
    for expected in (0.025, 0.035):
        ada.observe(torch.tensor([3.0, 0.1]))  # both surely real: 1 > 0.6
        ada.adjust()
        assert current_strength(ada.pipe, ada) == pytest.approx(expected)
    for expected in (0.025, 0.015, 0.005, 0, 0):
        ada.observe(torch.tensor([3.0, -0.1]))
        ada.adjust()
        assert current_strength(ada.pipe, ada) == pytest.approx(expected, abs=1e-7)


def test_p_may_exceed_one():
    """As in the published program: the statistic alone bounds it."""
    ada = controller(p=1.0)
    ada.observe(torch.ones(4))
    ada.adjust()
    assert current_strength(ada.pipe, ada) == pytest.approx(1.01)
    ada.pipe(torch.zeros(4, 3, 16, 16))


def test_the_statistic_spans_several_batches_and_starts_anew():
    ada = controller(target=0.5)
    ada.observe(torch.ones([6, 1]))
    ada.observe(-torch.ones([2, 1]))  # mean 0.5, at the target: p stays
    ada.adjust()
    assert current_strength(ada.pipe, ada) == 0.5
    ada.observe(-torch.ones([1, 1]))
    ada.adjust()
    assert current_strength(ada.pipe, ada) == pytest.approx(0.49)
    ada.adjust()  # nothing was seen since
    assert current_strength(ada.pipe, ada) == pytest.approx(0.49)


def test_what_the_configuration_asks_for():
    cpu = torch.device("cpu")
    assert build_augmentation(config(aug="noaug"), cpu) == (None, None)
    pipe, ada = build_augmentation(config(aug="fixed", p=0.3, augpipe="blit"), cpu)
    assert ada is None and float(pipe.p) == pytest.approx(0.3)
    assert (pipe.xflip, pipe.rotate90, pipe.xint, pipe.scale, pipe.brightness) == (1, 1, 1, 0, 0)
    pipe, ada = build_augmentation(config(), cpu)
    assert float(pipe.p) == 0 and ada.target == 0.6
    assert not any(parameter.requires_grad for parameter in pipe.parameters())
