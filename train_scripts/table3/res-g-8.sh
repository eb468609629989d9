#!/usr/bin/env bash
# Resolution of f on LSUN Church: 8x8.
# Published (GLeaD, Table 3): FID 3.27.
# Usage: bash train_scripts/table3/res-g-8.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead --res-g=8 --res-decoder=64 --lambda-real=10 --lambda-fake=3 "$@"
