"""The operations as operators of PyTorch: registration, derivatives, and whole networks on their CUDA kernels."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from tests.torch_utils.ops.operations import all_cases
from torch_utils.ops import bias_act, modconv_epilogue, upfirdn2d
from torch_utils.ops.build import custom_ops
from torch_utils.ops.self_test import compare, self_test
from training.networks import Discriminator, Generator

pytest_plugins = ["tests.torch_utils.ops.emulator"]


def test_operators_are_registered_well():
    x, b = torch.randn([2, 4, 6, 5], requires_grad=True), torch.randn([4], requires_grad=True)
    ref = torch.randn([2, 4, 6, 5], requires_grad=True)
    scale, noise, strength = torch.randn([2, 4], requires_grad=True), torch.randn([2, 1, 6, 5]), torch.randn([])
    ops = torch.ops.glead
    for op, arguments in [
        (ops.bias_act, (x, b, 1, "lrelu", 0.2, 1.4, 0.5)), (ops.bias_act, (x, None, 1, "linear", 0.0, 1.4, -1.0)),
        (ops.bias_act_grad, (x, ref, "lrelu", 0.2, 1.4, 0.5)),
        (ops.upfirdn2d, (x, upfirdn2d.setup_filter([1, 3, 3, 1]), (2, 1), (1, 2), (1, 2, 3, 0), True, 1.5)),
        (ops.modconv_epilogue, (x, scale, noise, strength.requires_grad_(), b, "lrelu", 1.4, 0.5)),
        (ops.modconv_epilogue, (x, None, None, None, None, "linear", 1.4, -1.0)),
        (ops.modconv_epilogue_grad, (x.detach(), ref.detach(), x.detach(), None, noise, "lrelu", 1.4, 0.5)),
    ]:
        opcheck(op.default, arguments)


@pytest.mark.parametrize("noise", [None, torch.randn([2, 1, 3, 4], dtype=torch.float64),
                                   torch.randn([3, 4], dtype=torch.float64)])
@pytest.mark.parametrize("act,clamp", [("lrelu", None), ("lrelu", 0.8), ("linear", 0.8)])
def test_modconv_epilogue_derivatives(noise, act, clamp):
    x, scale, b = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ([2, 3, 3, 4], [2, 3], [3]))
    strength = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def fn(x, scale, strength, b):
        return modconv_epilogue.modconv_epilogue(x, scale, noise, strength, b, act=act, clamp=clamp)

    assert gradcheck(fn, [x, scale, strength, b]) and gradgradcheck(fn, [x, scale, strength, b])
    plain = x * scale[:, :, None, None] + (0 if noise is None else noise * strength)
    torch.testing.assert_close(fn(x, scale, strength, b), bias_act.bias_act(plain, b, act=act, clamp=clamp, impl="ref"))
    only_x = modconv_epilogue.modconv_epilogue(x, act=act, clamp=clamp)
    torch.testing.assert_close(only_x, bias_act.bias_act(x, act=act, clamp=clamp, impl="ref"))


@pytest.mark.parametrize("settings", [dict(act="lrelu", gain=-1.3, clamp=0.8), dict(act="relu", gain=-1.3),
                                      dict(act="lrelu", alpha=-0.3), dict(act="tanh", gain=-0.7)])
def test_derivatives_of_negative_gains_and_slopes(settings):
    x = torch.randn([2, 3, 4, 4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: bias_act.bias_act(x, **settings), [x])
    if "alpha" not in settings and settings["act"] != "tanh":
        epilogue = lambda x, s: modconv_epilogue.modconv_epilogue(x, s, **settings)
        scale = torch.rand([2, 3], dtype=torch.float64, requires_grad=True)
        assert gradcheck(epilogue, [x, scale]) and gradgradcheck(epilogue, [x, scale])


def test_forward_derivatives_are_refused():
    """They would be lost, and be taken for zero."""
    x, f = torch.randn([1, 2, 4, 4]), upfirdn2d.setup_filter([1, 3, 3, 1])
    for fn in (lambda x: bias_act.bias_act(x, act="lrelu"), lambda x: upfirdn2d.upsample2d(x, f),
               modconv_epilogue.modconv_epilogue):
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
            fn(torch.autograd.forward_ad.make_dual(x, x))


def test_sums_over_pixels_exceed_what_half_types_hold():
    x = torch.full([1, 2, 320, 320], 1.0, dtype=torch.float16).to(memory_format=torch.channels_last)
    _, sums = modconv_epilogue._sums(x, x, None, None)
    assert sums.flatten().tolist() == [320.0**2] * 4 + [0.0] * 2


def test_results_may_be_changed_in_place():
    x, f = torch.randn([1, 2, 6, 6], requires_grad=True), upfirdn2d.setup_filter([1, 3, 3, 1])
    for up, down in [(1, 1), (2, 1), (1, 2), (2, 2)]:
        y = upfirdn2d.upfirdn2d(x, f, up=up, down=down, padding=3)
        (expected,) = torch.autograd.grad(y.sum() * 2, x, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(y.mul_(2).sum(), x)[0], expected)


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_compiled_derivatives():
    x, b = torch.randn([2, 4, 6, 6], requires_grad=True), torch.randn([4], requires_grad=True)
    scale, f = torch.rand([2, 4], requires_grad=True), upfirdn2d.setup_filter([1, 3, 3, 1])

    def derivatives(fn):
        return torch.autograd.grad(fn(x, scale, b).square().sum(), [x, scale, b])

    def layers(x, scale, b):
        y = modconv_epilogue.modconv_epilogue(upfirdn2d.upsample2d(x, f), scale, b=b, clamp=1)
        return bias_act.bias_act(y, b, act="lrelu", clamp=1)

    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(derivatives(compiled), derivatives(layers))


def test_any_number_of_dimensions():
    for shape in ([], [3], [2, 3, 4, 2, 2]):
        x = torch.randn(shape)
        torch.testing.assert_close(bias_act.bias_act(x, act="lrelu"), bias_act.bias_act(x, act="lrelu", impl="ref"))


def test_plain_operations_agree_with_their_references():
    """Half types apart: plain operations round more often than kernels."""
    checks = [check for case in all_cases()
              for check in compare(case, torch.device("cpu"), [torch.float32, torch.float64])]
    assert len(checks) > 60 and not [check for check in checks if not check.error <= check.bound]


def test_self_test_takes_standard_kernels_only(cuda_ways, monkeypatch):
    """So that `status` compiles few kernels on a GPU, or none. Here, each operation asks for its kernel in vain."""
    asked = []
    monkeypatch.setattr(custom_ops, "load", lambda kernel, device: asked.append(kernel))
    checks = self_test(torch.device("cpu"))
    assert len(checks) == 20 and all(check.error < 0.05 for check in checks)
    assert set(asked) <= set(custom_ops.standard_kernels())
    assert {kernel.name for kernel in asked} == {"bias_act", "upfirdn2d", "modconv_epilogue", "modconv_epilogue_grad"}
    assert len(set(asked)) <= 40


def test_modconv_epilogue_says_what_it_cannot_do():
    x = torch.randn([1, 2, 3, 3])
    with pytest.raises(ValueError, match="piecewise linear"):
        modconv_epilogue.modconv_epilogue(x, act="tanh")
    for wrong, message in [(dict(scale=torch.ones([2, 2])), r"scale \(2, 2\) does not fit \(1, 2, 3, 3\)"),
                           (dict(b=torch.ones([3])), "b .3,. does not fit"),
                           (dict(noise=torch.ones([3, 4]), strength=torch.ones([])), "noise .3, 4. does not fit"),
                           (dict(noise=torch.ones([3, 3])), "noise needs a strength")]:
        with pytest.raises(ValueError, match=message):
            modconv_epilogue.modconv_epilogue(x, **wrong)
    with pytest.raises(ValueError, match="no derivative in its noise"):
        modconv_epilogue.modconv_epilogue(x.requires_grad_(), noise=torch.zeros([3, 3], requires_grad=True),
                                          strength=torch.ones([]))


def test_kernels_refuse_tensors_of_another_device():
    x, elsewhere = torch.ones([1, 2, 4, 4]), torch.ones([2], device="meta")
    for call in (lambda: bias_act._cuda(x, elsewhere, 1, "lrelu", 0.2, 1.4, -1.0),
                 lambda: upfirdn2d._cuda(x, elsewhere, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0),
                 lambda: modconv_epilogue._cuda(x, None, None, None, elsewhere, "lrelu", 1.4, -1.0)):
        with pytest.raises(ValueError, match="one device, got cpu and meta"):
            call()


@pytest.fixture
def cuda_ways():
    """Tensors of the CPU take the operators' CUDA way."""
    library = torch.library.Library("glead", "IMPL")
    for name, module in [("bias_act", bias_act), ("upfirdn2d", upfirdn2d), ("modconv_epilogue", modconv_epilogue)]:
        library.impl(name, module._cuda, "CPU", allow_override=True)
    for name, module in [("bias_act_grad", bias_act), ("modconv_epilogue_grad", modconv_epilogue)]:
        library.impl(name, module._cuda_grad, "CPU", allow_override=True)
    yield
    del library


