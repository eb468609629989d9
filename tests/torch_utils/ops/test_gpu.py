"""The operations on a GPU: their kernels are used, and agree with the references."""

import pytest
import torch

from tests.torch_utils.ops.operations import all_cases
from torch_utils.ops import bias_act, modconv_epilogue, upfirdn2d
from torch_utils.ops.build import custom_ops
from torch_utils.ops.self_test import BOUNDS, compare

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """PyTorch's own convolutions would round float32 to TF32, 10 bits, by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_operations_agree_with_their_references():
    checks = [check for case in all_cases() for check in compare(case, torch.device("cuda"), BOUNDS)]
    assert not [check for check in checks if not check.error <= check.bound]


def test_all_standard_kernels_load():
    custom_ops.prepare(torch.device("cuda"))
    missing = [k for k in custom_ops.standard_kernels() if custom_ops.load(k, torch.device("cuda", 0)) is None]
    assert not missing


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_take_turns_with_plain_operations(dtype, channels_last):
    """Large images, a view that starts in the middle of memory, and a stream of one's own."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn([5, 64, 128, 96], device="cuda").to(dtype=dtype, memory_format=memory_format)[1:]
    f, b = upfirdn2d.setup_filter([1, 3, 3, 1], device="cuda"), torch.randn([64], device="cuda", dtype=dtype)
    scale, noise = torch.rand([4, 64], device="cuda"), torch.randn([4, 1, 128, 96], device="cuda")

    def results() -> list[torch.Tensor]:
        y = bias_act.bias_act(x, b, act="lrelu", clamp=256)
        z = modconv_epilogue.modconv_epilogue(x, scale, noise, scale.new_tensor(0.3), b, clamp=256)
        return [y, upfirdn2d.upsample2d(y, f), upfirdn2d.downsample2d(y, f), upfirdn2d.filter2d(x, f), z]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours = results()
    torch.cuda.current_stream().wait_stream(stream)
    with custom_ops.switched_off():
        plain = results()
    bound = 1e-2 if dtype == torch.float16 else 1e-5    # plain operations round up to five times
    for a, e in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, e, rtol=bound, atol=bound)


def test_kernels_run_inside_a_graph():
    x, f = torch.randn([2, 8, 32, 32], device="cuda"), upfirdn2d.setup_filter([1, 3, 3, 1], device="cuda")
    work = lambda: bias_act.bias_act(upfirdn2d.upsample2d(x, f), act="lrelu")
    expected = work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = work()
    x.copy_(x.clone() * 2)
    graph.replay()
    torch.testing.assert_close(y, 2 * expected)


def test_more_elements_than_32_bits_count():
    """2.2 billion of them; the last ones are compared."""
    needed = 30 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    x = torch.zeros([34, 1024, 256, 256], dtype=torch.float16, device="cuda")
    x[-1] = torch.randn(x[-1].shape, device="cuda").to(x.dtype)
    assert x.numel() > 2**31
    f, b = upfirdn2d.setup_filter([1, 3, 3, 1], device="cuda"), torch.randn([1024], device="cuda").to(x.dtype)
    for work in (lambda x: bias_act.bias_act(x, b, act="lrelu"), lambda x: upfirdn2d.filter2d(x, f),
                 lambda x: modconv_epilogue.modconv_epilogue(x, b=b)):
        torch.testing.assert_close(work(x)[-1:], work(x[-1:].clone()))
