"""What `python -m torch_utils.ops` does: compiles the kernels beforehand, shows which ones work here, tests them."""

import math
import os
import re
import sys
from typing import Sequence

import torch
from tabulate import tabulate

from dnnlib.util import UserError, check_writable

from . import custom_ops
from .custom_ops import ROUTES
from .source import Built, Unavailable


def build(archs: str | None, *, route: str | None = None, time_limit: float | None = None) -> int:
    """Compile the standard kernels and print a table of them.

    Args:
        archs:      "80,90"; None = those of the GPUs here.
        route:      A compiler, or "auto"; None = by the environment variable GLEAD_OPS.
        time_limit: Seconds that a build by nvcc may take; None = its default.

    Returns:
        Exit status: 1 if a kernel doesn't compile.

    Raises:
        UserError: No such architecture or route, no compiler, or no folder to keep kernels in.
    """
    if time_limit is not None and not 0 < time_limit < math.inf:
        raise UserError(f"--time-limit={time_limit:g}: expected a number of seconds above zero")
    check_writable(custom_ops.kernel_cache().folder / "entry")
    route = _available_route(route)
    compiler, kernels, results = ROUTES[route], custom_ops.standard_kernels(), []
    limit = {} if time_limit is None or route != "nvcc" else dict(seconds=time_limit)
    for arch in _parsed(archs, compiler.architectures()):
        try:
            built = compiler.build(kernels, arch=arch, cache=custom_ops.kernel_cache(), **limit)
            results += [(arch, one) for one in custom_ops.progress(built, len(kernels))]
        except Unavailable as e:
            raise UserError(f"can't compile for sm_{arch} by {route}: {e}") from e
    print(tabulate([_row(arch, one) for arch, one in results], headers=["kernel", "macros", "arch", "seconds", "bytes"],
                   floatfmt=".2f"))
    failed = {str(one.error): one.error for _, one in results if one.error is not None}
    for message, error in failed.items():
        print(f"{error.log}\nError: {message}", file=sys.stderr)
    print(f"{compiler.version()}: {sum(len(one.kernels) for _, one in results if one.error is None)} kernels in "
          f"{custom_ops.kernel_cache().folder}")
    return 1 if failed else 0


def _available_route(choice: str | None) -> str:
    reasons = []
    for route in custom_ops.chosen_routes(choice):
        try:
            ROUTES[route].version()
            return route
        except Unavailable as e:
            reasons.append(f"{route}: {e}")
    raise UserError("no compiler for CUDA kernels: " + ("; ".join(reasons) or "GLEAD_OPS=native; choose a --route"))


def _parsed(archs: str | None, known: Sequence[int]) -> list[int]:
    if archs is None:
        if not torch.cuda.is_available():
            raise UserError("no GPU here: say for which ones to compile, such as --arch=80,90")
        return sorted({custom_ops.architecture(torch.device("cuda", i)) for i in range(torch.cuda.device_count())})
    numbers = []
    for part in archs.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,2}\.?[0-9]\s*", part):
            raise UserError(f"--arch={archs}: expected numbers with commas in between, such as 80,90")
        number = int(part.replace(".", ""))
        if number not in known and number < max(known):  # a newer one gets code that its driver translates
            raise UserError(f"--arch={archs}: the compiler knows {', '.join(map(str, known))}, not {number}")
        numbers.append(number)
    return sorted(set(numbers))


def _row(arch: int, built: Built) -> list[object]:
    outcome = "failed" if built.error else built.num_bytes
    seconds = built.seconds if built.seconds else "cached"
    if len(built.kernels) == 1:
        macros = " ".join(f"{name}={value}" for name, value in built.kernels[0].macros)
        return [built.kernels[0].name, macros, arch, seconds, outcome]
    return [f"{len(built.kernels)} kernels", "one library", arch, seconds, outcome]


def status() -> int:
    """Print what is active here; on a GPU, compare each operation with its reference.

    Returns:
        Exit status: 1 if a kernel can't be used, or an operation differs from its reference by more than it may.
    """
    chosen, active, rows = custom_ops.chosen_routes(), None, []
    for route, compiler in ROUTES.items():
        try:
            what = f"{compiler.version()}, for {', '.join(f'sm_{arch}' for arch in compiler.architectures())}"
            active = active or (route if route in chosen else None)
        except Unavailable as e:
            what = f"not available: {e}"
        rows.append([route, what])
    gpus = [torch.cuda.get_device_name(i) + f", sm_{custom_ops.architecture(torch.device('cuda', i))}"
            for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    usage = custom_ops.kernel_cache().usage()
    rows += [["cache", f"{custom_ops.kernel_cache().folder}: {usage.entries} entries, {usage.num_bytes:,} bytes"],
             ["GPUs", "; ".join(gpus) or f"none (PyTorch {torch.__version__})"],
             ["GLEAD_OPS", os.environ.get(custom_ops.VARIABLE) or "not set: auto"],
             ["active", _summary(active, chosen, bool(gpus))]]
    print(tabulate(rows, tablefmt="plain"))
    if not gpus or active is None:
        return 0
    return _self_tests()


def _summary(active: str | None, chosen: Sequence[str], has_gpu: bool) -> str:
    if not chosen:
        return "PyTorch's own operations: kernels are switched off"
    if active is None:
        return "PyTorch's own operations: no compiler"
    return active if has_gpu else f"PyTorch's own operations: no GPU; with one, {active}"


def _self_tests() -> int:
    """On each GPU, what the modules of operations supply as `self_test(device) -> [(name, error, bound)]`."""
    rows, complete = [], True
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        custom_ops.prepare(device)
        kernels = custom_ops.standard_kernels()
        loaded = sum(custom_ops.load(kernel, device) is not None for kernel in kernels)
        complete = complete and loaded == len(kernels)  # without them the operations would be right, too
        print(f"{device}: {loaded} of {len(kernels)} kernels loaded")
        rows += [[name, f"cuda:{i}", error, bound, "ok" if error <= bound else "FAILED"]  # NaN fails
                 for module in custom_ops.op_modules() if hasattr(module, "self_test")
                 for name, error, bound in module.self_test(device)]
    print("\n" + tabulate(rows, headers=["operation", "device", "error", "bound", ""], floatfmt=".2g"))
    return 0 if complete and all(row[-1] == "ok" for row in rows) else 1

