"""CUDA kernels, emulated on the CPU, against plain operations."""

import itertools

import pytest
import torch

from torch_utils.ops import bias_act

pytest_plugins = ["tests.torch_utils.ops.emulator"]
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6, torch.float64: 1e-14}


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype and actual.shape == expected.shape
    bound = BOUNDS[dtype] * expected.abs().max().item()
    assert (actual.double() - expected.double()).abs().max().item() <= bound


def variants():
    """Every activation once, every type, bias, memory format, clamp and odd size somewhere."""
    dtypes, acts = itertools.cycle(BOUNDS), itertools.cycle(bias_act.activation_funcs)
    shapes = [((2, 8, 4, 4), False), ((2, 16, 3, 5), True), ((2, 3, 3, 5), True), ((3, 24), False), ((2, 3, 5, 7), False),
              ((1, 5, 1, 1), False), ((700, 8, 2, 2), False)]
    for i, (shape, channels_last) in enumerate(shapes * 6):
        yield pytest.param(next(acts), next(dtypes), shape, channels_last, i % 3 != 0, 0.7 if i % 2 else None,
                           id=f"variant{i}")


@pytest.mark.parametrize("act,dtype,shape,channels_last,has_bias,clamp", variants())
def test_bias_act(emulator, act, dtype, shape, channels_last, has_bias, clamp):
    x, dy, ddx = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
    if channels_last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))  # ddx comes in another format
    b = torch.randn(shape[1], dtype=torch.float64).to(dtype) if has_bias else None
    settings = (1, act, 0.3, 1.7, -1.0 if clamp is None else clamp)
    wide = lambda t: None if t is None else t.double()  # noqa: E731
    y = bias_act._cuda(x, b, *settings)
    assert_close(y, bias_act._native(wide(x), wide(b), *settings), dtype)
    ref = x if act == "swish" else y
    held = settings[:-1] + ((-1.0 if clamp is None else torch.tensor(clamp, dtype=dtype).item()),)
    assert_close(bias_act._cuda_grad(dy, ref, b, *settings), bias_act._native_grad(wide(dy), wide(ref), wide(b), *held), dtype)
    expected = [dy]
    if bias_act._slope(act, 0.3) is None:
        actual = bias_act._cuda_grad2(dy, ref, b, ddx, *settings)
        assert_close(actual, bias_act._native_grad2(wide(dy), wide(ref), wide(b), wide(ddx), *held), dtype)
        expected.append(ddx)
    assert len(emulator.launched) == len(expected) + 1
