#!/usr/bin/env bash
# ADA+GGDR on AFHQ Wild.
# Published (GGDR, Table 4): FID 2.06, precision 0.80, recall 0.27.
# Usage: bash train_scripts/ggdr/afhqwild-ada-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqwild512 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
