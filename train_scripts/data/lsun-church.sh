#!/usr/bin/env bash
# LSUN Church at 256x256: about 126,000 churches.
# --source is the folder church_outdoor_train_lmdb, unpacked from what https://github.com/fyu/lsun downloads.
# Usage: bash train_scripts/data/lsun-church.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare church256.zip 'the folder church_outdoor_train_lmdb' --preset=lsun256 "$@"
