#!/usr/bin/env bash
# ADA on AFHQ Dog.
# Published (GGDR, Table 4): FID 7.40, precision 0.76, recall 0.48.
# Usage: bash train_scripts/ggdr/afhqdog-ada.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train afhqdog512 --method=stylegan2 "$@"
