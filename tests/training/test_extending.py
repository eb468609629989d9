"""What a new task, a new adversarial loss, and new networks need: a class each, and no change in the package."""

import copy
import dataclasses
import json

import pytest
import torch

import legacy
from benchmarks.soak import small_config
from convert import main
from dnnlib.util import UserError
from torch_utils.formats import description, onnx_file, state_dict_file
from toy_networks import ToyDiscriminator, ToyGenerator
from training import snapshot
from training.adversarial import ADVERSARIAL, adversarial_loss
from training.build import build_networks
from training.config.rivals import NumberOption
from training.config.schema import TaskConfig, from_json, to_json
from training.networks import Discriminator
from training.runs.training_state import list_states, read_state
from training.tasks import TASKS, build_tasks, task, validate_tasks
from training.training_loop import Trainer, run_training


class LatentRegression:
    """D tells the w of fake images, up to an error of `margin`."""

    kind = "latent"
    distances = ()
    compared = "latents"
    options = {"margin": NumberOption(default=0.0, low=0, high=1)}
    decodes = True
    states = ()

    def __init__(self, weight, margin):
        self.weight, self.margin = weight, margin

    @classmethod
    def from_config(cls, task, context):
        return cls(task.weight, context.options["margin"])

    @staticmethod
    def describe(task, config):
        return f"D tells w, weight {task.weight:g}"

    def loss(self, out, shown):
        return ((out.w - shown.ws[:, 0]).abs() - self.margin).relu().square().mean(1)


class LeastSquares:
    """LSGAN (Mao et al., ICCV 2017), on pairs and with R1 and R2, which it does without."""

    kind = "squares"
    paired = True
    penalties = ("r1", "r2")

    def g(self, fake, real):
        return (fake - 1).square() + real

    def d_fake(self, fake):
        return fake.square()

    def d_real(self, real, fake):
        return (real - 1).square()


@pytest.fixture
def extended(monkeypatch):
    monkeypatch.setitem(TASKS, "latent", LatentRegression)
    monkeypatch.setitem(ADVERSARIAL, "squares", LeastSquares)


def train(config, run_dir):
    """Train for two iterations at once, and with an interruption between them; gives the last states."""
    half = dataclasses.replace(config, total_kimg=config.total_kimg / 2)
    states = []
    for name, parts in (("whole", [(config, None)]), ("parts", [(half, None), (config, "newest")])):
        (run_dir / name).mkdir()
        for part, resume in parts:
            run_training(part, str(run_dir / name), resume=resume)
        states.append(read_state(list_states(run_dir / name)[0].path))
    return states


def assert_same(whole, parts):
    for part in ("networks", "optimizers"):
        torch.testing.assert_close(whole[part], parts[part], rtol=0, atol=0)


def test_a_task_and_a_loss_are_a_class_each(extended, small_grids, tiny_dataset, tmp_path):
    config = small_config(tiny_dataset, "--method=glead", "--kimg=0.016", "--batch=8", "--aug=noaug")
    fake_task = TaskConfig(kind="latent", weight=2.0, options={"margin": 0.1})
    loss = dataclasses.replace(config.loss, adversarial="squares", fake_task=fake_task)
    config = dataclasses.replace(config, loss=loss)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    ((_,), (given,)) = build_tasks(config, build_networks(config)[0])
    assert given.margin == 0.1 and "options" not in to_json(config)["loss"]["real_task"]
    whole, parts = train(config, tmp_path)
    assert whole["progress"]["nimg"] == 16
    assert_same(whole, parts)
    statistics = (tmp_path / "whole" / "stats.jsonl").read_text()
    for name in ("Loss/D/fake_latent", "Loss/D/real_reconstruction", "Loss/r2_penalty"):
        assert f'"{name}": {{"num": ' in statistics


def test_unknown_tasks_are_refused(tiny_dataset):
    config = small_config(tiny_dataset)
    config = dataclasses.replace(config, loss=dataclasses.replace(
        config.loss, fake_task=TaskConfig(kind="poetry", weight=1.0)))
    for check in (validate_tasks, lambda config: build_tasks(config, None)):
        with pytest.raises(UserError, match="D has no task 'poetry' on fake images: expected one of feature, reconst"):
            check(config)


