#!/usr/bin/env bash
# GLeaD+GGDR ("Ours*") on LSUN Bedroom.
# Published (GLeaD, Table 1): FID 2.72, precision 0.62, recall 0.37.
# Usage: bash train_scripts/table1/bedroom-glead-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train bedroom256 --method=glead+ggdr --res-g=32 --res-decoder=64 --lambda-real=10 --lambda-fake=10 "$@"
