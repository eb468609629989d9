#!/usr/bin/env bash
# StyleGAN2, the baseline on FFHQ.
# Published (GLeaD, Table 1): FID 3.79, precision 0.68, recall 0.44.
# Usage: bash train_scripts/table1/ffhq-stylegan2.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train ffhq256 --method=stylegan2 "$@"
