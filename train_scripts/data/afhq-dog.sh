#!/usr/bin/env bash
# AFHQ Dog at 512x512: the training images.
# --source is the folder afhq/train/dog of https://github.com/clovaai/stargan-v2 (its first version, not v2).
# Usage: bash train_scripts/data/afhq-dog.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare afhqdog512.zip 'the folder afhq/train/dog' --preset=afhq "$@"
