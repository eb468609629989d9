#!/usr/bin/env bash
# Resolution of f on LSUN Church: 16x16.
# Published (GLeaD, Table 3): FID 3.01.
# Usage: bash train_scripts/table3/res-g-16.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead --res-g=16 --res-decoder=64 --lambda-real=10 --lambda-fake=3 "$@"
