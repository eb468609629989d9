#!/usr/bin/env bash
# ADA on CIFAR-10, unconditional, with the settings tuned for it.
# Published (GGDR, Table 2): FID 2.92, IS 9.83.
# Usage: bash train_scripts/ggdr/cifar10-ada.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train cifar10 --method=stylegan2 "$@"
