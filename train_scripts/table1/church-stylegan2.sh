#!/usr/bin/env bash
# StyleGAN2, the baseline on LSUN Church.
# Published (GLeaD, Table 1): FID 4.04, precision 0.58, recall 0.40.
# Usage: bash train_scripts/table1/church-stylegan2.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train church256 --method=stylegan2 "$@"
