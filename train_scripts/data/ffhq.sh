#!/usr/bin/env bash
# FFHQ at 256x256: 70,000 faces, scaled with a box filter.
# --source is the folder images1024x1024 of https://github.com/NVlabs/ffhq-dataset, or a zip of it.
# Usage: bash train_scripts/data/ffhq.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare ffhq256.zip 'the folder images1024x1024 of FFHQ' --preset=ffhq256 "$@"
