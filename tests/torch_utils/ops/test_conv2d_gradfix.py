"""Convolutions with their own second derivatives, against PyTorch's, numerical derivatives, and a trace of kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils.ops import conv2d_gradfix
from training.config.schema import LossConfig
from training.loss import Batch, StyleGAN2Loss
from training.networks import Discriminator, Generator

CASES = {  # function, input, weight, options
    "plain":      ("conv2d", [1, 2, 5, 4], [2, 2, 3, 3], dict(padding=1)),
    "pointwise":  ("conv2d", [2, 3, 4, 4], [2, 3, 1, 1], {}),
    "stride":     ("conv2d", [1, 4, 6, 5], [2, 2, 3, 3], dict(stride=2, padding=(0, 1), groups=2)),
    "dilation":   ("conv2d", [1, 2, 6, 6], [2, 2, 2, 3], dict(dilation=2)),
    "transposed": ("conv_transpose2d", [1, 4, 3, 3], [4, 1, 3, 3],
                   dict(stride=2, padding=1, output_padding=(1, 0), groups=2)),
}


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(conv2d_gradfix, "enabled", True)


def tensors(x_shape, w_shape, dtype=torch.float64):
    return torch.randn(x_shape, dtype=dtype).requires_grad_(), torch.randn(w_shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_the_numerical_ones(always, case):
    name, x_shape, w_shape, options = CASES[case]
    x, w = tensors(x_shape, w_shape)

    def fn(x, w):
        return getattr(conv2d_gradfix, name)(x, w, **options)

    assert type(fn(x, w).grad_fn).__name__ == "_ConvolutionBackward"
    assert torch.autograd.gradcheck(fn, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, (x, w), fast_mode=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_third_derivatives_bias_and_formats_as_in_pytorch(always, case, channels_last):
    name, x_shape, w_shape, options = CASES[case]
    options = {**options, "output_padding": 0} if name == "conv_transpose2d" else options   # PyTorch fails otherwise
    x, w = tensors(x_shape, w_shape)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    results = []
    for fn in (getattr(conv2d_gradfix, name), getattr(F, name)):
        y = fn(x, w, **options)
        bias = torch.arange(y.shape[1], dtype=y.dtype).requires_grad_()
        y = fn(x, w, bias, **options)
        gx, gw = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        hx, hw = torch.autograd.grad((gx.square().sum() + (gw**3).sum()), (x, w), create_graph=True)
        results.append([y, gx, gw, hx, hw, *torch.autograd.grad(hx.square().sum() + hw.sum(), (x, w, bias))])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Trace(TorchDispatchMode):
    """Kernel sizes of all convolutions that run, and which gradients backward passes compute."""

    def __init__(self):
        super().__init__()
        self.kernels, self.masks = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.kernels.append(max(args[1].shape[2:]))
        elif func is torch.ops.aten.convolution_backward.default:
            self.kernels.append(max(args[2].shape[2:]))
            self.masks.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


def small_loss():
    torch.manual_seed(0)
    kwargs = dict(channel_base=64, channel_max=8, num_fp16_res=0)
    G = Generator(8, 0, 8, 16, 3, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=kwargs).requires_grad_(False)
    D = Discriminator(0, 16, 3, **kwargs).requires_grad_(False)
    c = torch.zeros([4, 0])
    batch = Batch(torch.rand([4, 3, 16, 16]), c, torch.randn([4, 8]), c)
    return StyleGAN2Loss(G, D, config=LossConfig(r1_gamma=1, style_mixing_prob=0)), batch


def trace(loss, module, phase, batch):
    module.requires_grad_(True).zero_grad()
    torch.manual_seed(1)
    with Trace() as found:
        for term in getattr(loss, phase)(batch):
            term.backward()
    module.requires_grad_(False)
    return found, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("phase", ["d_penalty", "g_path_length"])
def test_regularisers_need_no_kernel_as_large_as_the_image(monkeypatch, phase):
    loss, batch = small_loss()
    module = loss.D if phase == "d_penalty" else loss.G
    found, gradients = trace(loss, module, phase, batch)
    assert max(found.kernels) <= 4
    assert not any(all(mask) for mask in found.masks[:len(found.masks) // 3])   # of the first gradient
    monkeypatch.setattr(conv2d_gradfix, "enabled", False)
    theirs, expected = trace(loss, module, phase, batch)
    assert max(theirs.kernels) == 16                                            # as PyTorch does it
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_only_what_is_asked_for_and_both_in_one_call(always):
    x, w = tensors([2, 3, 6, 6], [4, 3, 3, 3])
    with Trace() as found:
        conv2d_gradfix.conv2d(x, w).sum().backward()
        conv2d_gradfix.conv2d(x, w.detach()).sum().backward()
        conv2d_gradfix.conv2d(x.detach(), w).sum().backward()
        y = conv2d_gradfix.conv2d(x, w)
        with conv2d_gradfix.no_weight_gradients():
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        w.grad = None
        g.square().sum().backward()
    assert found.masks[:4] == [(True, True), (True, False), (False, True), (True, False)]
    assert w.grad.abs().sum() > 0   # second derivatives are complete


def test_first_order_phases_run_pytorchs_own():
    x, w = tensors([1, 2, 4, 4], [2, 2, 3, 3])
    assert type(conv2d_gradfix.conv2d(x, w).grad_fn).__name__ == "ConvolutionBackward0"
    with conv2d_gradfix.second_order():
        assert type(conv2d_gradfix.conv2d(x, w).grad_fn).__name__ == "_ConvolutionBackward"
        with torch.no_grad():
            assert conv2d_gradfix.conv2d(x, w).grad_fn is None


def test_autocast_changes_no_type(always):
    x, w = tensors([1, 2, 4, 4], [2, 2, 3, 3], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function in (conv2d_gradfix.conv2d, conv2d_gradfix.conv_transpose2d):
            y = function(x, w)
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            g.square().sum().backward()
            assert y.dtype == g.dtype == torch.float32
            assert torch.equal(y, function(x.detach(), w.detach()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivative_is_accurate(dtype):
    """Of an image that PyTorch's way convolves with itself; with that, bfloat16 on CPUs with AMX lost all digits."""
    x, w = tensors([4, 16, 16, 16], [16, 16, 3, 3], torch.float64)
    v = torch.randn_like(x)
    found = []
    for kind in (torch.float64, dtype):
        a, b = (t.detach().to(kind).to(memory_format=torch.channels_last).requires_grad_() for t in (x, w))
        with conv2d_gradfix.second_order():
            y = conv2d_gradfix.conv2d(a, b, padding=1)
            (g,) = torch.autograd.grad((y * y.detach()).sum(), a, create_graph=True)
        found.append(torch.autograd.grad((g * v.to(kind)).sum(), b)[0].double())
    exact, ours = found
    assert (ours - exact).norm() < 4 * torch.finfo(dtype).eps * exact.norm()


def test_functional_transforms(always):
    x, w = tensors([3, 2, 4, 4], [2, 2, 3, 3])
    x, w = x.detach(), w.detach()

    def energy(x, w):
        return conv2d_gradfix.conv2d(x[None], w, padding=1).square().sum()

    per_image = torch.func.vmap(torch.func.grad(energy, argnums=1), in_dims=(0, None))(x, w)
    for i in range(len(x)):
        torch.testing.assert_close(per_image[i], torch.func.grad(energy, argnums=1)(x[i], w))
