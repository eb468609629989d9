#!/usr/bin/env bash
# GGDR on LSUN Church.
# Published (GLeaD, Table 1): FID 2.81, precision 0.61, recall 0.46.
# Usage: bash train_scripts/table1/church-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
