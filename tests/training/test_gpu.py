"""Training on a GPU does what it does on the CPU. (The same on the CPU alone: GLEAD_TEST_DEVICE=cpu.)"""

import dataclasses
import os

import pytest
import torch

from benchmarks.soak import small_config
from torch_utils import training_stats
from torch_utils.state import capture
from training.runs.training_state import list_states, read_state
from training.training_loop import Trainer

DEVICE = os.environ.get("GLEAD_TEST_DEVICE", "cuda")    # "cpu" tries out the tests themselves
pytestmark = [pytest.mark.gpu] * (DEVICE != "cpu")
METHODS = ["stylegan2", "ggdr", "glead", "glead+ggdr"]


@pytest.fixture(autouse=True)
def same_draws(monkeypatch, small_grids):
    """All random numbers come from the host's generator; nothing is written but training states."""
    randn = torch.randn

    def on_host(*size, device=None, **kwargs):
        return randn(*size, **kwargs).to(device)

    monkeypatch.setattr(torch, "randn", on_host)
    monkeypatch.setattr(torch, "randn_like", lambda x: randn(x.shape, dtype=x.dtype).to(x.device))
    monkeypatch.setattr(Trainer, "_write_snapshot", lambda self: None)
    yield
    training_stats.load_state_dict({})


@pytest.fixture
def make_trainer(tiny_dataset, tmp_path):
    """`make_trainer(device, "--option", ..., resume=None)`; batches of 8 images of 16x16 in two parts."""
    def make(device, *options, resume=None):
        training_stats.load_state_dict({})
        net = ["--reg_loss_real=lpips", "--perceptual=random-vgg"] if "--method=glead" in options[0] else []
        config = small_config(tiny_dataset, "--cbase=512", "--cmax=32", "--batch-gpu=4", *net, *options)
        if config.augment is not None:
            config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, p=0.5))
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        return Trainer(dataclasses.replace(config, device=device, cudnn_benchmark=False), str(run_dir), resume=resume)

    return make


def gradients(trainer):
    """Of each phase of the first iteration, by name, as they reach the optimiser; and the means of all reports."""
    images, labels = next(trainer.loader)
    real_img = images.to(trainer.device).float() / 127.5 - 1
    found = {}
    for index, phase in enumerate(trainer.phases):
        phase.opt.step = lambda: None
        trainer._run_phase(index, phase, real_img, labels.to(trainer.device))
        found[phase.name] = {name: p.grad.double().cpu() for name, p in phase.module.named_parameters()
                             if p.grad is not None}
    assert int(trainer.guard.end_iteration()) == 0
    trainer.close()
    return found, {name: stat["mean"] for name, stat in training_stats.collect().items()}


@pytest.mark.parametrize("aug", ["noaug", "ada"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_losses_are_those_of_the_cpu(make_trainer, method, aug):
    options = [f"--method={method}", f"--aug={aug}", "--fp32=true"]
    expected, expected_reports = gradients(make_trainer("cpu", *options))
    actual, reports = gradients(make_trainer(DEVICE, *options))
    assert list(expected) == ["Gmain", "Greg", "Dmain", "Dreg"]
    for phase, grads in expected.items():
        largest = max(grad.norm() for grad in grads.values())
        assert actual[phase].keys() == grads.keys() and largest > 0
        for name, grad in grads.items():
            error = (actual[phase][name] - grad).norm()
            assert error <= 1e-2 * grad.norm() + 1e-4 * largest, f"{phase} {name}: {error / grad.norm():.2g}"
    assert reports == pytest.approx(expected_reports, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("nhwc", ["false", "true"])
def test_half_precision_is_close_in_either_layout(make_trainer, nhwc):
    """The direction of each phase's gradient: its cosine with that of float32 is above 0.97; losses, 2 % or 0.02."""
    options = ["--method=glead+ggdr", "--aug=noaug"]
    expected, expected_reports = gradients(make_trainer(DEVICE, *options, "--fp32=true"))
    actual, reports = gradients(make_trainer(DEVICE, *options, "--fp32=false", f"--nhwc={nhwc}"))
    for phase, grads in expected.items():
        one, other = (torch.cat([found[name].flatten() for name in grads]) for found in (grads, actual[phase]))
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.97, phase
        assert float(other.norm()) == pytest.approx(float(one.norm()), rel=0.1)
    signs = {name for name in reports if "signs" in name}   # one of these may turn
    assert ({name: value for name, value in reports.items() if name not in signs}
            == pytest.approx({k: v for k, v in expected_reports.items() if k not in signs}, rel=2e-2, abs=2e-2))


@pytest.mark.parametrize("first, second", [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_states_go_from_device_to_device(make_trainer, first, second):
    options = ["--method=glead", "--aug=ada", "--nhwc=true"]
    trainer = make_trainer(first, *options)
    for _ in range(4):
        trainer.step(trainer.next_batch())
    trainer._save_state()
    trainer.step(trainer.next_batch())  # changes what is still being copied
    p = float(trainer.augment_pipe.p)
    trainer.close()
    state = read_state(list_states(trainer.run_dir)[0].path)
    assert state["progress"]["iteration"] == 4 and 0.5 != float(state["networks"]["augment_pipe"]["p"]) == p
    resumed = make_trainer(second, *options, resume="newest")
    again = capture(resumed.parts())
    assert same(state["networks"], again["networks"]) and same(state["optimizers"], again["optimizers"])
    assert same({k: state[k] for k in ("loss", "ada")}, {k: again[k] for k in ("loss", "ada")})
    before = resumed.G.mapping.fc0.weight.clone()
    resumed.step(resumed.next_batch())
    assert all(p.isfinite().all() for p in (*resumed.G.parameters(), *resumed.D.parameters()))
    assert (resumed.G.mapping.fc0.weight != before).any()
    resumed.close()


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a.cpu(), b.cpu()) and a.stride() == b.stride()


def test_runs_repeat(make_trainer):
    """Up to the order of summation: weights differ by a small part of what training has changed."""
    ends = []
    for _ in range(2):
        trainer = make_trainer(DEVICE, "--method=stylegan2", "--aug=ada", "--fp32=true")
        start = torch.cat([p.flatten() for p in trainer.G.parameters()])
        for _ in range(3):
            trainer.step(trainer.next_batch())
        ends.append(torch.cat([p.flatten() for p in trainer.G.parameters()]))
        trainer.close()
    assert (ends[0] - start).norm() > 0
    assert (ends[0] - ends[1]).norm() < 0.1 * (ends[0] - start).norm()
