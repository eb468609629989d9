#!/usr/bin/env bash
# ADA+GGDR on AFHQ Dog.
# Published (GGDR, Table 4): FID 4.59, precision 0.79, recall 0.53.
# Usage: bash train_scripts/ggdr/afhqdog-ada-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqdog512 --method=ggdr --ggdr-res=64 --lambda-fake=10 "$@"
