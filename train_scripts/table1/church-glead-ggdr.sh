#!/usr/bin/env bash
# GLeaD+GGDR ("Ours*") on LSUN Church.
# Published (GLeaD, Table 1): FID 2.15, precision 0.61, recall 0.48.
# Usage: bash train_scripts/table1/church-glead-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=glead+ggdr --res-g=32 --res-decoder=64 --lambda-real=10 --lambda-fake=10 "$@"
