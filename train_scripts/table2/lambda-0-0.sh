#!/usr/bin/env bash
# Weights of reconstruction on LSUN Church: no task for D (the baseline).
# Published (GLeaD, Table 2): FID 4.04.
# Usage: bash train_scripts/table2/lambda-0-0.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=stylegan2 "$@"
