#!/usr/bin/env bash
# AFHQ Wild at 512x512: the training images.
# --source is the folder afhq/train/wild of https://github.com/clovaai/stargan-v2 (its first version, not v2).
# Usage: bash train_scripts/data/afhq-wild.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare afhqwild512.zip 'the folder afhq/train/wild' --preset=afhq "$@"
