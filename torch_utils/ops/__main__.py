"""Compile the CUDA kernels beforehand, and show what becomes of them here.

    python -m torch_utils.ops build [--arch=80,90] [--route=nvrtc]
    python -m torch_utils.ops status
"""

import argparse
import sys
from typing import NoReturn, Sequence

from dnnlib.util import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Error: {message}; see python -m torch_utils.ops --help", file=sys.stderr)
        sys.exit(2)


def parsed(args: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m torch_utils.ops", description="CUDA kernels of the operations.",
                     allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{build,status}")
    command = commands.add_parser("build", help="compile all kernels that the networks usually need",
                                  allow_abbrev=False)
    command.add_argument("--arch", metavar="LIST",
                         help="such as 80,90,100, with or without a GPU (default: the GPUs here)")
    command.add_argument("--route", metavar="NAME", help="auto, nvrtc or nvcc (default: GLEAD_OPS, else auto)")
    command.add_argument("--time-limit", metavar="SEC", type=float, help="of a build by nvcc (default: 300)")
    commands.add_parser("status", help="show compilers, cache and GPUs; on a GPU, test the kernels", allow_abbrev=False)
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    options = parsed(args)
    from .build import report as kernel_report  # here, so that --help and wrong usage don't wait for PyTorch

    try:
        if options.command == "build":
            return kernel_report.build(options.arch, route=options.route, time_limit=options.time_limit)
        return kernel_report.status()
    except UserError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
