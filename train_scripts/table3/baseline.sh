#!/usr/bin/env bash
# Resolution of f on LSUN Church: no f, no task for D (the baseline).
# Published (GLeaD, Table 3): FID 4.04.
# Usage: bash train_scripts/table3/baseline.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=stylegan2 "$@"
