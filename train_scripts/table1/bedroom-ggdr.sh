#!/usr/bin/env bash
# GGDR on LSUN Bedroom.
# Published (GLeaD, Table 1): FID 3.71, precision 0.62, recall 0.33.
# Usage: bash train_scripts/table1/bedroom-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train bedroom256 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
