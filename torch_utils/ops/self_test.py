"""The operations on a device against their references in double precision: values, first and second derivatives."""

import functools
import itertools
from typing import Any, Callable, Collection, Iterator, Literal, NamedTuple, Sequence

import torch
from tqdm import tqdm

from . import bias_act, modconv_epilogue, upfirdn2d

Tensor = torch.Tensor

BOUNDS = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}  # Of the largest value.


class Check(NamedTuple):
    name: str
    error: float    # Largest difference, relative to the largest value.
    bound: float


class _Case(NamedTuple):
    name: str
    fn: Callable[..., Tensor]                   # The operation, of `inputs`.
    reference: Callable[..., Tensor] | None     # None = `fn` with impl="ref".
    inputs: tuple[Tensor, ...]                  # Double precision, on the CPU.


def self_test(
    device: torch.device, *, dtypes: Collection[torch.dtype] = tuple(BOUNDS), quick: bool = False
) -> list[Check]:
    """Compare operations on a device with their references, in both memory formats.

    Args:
        device: Where the operations run. References run on the CPU in double precision.
        dtypes: Types to test, of those in `BOUNDS`.
        quick:  Test only with kernels that networks use (`standard_kernels`). The full test makes a GPU wait for many
                other kernels to be compiled, 0.1 s each.

    Returns:
        A check for each operation, setting, type and memory format.
    """
    checks = []
    cases = list(_standard_cases() if quick else _all_cases())
    for case in tqdm(cases, desc="Testing operations", unit="case", leave=False, delay=1):
        reference = case.reference or functools.partial(case.fn, impl="ref")
        expected = _derivatives(reference, case.inputs)
        for dtype, channels_last in itertools.product(dtypes, (False, True)):
            inputs = [t.to(device=device, dtype=dtype) for t in case.inputs]
            if channels_last:
                inputs[0] = inputs[0].to(memory_format=torch.channels_last)
            error = max(_error(*pair) for pair in zip(_derivatives(case.fn, inputs), expected, strict=True))
            kind = str(dtype).removeprefix("torch.") + (" channels last" if channels_last else "")
            checks.append(Check(f"{case.name}, {kind}", error, BOUNDS[dtype]))
    return checks


def _standard_cases() -> Iterator[_Case]:
    """The operations as networks use them, on images whose sizes suit the largest vectors."""
    x, b, noise, scale = _draw_inputs(64, 16, 32)
    yield _bias_act_case("lrelu", x, b)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    for move in [(1, 1, (2, 2, 2, 2)), (2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1))]:
        yield _fir_case("upfirdn2d 4x4", f, *move, x)
    yield _modconv_case(x, b, noise, scale)


def _all_cases() -> Iterator[_Case]:
    x, b, noise, scale = _draw_inputs(24, 17, 40)
    for act in ("linear", "relu", "lrelu"):     # those that have kernels
        yield _bias_act_case(act, x, b)
    taps = {"4x4": [1.0, 3, 3, 1], "12": [1.0, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1], "3x2": [[1.0, 2], [3, 4], [5, 6]]}
    moves = [(1, 1, (2, 1, 2, 1)), (2, 1, (5, 6, 7, 4)), (1, 2, (5, 6, 6, 5)), ((3, 1), (1, 2), (9, -1, 7, 8))]
    for (name, f), move in itertools.product(taps.items(), moves):
        yield _fir_case(f"upfirdn2d {name}", upfirdn2d.setup_filter(f), *move, x)
    yield _modconv_case(x, b, noise, scale)


def _draw_inputs(c: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [2, c, h, w], b [c], noise [2, 1, h, w] and scale [2, c], of values that all types hold exactly."""
    generator = torch.Generator().manual_seed(0)
    x, b, noise = (torch.randint(-24, 25, shape, generator=generator).double() / 8
                   for shape in [(2, c, h, w), (c,), (2, 1, h, w)])
    b = b + 1 / 32  # so that no sum gets near to an activation's bend, or to where results are clamped
    return x, b, noise, 2.0 ** torch.randint(-1, 2, [2, c], generator=generator).double()


def _bias_act_case(act: str, x: Tensor, b: Tensor) -> _Case:
    settings: dict[str, Any] = dict(act=act, clamp=1.5)
    return _Case(f"bias_act {act}", functools.partial(bias_act.bias_act, **settings), None, (x, b))


def _modconv_case(x: Tensor, b: Tensor, noise: Tensor, scale: Tensor) -> _Case:
    def plain(x: Tensor, scale: Tensor, strength: Tensor, b: Tensor) -> Tensor:
        x = x * scale[:, :, None, None] + noise.to(x.device) * strength
        return bias_act.bias_act(x, b, act="lrelu", clamp=1.5, impl="ref")

    def fused(x: Tensor, scale: Tensor, strength: Tensor, b: Tensor) -> Tensor:
        return modconv_epilogue.modconv_epilogue(x, scale, noise.to(x.device), strength, b, clamp=1.5)

    return _Case("modconv_epilogue", fused, plain, (x, scale, torch.tensor(0.5).double(), b))


def _fir_case(name: str, f: Tensor, up: Any, down: Any, padding: tuple[int, ...], x: Tensor) -> _Case:
    def fn(x: Tensor, impl: Literal["cuda", "ref"] = "cuda") -> Tensor:
        return upfirdn2d.upfirdn2d(x, f.to(x.device), up, down, padding, gain=1.5, impl=impl)

    return _Case(f"{name} up {up} down {down}", fn, None, (x,))


def _derivatives(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Value, first derivatives, and what R1 differentiates: the gradient of a gradient's squared norm."""
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
