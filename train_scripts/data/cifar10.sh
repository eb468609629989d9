#!/usr/bin/env bash
# CIFAR-10: the 50,000 training images, 32x32, with labels.
# --source is cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html.
# Usage: bash train_scripts/data/cifar10.sh --source=PATH [--dest=PATH] [any option of dataset_tool.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

prepare cifar10.zip 'cifar-10-python.tar.gz' "$@"
