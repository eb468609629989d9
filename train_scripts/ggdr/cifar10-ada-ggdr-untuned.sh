#!/usr/bin/env bash
# ADA+GGDR on CIFAR-10, unconditional, with StyleGAN2's own D, mapping network and regularisers.
# Published (GGDR, Table 2), perhaps with these settings: FID 2.15, IS 10.02. See the README here.
# Usage: bash train_scripts/ggdr/cifar10-ada-ggdr-untuned.sh [--data=PATH] [any option of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

train cifar10 --cfg=cifarbaseline --method=ggdr --ggdr-res=8 --lambda-fake=10 "$@"
