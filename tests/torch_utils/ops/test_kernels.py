"""CUDA kernels, emulated on the CPU, against plain operations."""

import itertools

import pytest
import torch

from torch_utils.ops import bias_act, kernels, modconv_epilogue, upfirdn2d

pytest_plugins = ["tests.torch_utils.ops.emulator"]
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6, torch.float64: 1e-14}


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype and actual.shape == expected.shape
    bound = BOUNDS[dtype] * expected.abs().max().item()
    assert (actual.double() - expected.double()).abs().max().item() <= bound


def activations():
    """Every type, kind of bias, memory format and odd size with some of the activations."""
    dtypes, acts = itertools.cycle(BOUNDS), itertools.cycle(["linear", "relu", "lrelu"])
    shapes = [((2, 8, 4, 4), False), ((2, 16, 3, 5), True), ((2, 3, 3, 5), True), ((3, 24), False),
              ((2, 3, 5, 7), False), ((1, 5, 1, 1), False), ((300, 8, 2, 2), False)]
    for i in range(8):
        shape, channels_last = shapes[i % len(shapes)]
        yield pytest.param(next(acts), next(dtypes), shape, channels_last, i % 4 != 3, 0.7 if i % 2 else None)


@pytest.mark.parametrize("act,dtype,shape,channels_last,has_bias,clamp", list(activations()))
def test_bias_act(emulator, act, dtype, shape, channels_last, has_bias, clamp):
    x, dy = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)  # dy comes in another format
    b = torch.randn(shape[1], dtype=torch.float64).to(dtype) if has_bias else None
    settings = (act, 0.3, 1.7, -1.0 if clamp is None else clamp)
    y = bias_act._cuda(x, b, 1, *settings)
    assert_close(y, bias_act._native(x.double(), None if b is None else b.double(), 1, *settings), dtype)
    held = settings[:-1] + ((-1.0 if clamp is None else torch.tensor(clamp, dtype=dtype).item()),)
    assert_close(bias_act._cuda_grad(dy, y, *settings), bias_act._native_grad(dy.double(), y.double(), *held), dtype)
    assert len(emulator.launched) == 2


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_what_is_not_a_number_stays_so(emulator, act):
    """Where training goes astray, limits must not hide it."""
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 9, -9, 0.5, -0.5, 0]).reshape(1, 8, 1, 1)
    dy, settings = torch.ones_like(x), (act, 0.2, 1.5, 3.0)
    y = bias_act._cuda(x, None, 1, *settings)
    assert y.isnan().flatten().tolist() == [True] + [False] * 7
    assert torch.equal(y[:, 1:], bias_act._native(x, None, 1, *settings)[:, 1:])
    torch.testing.assert_close(y, bias_act.bias_act(x, None, 1, *settings, impl="ref"), equal_nan=True)
    known = ~y.isnan()  # elsewhere PyTorch's own derivatives on CPUs depend on the place in memory
    dx = bias_act._cuda_grad(dy, y, *settings)
    torch.testing.assert_close(dx[known], bias_act._native_grad(dy, y, *settings)[known])

    x = x.reshape(1, 1, 2, 4).repeat(1, 2, 1, 1)
    settings = (act, 1.5, 3.0)
    y, plain = (fn(x, None, None, None, None, *settings) for fn in (modconv_epilogue._cuda, modconv_epilogue._native))
    torch.testing.assert_close(y, plain, equal_nan=True)
    dy, known = torch.ones_like(x), ~y.isnan()
    dx, _ = modconv_epilogue._cuda_grad(dy, y, x, None, None, *settings)
    torch.testing.assert_close(dx[known], modconv_epilogue._native_grad(dy, y, x, None, None, *settings)[0][known])
    assert len(emulator.launched) == 4


