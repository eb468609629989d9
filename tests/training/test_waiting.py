"""Within an iteration the host never waits for the device, nor do copies between them hold it up."""

import dataclasses

import pytest
import torch
from torch.torch_version import TorchVersion as Version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.soak import small_config
from torch_utils import training_stats
from training.training_loop import Trainer

aten = torch.ops.aten
gpu = pytest.param("cuda", marks=pytest.mark.gpu)


class NoWaiting(TorchDispatchMode):
    """Fails at copies that the host would wait for. The device is a GPU, or "meta", which has no numbers that the host
    could read; there, page-locked memory is but remembered."""

    def __init__(self):
        super().__init__()
        self.pinned = []
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.count += 1
        if not torch.cuda.is_initialized() and func in (aten._pin_memory.default, aten.is_pinned.default):
            return self.pin(args[0]) if func is aten._pin_memory.default else self.is_pinned(args[0])
        if func in (aten._to_copy.default, aten.copy_.default):
            target, source = (args[0], args[1]) if func is aten.copy_.default else (None, args[0])
            to = kwargs.get("device") or source.device if target is None else target.device
            if torch.device(to).type != source.device.type:
                assert kwargs.get("non_blocking") or args[2:3] == (True,), f"{func} waits for a copy"
                host = target if source.device.type != "cpu" else source
                assert self.is_pinned(host) or host.numel() == 0 or target is host and source.is_meta, "pageable memory"
                if source.is_meta:
                    return target.zero_()
        else:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            assert func is not aten.lift_fresh.default or args[0].device.type == "cpu", "numbers become a tensor there"
            assert len({x.device.type for x in tensors if x.ndim > 0}) <= 1, f"{func} copies tensors of the host"
        return func(*args, **kwargs)

    def pin(self, tensor):
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def is_pinned(self, tensor):
        return tensor.is_pinned() or any(tensor.data_ptr() == other.data_ptr() for other in self.pinned)


unseen = pytest.mark.skipif(Version(torch.__version__) < Version("2.15"), reason="this PyTorch makes it unseen")


@pytest.mark.parametrize("read", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: x.cpu(), pytest.param(lambda x: x + torch.tensor([1.0], device=x.device), marks=unseen),
    pytest.param(lambda x: x[[0, 1]], marks=unseen), lambda x: x[torch.tensor([0])],
    lambda x: x + torch.ones(3).to(x.device),
    lambda x: x + torch.ones(3).to(x.device, non_blocking=True), lambda x: torch.empty(4, 3).copy_(x),
])  # fmt: skip
def test_what_waits_is_seen(read):
    with pytest.raises((AssertionError, RuntimeError)), NoWaiting():
        read(torch.zeros(4, 3, device="meta"))


@pytest.fixture
def make_trainer(monkeypatch, tmp_path):
    """Trainers that write nothing. Those on "meta" believe that memory can be page-locked; Adam is another one there
    than on GPUs, and is left out."""
    def make(config):
        if config.device == "meta":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        trainer = Trainer(config, str(tmp_path))
        if config.device == "meta":
            for phase in trainer.phases:
                phase.opt.step = lambda: None
        return trainer

    monkeypatch.setattr(Trainer, "_start_logs", lambda self, first_start: None)
    yield make
    training_stats.load_state_dict({})


@pytest.mark.parametrize("device", ["meta", gpu])
@pytest.mark.parametrize("method, aug",
                         [("stylegan2", "ada"), ("ggdr", "ada"), ("glead", "ada"), ("glead+ggdr", "noaug")])
def test_no_iteration_waits(tiny_dataset, make_trainer, device, method, aug):
    config = small_config(tiny_dataset, f"--method={method}", f"--aug={aug}",
                          *["--reg_loss_real=lpips", "--perceptual=random-vgg"] * ("glead" in method))
    if aug == "ada":
        config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, p=0.5))
    trainer = make_trainer(dataclasses.replace(config, device=device))
    iterations = [0, 19, 20, 39, 40]    # All phases; signs and the number of bad gradients are sent; and used.
    if device == "cuda":
        run(trainer, iterations * 2)  # searches for algorithms, compiles kernels, sets memory aside
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoWaiting() as ops:
            run(trainer, iterations)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert ops.count > 3000 and trainer.progress.nimg == 8 * len(iterations) * (1 if device == "meta" else 3)


def run(trainer, iterations):
    for iteration in iterations:
        trainer.progress.iteration = iteration
        trainer.step(trainer.next_batch())
