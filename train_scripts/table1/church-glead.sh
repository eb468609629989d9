#!/usr/bin/env bash
# GLeaD on LSUN Church.
# Published (GLeaD, Table 1): FID 2.82, precision 0.62, recall 0.43.
# Usage: bash train_scripts/table1/church-glead.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead --res-g=32 --res-decoder=64 --lambda-real=10 --lambda-fake=3 "$@"
