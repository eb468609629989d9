#!/usr/bin/env bash
# GGDR on FFHQ.
# Published (GLeaD, Table 1): FID 3.25, precision 0.66, recall 0.51.
# Usage: bash train_scripts/table1/ffhq-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train ffhq256 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
