#!/usr/bin/env bash
# train.py on all GPUs of one machine, started by torchrun. (train.py --gpus=N does the same by itself.)
#
# Usage: bash train_scripts/cluster/one-node.sh [--per-node=N] [--torchrun=OPTION]... [any option of train.py]
#
#   --per-node=N       Processes, one for each GPU.  [default: as many as there are GPUs]
#   --torchrun=OPTION  Any option of torchrun, such as --torchrun=--log-dir=logs; may be given several times.
#
# Leave out --gpus. After Ctrl-C, SIGTERM or SIGUSR1 to this script, train.py finishes its iteration and saves. The same
# command resumes. Example:
#
#   bash train_scripts/cluster/one-node.sh --data=datasets/church256.zip --cfg=paper256 --aug=noaug --kimg=50000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

offer_help "$@"
split_options per-node -- "$@"
PER_NODE=${OWN[per-node]:-gpu}
[[ $PER_NODE == gpu ]] || check_number per-node "$PER_NODE" 1
setup_python
launch --standalone --nproc-per-node="$PER_NODE"