def test_the_stride_of_a_single_channel_means_nothing(emulator):
    x = torch.randn([8, 16])[:, :3].t()[:, :1]
    assert x.is_contiguous() and x.stride(1) == 16
    b = torch.randn([1])
    assert_close(bias_act._cuda(x, b, 1, "lrelu", 0.2, 1.0, -1.0), bias_act._native(x, b, 1, "lrelu", 0.2, 1.0, -1.0),
                 torch.float32)
    assert len(emulator.launched) == 1


def test_some_channels_of_an_image_stay_channels_last(emulator):
    whole = torch.randn([2, 12, 5, 6]).to(memory_format=torch.channels_last)
    x, b, f = whole[:, 2:10], torch.randn([8]), torch.ones([1, 1])
    assert kernels.dense(x) is not x
    for kernel, plain in [
        (bias_act._cuda(x, b, 1, "lrelu", 0.2, 1.0, -1.0), bias_act._native(x, b, 1, "lrelu", 0.2, 1.0, -1.0)),
        (upfirdn2d._cuda(x, f, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0), x),
        (modconv_epilogue._cuda(x, None, None, None, b, "lrelu", 1.0, -1.0),
         modconv_epilogue._native(x, None, None, None, b, "lrelu", 1.0, -1.0)),
    ]:
        assert_close(kernel, plain, torch.float32)
        assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert len(emulator.launched) == 3
    assert kernels.dense(torch.randn([1, 1, 1, 1]).expand(2, 3, 4, 5)).is_contiguous()


def firs():
    dtypes = itertools.cycle(BOUNDS)
    cases = [  # taps (height, width), up, down, padding, shape, channels last
        ((4, 4), 1, 1, (2, 1, 2, 1), (2, 3, 16, 24), False), ((4, 4), 1, 1, (1, 2, 1, 2), (1, 16, 9, 7), True),
        ((4, 4), 2, 1, (2, 1, 2, 1), (2, 3, 8, 16), False), ((4, 4), 2, 1, (2, 1, 2, 1), (1, 8, 5, 6), True),
        ((4, 4), 1, 2, (1, 1, 1, 1), (2, 3, 32, 16), False), ((4, 4), 1, 2, (1, 1, 1, 1), (2, 24, 10, 9), True),
        ((4, 4), 1, 1, (2, 2, 2, 2), (2, 2, 17, 19), False), ((4, 4), 1, 1, (1, 1, 1, 1), (2, 2, 17, 33), False),
        ((1, 12), (2, 1), 1, (6, 5, 0, 0), (1, 2, 8, 16), False),
        ((12, 1), (1, 2), 1, (0, 0, 6, 5), (1, 8, 8, 8), True),
        ((12, 1), 1, (1, 2), (0, 0, 5, 5), (2, 2, 24, 16), False),
        ((1, 12), 1, (2, 1), (5, 5, 0, 0), (1, 16, 9, 20), True),
        ((2, 3), 3, 2, (4, 1, -1, 2), (2, 2, 7, 8), False), ((3, 2), (1, 3), (2, 1), (-2, 3, 1, 0), (1, 4, 7, 8), True),
        ((1, 1), 2, 1, (0, 0, 1, -1), (2, 2, 4, 4), False), ((1, 1), 1, 1, (-1, -1, -1, -1), (2, 2, 8, 8), False),
        ((9, 7), 2, 3, (5, 9, 4, 8), (1, 3, 13, 8), False), ((4, 4), 1, 5, (1, 2, 1, 2), (1, 5, 20, 20), True),
        ((4, 4), 1, 1, (9, 9, 20, 3), (1, 2, 8, 8), False), ((4, 4), 2, 1, (-3, 4, -5, 6), (1, 2, 16, 8), False),
    ]
    for number, case in enumerate(cases):
        yield pytest.param(*case, next(dtypes), number % 2 == 1, id=f"fir{number}")


