#!/usr/bin/env bash
# ADA on AFHQ Cat.
# Published (GGDR, Table 4): FID 3.55, precision 0.77, recall 0.41.
# Usage: bash train_scripts/ggdr/afhqcat-ada.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqcat512 --method=stylegan2 "$@"
