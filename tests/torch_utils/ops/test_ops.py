"""The operations against golden numbers, their references, and numerical derivatives."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d

SYM4 = [-0.0758, -0.0296, 0.4976, 0.8037, 0.2979, -0.0992, -0.0126, 0.0322]


def grads_of_grads(y, dy, first, second):
    """Gradients of sum(y * dy) in `first`, and of the squared norm of the first of them in `second`."""
    d = torch.autograd.grad(y, first, dy, create_graph=True)
    s = torch.autograd.grad(d[0].square().sum(), second, allow_unused=True)
    return d, [torch.zeros_like(v) if g is None else g for g, v in zip(s, second)]


def test_setup_filter_golden(golden):
    g = golden("ops/setup_filter.npz")
    for name, kwargs in g.meta["variants"].items():
        g.compare(f"out/{name}/f", upfirdn2d.setup_filter(**kwargs))


@pytest.mark.parametrize("file", ["upfirdn2d", "updown_helpers"])
@pytest.mark.parametrize("impl", ["cuda", "ref"])
def test_upfirdn2d_golden(golden, file, impl):
    g = golden(f"ops/{file}.npz")
    for name, variant in g.meta["variants"].items():
        x = g.get(f"in/{name}/x").requires_grad_()
        dy = g.get(f"in/{name}/dy").requires_grad_()
        f = g.get(f"in/{name}/f") if g.has(f"in/{name}/f") else None
        y = getattr(upfirdn2d, variant["fn"])(x, f, **variant["kwargs"], impl=impl)
        (dx,), (ddy,) = grads_of_grads(y, dy, [x], [dy])
        for key, value in dict(y=y, dx=dx, ddy=ddy).items():
            g.compare(f"out/{name}/{key}", value)


def test_bias_act_golden(golden):
    g = golden("ops/bias_act.npz")
    for name, kwargs in g.meta["variants"].items():
        kwargs = {k: v for k, v in kwargs.items() if k != "bias"}
        for impl in ("cuda", "ref"):
            x = g.get(f"in/{name}/x").requires_grad_()
            b = g.get(f"in/{name}/b").requires_grad_()
            dy = g.get(f"in/{name}/dy").requires_grad_()
            y = bias_act.bias_act(x, b, **kwargs, impl=impl)
            (dx, db), (ddy, dxx, dxb) = grads_of_grads(y, dy, [x, b], [dy, x, b])
            for key, value in dict(y=y, dx=dx, db=db, ddy=ddy, dxx=dxx, dxb=dxb).items():
                g.compare(f"out/{name}/{key}", value)


def test_activation_defaults_golden(golden):
    for name, spec in golden("ops/bias_act.npz").meta["defaults"].items():
        assert bias_act.activation_funcs[name].def_alpha == spec["def_alpha"]
        assert bias_act.activation_funcs[name].def_gain == pytest.approx(spec["def_gain"], rel=1e-12)


def test_conv2d_resample_golden(golden):
    g = golden("ops/conv2d_resample.npz")
    for name, variant in g.meta["variants"].items():
        x = g.get(f"in/{name}/x").requires_grad_()
        w = g.get(f"in/{name}/w").requires_grad_()
        dy = g.get(f"in/{name}/dy").requires_grad_()
        f = g.get(f"in/{name}/f") if g.has(f"in/{name}/f") else None
        y = conv2d_resample.conv2d_resample(x, w, f, **variant["kwargs"])
        (dx, dw), (s_dy, s_w) = grads_of_grads(y, dy, [x, w], [dy, w])
        for key, value in dict(y=y, dx=dx, dw=dw, s_dy=s_dy, s_w=s_w).items():
            g.compare(f"out/{name}/{key}", value)


@pytest.mark.parametrize("up,down", list(itertools.product([1, 2, 3], [1, 2, 4])))
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], SYM4, [[1, 2, 0.5], [3, -1, 1]], None])
def test_upfirdn2d_equals_its_reference(up, down, taps):
    rng = torch.Generator().manual_seed(up * 10 + down)
    f = None if taps is None else upfirdn2d.setup_filter(taps)
    for padding, flip in itertools.product([0, (2, 1), (3, 0, -1, 4), (-1, -1, 2, 5)], [False, True]):
        x = torch.randn([2, 3, 11, 9], generator=rng, dtype=torch.float64)
        kwargs = dict(up=up, down=(down, 1), padding=padding, flip_filter=flip, gain=1.3)
        try:
            expected = upfirdn2d.upfirdn2d(x, f, **kwargs, impl="ref")
        except RuntimeError:  # cropped to nothing
            continue
        torch.testing.assert_close(upfirdn2d.upfirdn2d(x, f, **kwargs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kwargs", [
    dict(up=2, padding=[2, 1, 2, 1], gain=4), dict(down=2, padding=1),
    dict(up=[2, 1], down=[1, 3], padding=[1, 2, 3, 0]),
])
def test_upfirdn2d_derivatives(kwargs):
    x = torch.randn([1, 2, 5, 6], dtype=torch.float64, requires_grad=True)
    f = upfirdn2d.setup_filter([1, 3, 2, 1])
    fn = lambda x: upfirdn2d.upfirdn2d(x, f, **kwargs)
    assert gradcheck(fn, [x]) and gradgradcheck(fn, [x])


@pytest.mark.parametrize("act", bias_act.activation_funcs)
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_bias_act_derivatives(act, clamp):
    x = torch.randn([3, 4, 2], dtype=torch.float64, requires_grad=True)
    b = torch.randn([4], dtype=torch.float64, requires_grad=True)
    fn = lambda x, b: bias_act.bias_act(x, b, act=act, gain=1.7, clamp=clamp)
    assert gradcheck(fn, [x, b]) and gradgradcheck(fn, [x, b])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bias_act_has_no_gradient_where_it_clamps(dtype):
    """Also for limits that the type can't hold exactly."""
    x = torch.tensor([[-400.0, -1, 1, 400]], dtype=dtype, requires_grad=True)
    y = bias_act.bias_act(x, act="lrelu", gain=1, clamp=256 * 0.5**0.5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx.double(), torch.tensor([[0.2, 0.2, 1, 0]], dtype=torch.float64), rtol=1e-2, atol=0)
    x = torch.tensor([[-4000.0, 4000]], dtype=dtype, requires_grad=True)
    (dx,) = torch.autograd.grad(bias_act.bias_act(x, act="lrelu", clamp=256 * 0.5**0.5).sum(), x)
    assert (dx == 0).all()