@pytest.mark.parametrize("taps,up,down,padding,shape,channels_last,dtype,flip", list(firs()))
def test_upfirdn2d(emulator, taps, up, down, padding, shape, channels_last, dtype, flip):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    f = torch.randn(taps).t().contiguous().t()  # strides of its own
    spec = upfirdn2d._Spec(upfirdn2d._pair(up), upfirdn2d._pair(down), padding, flip, 1.3)
    y = upfirdn2d._cuda(x, f, *spec)
    assert_close(y, upfirdn2d._reference(x.double(), f, spec), dtype)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    has_kernel = taps[0] * taps[1] <= 32 and down != 5
    assert [k.name for k in emulator.launched] == ["upfirdn2d"] * has_kernel


def test_separable_filters_take_two_passes(emulator):
    x, f = torch.randn([2, 3, 8, 12]), torch.randn([12])
    spec = upfirdn2d._Spec((2, 2), (1, 1), (6, 5, 6, 5), False, 4.0)
    assert_close(upfirdn2d._cuda(x, f, *spec), upfirdn2d._reference(x.double(), f, spec), torch.float32)
    assert len(emulator.launched) == 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_modconv_epilogue_of_negative_gain(emulator, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (torch.randn([2, 4, 5, 5]).to(memory_format=memory_format) for _ in range(2))
    y = modconv_epilogue._cuda(x, None, None, None, None, "lrelu", -1.3, 1.1)
    dx, sums = modconv_epilogue._cuda_grad(dy, y, x, None, None, "lrelu", -1.3, 1.1)
    x.requires_grad_()
    plain = bias_act.bias_act(x, act="lrelu", gain=-1.3, clamp=1.1, impl="ref")
    (expected,) = torch.autograd.grad(plain, x, dy)
    assert_close(y, plain.detach(), torch.float32)
    assert_close(dx, expected, torch.float32)
    assert_close(sums[1], (expected * x).sum([2, 3]), torch.float32)


def epilogues():
    dtypes, acts = itertools.cycle(BOUNDS), itertools.cycle(["lrelu", "linear", "relu"])
    shapes = [((2, 8, 4, 4), False), ((2, 16, 3, 5), True), ((2, 3, 5, 7), False), ((1, 5, 3, 3), True),
              ((3, 2, 40, 40), False), ((2, 72, 9, 9), True), ((2, 4, 16, 8), False), ((1, 128, 12, 40), True)]
    for i, (shape, last) in enumerate(shapes):
        yield pytest.param(next(acts), next(dtypes), shape, last, i != 2, (None, "each", "same")[i % 3], i != 3,
                           1.1 if i % 2 else None, id=f"epilogue{i}")


@pytest.mark.parametrize("act,dtype,shape,channels_last,has_scale,noise_kind,has_bias,clamp", list(epilogues()))
def test_modconv_epilogue(emulator, act, dtype, shape, channels_last, has_scale, noise_kind, has_bias, clamp):
    n, c, h, w = shape
    x, dy = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    small = kernels.compute_type(dtype)
    scale = torch.randn([n, c], dtype=small) if has_scale else None
    noise = dict(each=torch.randn([n, 1, h, w], dtype=small), same=torch.randn([h, w], dtype=small)).get(noise_kind)
    strength = None if noise is None else torch.tensor(0.7, dtype=small)
    b = torch.randn([c], dtype=small) if has_bias else None
    settings = (act, 1.3, -1.0 if clamp is None else torch.tensor(clamp, dtype=dtype).item())
    wide = lambda *tensors: [None if t is None else t.double() for t in tensors]
    y = modconv_epilogue._cuda(x, scale, noise, strength, b, *settings)
    assert_close(y, modconv_epilogue._native(*wide(x, scale, noise, strength, b), *settings), dtype)
    assert y.stride() == x.stride()
    dx, sums = modconv_epilogue._cuda_grad(dy, y, x, scale, noise, *settings)
    expected_dx, expected_sums = modconv_epilogue._native_grad(*wide(dy, y, x, scale, noise), *settings)
    assert_close(dx, expected_dx, dtype)
    assert_close(sums, expected_sums, small)
    assert [k.name for k in emulator.launched] == ["modconv_epilogue", "modconv_epilogue_grad"]
