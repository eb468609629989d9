"""Compares the operations on a device with their references in float64: values, first and second derivatives."""

import functools
import itertools
from typing import Any, Callable, Collection, Literal, NamedTuple, Sequence

import torch
from tqdm import tqdm

from . import bias_act, modconv_epilogue, upfirdn2d

Tensor = torch.Tensor

BOUNDS = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}  # For `Check.error`.


class Check(NamedTuple):
    name: str
    error: float    # Largest difference, divided by the largest value.
    bound: float    # Largest allowed error.


class Case(NamedTuple):
    name: str
    fn: Callable[..., Tensor]                   # The operation, a function of `inputs`.
    reference: Callable[..., Tensor] | None     # None = `fn` with impl="ref".
    inputs: tuple[Tensor, ...]                  # float64, on the CPU.


def self_test(device: torch.device) -> list[Check]:
    """Compare operations with their references in float16 and float32, as networks use them.

    It uses only some of the standard kernels: compiling more would take longer than 10 s.
    """
    x, b, noise, scale = draw_inputs(64, 16, 32)    # sizes at which kernels use the largest vectors
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    moves = [(1, 1, (2, 2, 2, 2)), (2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1))]
    cases = [bias_act_case("lrelu", x, b), *(fir_case("upfirdn2d 4x4", f, *move, x) for move in moves),
             modconv_case(x, b, noise, scale)]
    progress = tqdm(cases, desc="Testing operations", unit="case", leave=False, delay=1)
    return [check for case in progress for check in compare(case, device, (torch.float16, torch.float32))]


def compare(case: Case, device: torch.device, dtypes: Collection[torch.dtype]) -> list[Check]:
    """Compare an operation on a device with its reference, in these dtypes and both memory formats.

    The reference runs on the CPU in float64.
    """
    checks = []
    expected = _derivatives(case.reference or functools.partial(case.fn, impl="ref"), case.inputs)
    for dtype, channels_last in itertools.product(dtypes, (False, True)):
        inputs = [t.to(device=device, dtype=dtype) for t in case.inputs]
        if channels_last:
            inputs[0] = inputs[0].to(memory_format=torch.channels_last)
        error = max(_error(*pair) for pair in zip(_derivatives(case.fn, inputs), expected, strict=True))
        kind = str(dtype).removeprefix("torch.") + (" channels last" if channels_last else "")
        checks.append(Check(f"{case.name}, {kind}", error, BOUNDS[dtype]))
    return checks


def draw_inputs(c: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw x [2, c, h, w], b [c], noise [2, 1, h, w] and scale [2, c], with values that all dtypes hold exactly."""
    generator = torch.Generator().manual_seed(0)
    x, b, noise = (torch.randint(-24, 25, shape, generator=generator).double() / 8
                   for shape in [(2, c, h, w), (c,), (2, 1, h, w)])
    b = b + 1 / 32  # keeps all sums away from the activation's kink and from the limit of the clamp
    return x, b, noise, 2.0 ** torch.randint(-1, 2, [2, c], generator=generator).double()


def bias_act_case(act: str, x: Tensor, b: Tensor) -> Case:
    """`bias_act` of x [N, C, H, W] and b [C]."""
    settings: dict[str, Any] = dict(act=act, clamp=1.5)
    return Case(f"bias_act {act}", functools.partial(bias_act.bias_act, **settings), None, (x, b))


def modconv_case(x: Tensor, b: Tensor, noise: Tensor, scale: Tensor) -> Case:
    """`modconv_epilogue` of x [N, C, H, W], b [C], noise [N, 1, H, W] and scale [N, C]."""
    def plain(x: Tensor, scale: Tensor, strength: Tensor, b: Tensor) -> Tensor:
        x = x * scale[:, :, None, None] + noise.to(x.device) * strength
        return bias_act.bias_act(x, b, act="lrelu", clamp=1.5, impl="ref")

    def fused(x: Tensor, scale: Tensor, strength: Tensor, b: Tensor) -> Tensor:
        return modconv_epilogue.modconv_epilogue(x, scale, noise.to(x.device), strength, b, clamp=1.5)

    return Case("modconv_epilogue", fused, plain, (x, scale, torch.tensor(0.5).double(), b))


def fir_case(name: str, f: Tensor, up: Any, down: Any, padding: tuple[int, ...], x: Tensor) -> Case:
    """`upfirdn2d` of x [N, C, H, W]."""
    def fn(x: Tensor, impl: Literal["cuda", "ref"] = "cuda") -> Tensor:
        return upfirdn2d.upfirdn2d(x, f.to(x.device), up, down, padding, gain=1.5, impl=impl)

    return Case(f"{name} up {up} down {down}", fn, None, (x,))


def _derivatives(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value, the first derivatives, and a second one as in R1: the gradient of a gradient's squared norm."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = fn(*inputs)
    weight = ((torch.arange(y.shape[-1], device=y.device) % 5 + 1) / 4).to(y.dtype).expand_as(y)
    first = torch.autograd.grad(y, inputs, weight)
    dy = weight.clone().requires_grad_()
    (dx,) = torch.autograd.grad(fn(*inputs), inputs[0], dy, create_graph=True)
    (second,) = torch.autograd.grad(dx.square().sum(), dy)
    return [t.detach() for t in (y, *first, second)]


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double().cpu() - expected).abs().max() / expected.abs().max())
