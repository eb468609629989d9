#!/usr/bin/env bash
# Resolution of f on LSUN Church: 1x1, w alone.
# Published (GLeaD, Table 3): FID 4.68.
# Usage: bash train_scripts/table3/res-g-1.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead --res-g=1 --res-decoder=64 --lambda-real=10 --lambda-fake=3 "$@"
