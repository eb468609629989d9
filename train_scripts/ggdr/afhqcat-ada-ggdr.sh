#!/usr/bin/env bash
# ADA+GGDR on AFHQ Cat.
# Published (GGDR, Table 4): FID 2.76, precision 0.74, recall 0.52.
# Usage: bash train_scripts/ggdr/afhqcat-ada-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqcat512 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
