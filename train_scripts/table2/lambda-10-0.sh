#!/usr/bin/env bash
# Weights of reconstruction on LSUN Church: lambda 1 = 10 for real images, lambda 2 = 0 for fake ones.
# Published (GLeaD, Table 2): FID 3.10.
# Usage: bash train_scripts/table2/lambda-10-0.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead --res-g=32 --res-decoder=64 --lambda-real=10 --lambda-fake=0 "$@"
