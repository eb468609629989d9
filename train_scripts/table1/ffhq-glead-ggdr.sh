#!/usr/bin/env bash
# GLeaD+GGDR ("Ours*") on FFHQ.
# Published (GLeaD, Table 1): FID 2.90, precision 0.69, recall 0.50.
# Usage: bash train_scripts/table1/ffhq-glead-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train ffhq256 --method=glead+ggdr --res-g=64 --res-decoder=64 --lambda-real=10 --lambda-fake=10 "$@"
