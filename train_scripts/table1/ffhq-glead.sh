#!/usr/bin/env bash
# GLeaD on FFHQ.
# Published (GLeaD, Table 1): FID 3.24, precision 0.69, recall 0.47.
# Usage: bash train_scripts/table1/ffhq-glead.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train ffhq256 --method=glead --res-g=64 --res-decoder=64 --lambda-real=10 --lambda-fake=3 "$@"
