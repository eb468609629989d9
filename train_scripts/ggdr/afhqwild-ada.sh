#!/usr/bin/env bash
# ADA on AFHQ Wild.
# Published (GGDR, Table 4): FID 3.05, precision 0.76, recall 0.13.
# Usage: bash train_scripts/ggdr/afhqwild-ada.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqwild512 --method=stylegan2 "$@"
