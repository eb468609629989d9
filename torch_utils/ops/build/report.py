"""The commands of `python -m torch_utils.ops`: compile the kernels beforehand, or show whether they work here."""

import os
import re
import sys
from typing import Sequence

import torch
from tabulate import tabulate

from dnnlib.util import UserError, check_writable

from . import custom_ops, disk_cache, nvrtc
from .source import Built, Unavailable


def build(archs: str | None) -> int:
    """Compile the standard kernels and print a table of them.

    Args:
        archs: Architectures, such as "80,90"; None = those of the GPUs here.

    Returns:
        Exit status: 1 if a kernel doesn't compile.

    Raises:
        UserError: There is no such architecture, no compiler, or the folder for kernels can't be written.
    """
    folder = disk_cache.folder()
    check_writable(folder / "entry")
    results: list[tuple[int, Built]] = []
    try:
        version = nvrtc.version()
        for arch in _parsed(archs, nvrtc.architectures()):
            results += [(arch, built) for built in custom_ops.compile_all(custom_ops.standard_kernels(), arch=arch)]
    except Unavailable as e:
        raise UserError(f"CUDA kernels can't be compiled here: {e}") from e
    print(tabulate([_row(arch, built) for arch, built in results],
                   headers=["kernel", "macros", "arch", "seconds", "bytes"], floatfmt=".2f"))
    failed = {str(built.error): built.error for _, built in results if built.error is not None}
    for message, error in failed.items():
        print(f"{error.log}\nError: {message}", file=sys.stderr)
    print(f"{version}: {sum(built.error is None for _, built in results)} kernels in {folder}")
    return 1 if failed else 0


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
        if number not in known and number < max(known):  # a newer GPU is fine: its driver completes the compilation
            raise UserError(f"--arch={archs}: the compiler knows {', '.join(map(str, known))}, not {number}")
        numbers.append(number)
    return sorted(set(numbers))


def _row(arch: int, built: Built) -> list[object]:
    macros = " ".join(f"{name}={value}" for name, value in built.kernel.macros)
    outcome = "failed" if built.error else built.num_bytes
    return [built.kernel.name, macros, arch, built.seconds or "cached", outcome]


def status() -> int:
    """Print whether kernels are active here. On a GPU, also compare each operation with its reference.

    Returns:
        Exit status: 1 if a kernel can't be used, or an operation differs too much from its reference.
    """
    wanted = custom_ops.kernels_wanted()
    try:
        compiler, available = f"{nvrtc.version()}, for {', '.join(f'sm_{a}' for a in nvrtc.architectures())}", True
    except Unavailable as e:
        compiler, available = f"not available: {e}", False
    gpus = [torch.cuda.get_device_name(i) + f", sm_{custom_ops.architecture(torch.device('cuda', i))}"
            for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    usage = disk_cache.usage()
    reason = "kernels are switched off" if not wanted else "no compiler" if not available else "no GPU"
    active = wanted and available and bool(gpus)
    print(tabulate([
        ["compiler", compiler],
        ["cache", f"{disk_cache.folder()}: {usage.entries} entries, {usage.num_bytes:,} bytes"],
        ["GPUs", "; ".join(gpus) or f"none (PyTorch {torch.__version__})"],
        [custom_ops.VARIABLE, os.environ.get(custom_ops.VARIABLE) or "not set: auto"],
        ["active", "kernels" if active else f"PyTorch's own operations: {reason}"],
    ], tablefmt="plain"))
    return _self_tests() if active else 0


def _self_tests() -> int:
    """On each GPU, load the kernels that are already compiled, and test the operations."""
    from ..self_test import self_test

    rows, complete, kernels = [], True, custom_ops.standard_kernels()
    for i in range(torch.cuda.device_count()):
        device = torch.device("cuda", i)
        arch = custom_ops.architecture(device)
        compiled = [kernel for kernel in kernels if nvrtc.find(kernel, arch=arch) is not None]
        loaded = sum(custom_ops.load(kernel, device) is not None for kernel in compiled)
        print(f"{device}: {len(compiled)} of {len(kernels)} kernels compiled, {loaded} loaded; testing", flush=True)
        rows += [[name, str(device), error, bound, "ok" if error <= bound else "FAILED"]  # NaN fails
                 for name, error, bound in self_test(device)]
        complete = complete and custom_ops.all_loaded(device)
    print("\n" + tabulate(rows, headers=["operation", "device", "error", "bound", ""], floatfmt=".2g"))
    return 0 if complete and all(row[-1] == "ok" for row in rows) else 1
