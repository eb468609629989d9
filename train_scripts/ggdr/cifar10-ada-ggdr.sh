#!/usr/bin/env bash
# ADA+GGDR on CIFAR-10, unconditional, with the settings tuned for it.
# Published (GGDR, Table 2): FID 2.15, IS 10.02. See the README here for what is not known.
# Usage: bash train_scripts/ggdr/cifar10-ada-ggdr.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train cifar10 --method=ggdr --ggdr-res=8 --lambda-fake=10 "$@"
