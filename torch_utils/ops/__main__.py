"""Compile the CUDA kernels beforehand, and show whether they work here.

    python -m torch_utils.ops build [--arch=80,90]
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
    commands.add_parser("status", help="show compiler, cache and GPUs; on a GPU, test the kernels", allow_abbrev=False)
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    options = parsed(args)
    from .build import report  # imported here, so that --help and wrong usage don't wait for PyTorch

    try:
        return report.build(options.arch) if options.command == "build" else report.status()
    except UserError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