@pytest.fixture
def on_kernels(cuda_ways, emulator):
    return emulator


def derivatives() -> list[torch.Tensor]:
    """Of small networks: image, logits, first derivatives, path length's and R1's."""
    torch.manual_seed(0)
    G = Generator(z_dim=4, c_dim=0, w_dim=4, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=1),
                  synthesis_kwargs=dict(channel_base=128, channel_max=8))
    D = Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    ws = G.mapping(torch.randn([4, 4]), None)
    img = G.synthesis(ws, noise_mode="const", fused_modconv=False)
    logits = D(img)
    first = torch.autograd.grad(torch.nn.functional.softplus(-logits).mean(), [*G.synthesis.parameters(),
                                *D.parameters()], retain_graph=True, allow_unused=True)
    (path,) = torch.autograd.grad((img * torch.randn_like(img)).sum(), ws, create_graph=True)
    second = torch.autograd.grad(path.square().sum(), G.synthesis.parameters(), retain_graph=True, allow_unused=True)
    real = torch.randn_like(img).requires_grad_()
    (slope,) = torch.autograd.grad(D(real).sum(), real, create_graph=True)
    third = torch.autograd.grad(slope.square().sum(), D.parameters(), allow_unused=True)
    return [img, logits, *(g for g in (*first, *second, *third) if g is not None)]


def test_networks_on_the_kernels_equal_plain_ones(request):
    expected = derivatives()
    emulator = request.getfixturevalue("on_kernels")
    actual = derivatives()
    assert len(actual) == len(expected) > 50
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    assert {k.name for k in emulator.launched} >= {"bias_act", "upfirdn2d"}