def test_bias_act_leaves_its_input_alone():
    x = torch.randn([2, 3, 4, 4])
    before = x.clone()
    bias_act.bias_act(x, None, act="lrelu", clamp=0.1)
    bias_act.bias_act(x, torch.ones(3), act="relu")
    assert torch.equal(x, before)


@pytest.mark.parametrize("kwargs", [dict(up=2, flip_weight=False), dict(down=2), dict(up=2, down=2), dict()])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv2d_resample_equals_separate_steps(kwargs, kernel):
    """Up-sample, convolve, down-sample as the definition says."""
    x, w = torch.randn([2, 4, 8, 6], dtype=torch.float64), torch.randn([5, 4, kernel, kernel], dtype=torch.float64)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    up, down = kwargs.get("up", 1), kwargs.get("down", 1)
    actual = conv2d_resample.conv2d_resample(x, w, f, padding=kernel // 2, **kwargs)
    k = w if kwargs.get("flip_weight", True) else w.flip([2, 3])
    p = kernel // 2
    px0 = p + (5 // 2 if up > 1 else 0) + (3 // 2 if down > 1 else 0)  # (4 + 2 - 1) // 2 and (4 - 2 + 1) // 2
    px1 = p + (1 if up > 1 else 0) + (1 if down > 1 else 0)
    y = upfirdn2d.upfirdn2d(x, f if up > 1 else None, up=up, padding=[px0, px1] * 2, gain=up**2, impl="ref")
    y = torch.nn.functional.conv2d(y, k)
    y = upfirdn2d.upfirdn2d(y, f if down > 1 else None, down=down, impl="ref")
    torch.testing.assert_close(actual, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ops_keep_the_type(dtype):
    x = torch.randn([1, 2, 8, 8]).to(dtype)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    assert upfirdn2d.upsample2d(x, f).dtype == dtype
    assert upfirdn2d.downsample2d(x, f).dtype == dtype
    assert bias_act.bias_act(x, torch.zeros([2], dtype=dtype), act="lrelu").dtype == dtype
    assert conv2d_resample.conv2d_resample(x, torch.randn([3, 2, 3, 3]).to(dtype), f, up=2, padding=1).dtype == dtype


def test_fma_golden(golden):
    g = golden("ops/layers.npz")
    g.compare("out/fma/y", fma.fma(g.get("in/fma/a"), g.get("in/fma/b"), g.get("in/fma/c")))


@pytest.mark.parametrize("call", [
    lambda x: upfirdn2d.upfirdn2d(x, None, up=0),
    lambda x: bias_act.bias_act(x, torch.zeros(5)),
    lambda x: bias_act.bias_act(x, act="gelu"),
    lambda x: upfirdn2d.setup_filter(np.ones([2, 2, 2])),
])
def test_bad_arguments(call):
    with pytest.raises(ValueError):
        call(torch.zeros([1, 2, 4, 4]))
