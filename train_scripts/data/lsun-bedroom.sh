#!/usr/bin/env bash
# LSUN Bedroom at 256x256: about 3 million bedrooms, in a folder of zips with 100,000 each.
# --source is the folder bedroom_train_lmdb, unpacked from what https://github.com/fyu/lsun downloads.
# Usage: bash train_scripts/data/lsun-bedroom.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare bedroom256 'the folder bedroom_train_lmdb' --preset=lsun256 --shard-size=100000 "$@"
