#!/usr/bin/env bash
# StyleGAN2, the baseline on LSUN Bedroom.
# Published (GLeaD, Table 1): FID 4.30, precision 0.59, recall 0.25.
# Usage: bash train_scripts/table1/bedroom-stylegan2.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train bedroom256 --method=stylegan2 "$@"