@pytest.mark.parametrize("options, problem", [
    ({"slack": 1}, "D's task 'latent' on fake images has no option 'slack': expected margin"),
    ({"margin": 2}, "option margin of D's task 'latent' on fake images is 2, expected a number from 0 to 1"),
    ({"margin": "x"}, "option margin of D's task 'latent' on fake images is 'x', expected a number from 0 to 1"),
])
def test_options_of_a_task_are_checked(extended, tiny_dataset, options, problem):
    config = small_config(tiny_dataset)
    task = TaskConfig(kind="latent", weight=1.0, options=options)
    with pytest.raises(UserError) as caught:
        validate_tasks(dataclasses.replace(config, loss=dataclasses.replace(config.loss, fake_task=task)))
    assert str(caught.value) == problem


def test_decorators_register():
    names = []
    try:
        for register, registry in ((task, TASKS), (adversarial_loss, ADVERSARIAL)):
            cls = register(type("New", (), {"kind": "new"}))
            names.append(registry)
            assert registry["new"] is cls
    finally:
        for registry in names:
            del registry["new"]


def test_networks_of_another_kind_train(small_grids, tiny_dataset, tmp_path):
    """They share nothing with StyleGAN2 but what `training.build` asks for."""
    config = small_config(tiny_dataset, "--method=stylegan2", "--kimg=0.016", "--batch=8", "--aug=noaug")
    config = dataclasses.replace(
        config,
        G=dataclasses.replace(config.G, class_name="toy_networks.ToyGenerator"),
        D=dataclasses.replace(config.D, class_name="toy_networks.ToyDiscriminator"),
    )
    G, D = build_networks(config)
    assert type(G) is ToyGenerator and type(D) is ToyDiscriminator
    whole, parts = train(config, tmp_path)
    assert_same(whole, parts)
    start = Trainer(dataclasses.replace(config, total_kimg=0.008), str(_new(tmp_path / "start")))
    try:
        moved = [name for name, value in start.G.state_dict().items()
                 if not torch.equal(value, whole["networks"]["G"][name])]
    finally:
        start.close()
    assert "layers.weight" in moved
    other = dataclasses.replace(config, G=dataclasses.replace(config.G, class_name="os.Generator"))
    with pytest.raises(UserError, match="no network class os.Generator"):
        build_networks(other)


    check_files(tmp_path / "whole" / "network-snapshot-000000_016.pkl", whole["networks"]["G_ema"], config, tmp_path)


def check_files(pkl, weights, config, folder):
    """General formats hold them, another run starts from them, and formats of StyleGAN2 refuse them in one line."""
    networks = legacy.load_network_pkl(pkl, trust=True)    # their layers are PyTorch's own, which pickles import
    out = folder / "toy.safetensors"
    main([f"--network={pkl}", f"--out={out}", "--trust-pickle"], standalone_mode=False)
    again = legacy.load_network_pkl(out)
    G, D = build_networks(config)
    snapshot.start_from(str(out), G, D, copy.deepcopy(G))
    for net in (networks["G_ema"], again["G_ema"], again["G"], D):
        assert type(net).__name__.startswith("Toy") and type(net).__module__ == "toy_networks"
    torch.testing.assert_close(dict(again["G_ema"].state_dict()), dict(weights), rtol=0, atol=0)
    torch.testing.assert_close(D.state_dict(), again["D"].state_dict(), rtol=0, atol=0)
    for file_format in (onnx_file, state_dict_file):
        with pytest.raises(UserError, match="^G_ema is a ToyGenerator.*StyleGAN2.* use .safetensors$"):
            file_format.write(folder / "toy", {"G_ema": networks["G_ema"]})
    assert not (folder / "toy").exists()
    with pytest.raises(UserError, match="G_ema is of class Discriminator, expected Generator"):
        description.check_class(Discriminator, "G_ema")


def _new(path):
    path.mkdir()
    return path
