#!/usr/bin/env bash
# train.py on several machines, started by torchrun: run the same command on each of them.
#
# Usage: bash train_scripts/cluster/several-nodes.sh --nodes=N --master=HOST[:PORT] [--node=K] [--per-node=N]
#            [--id=NAME] [--linger=SEC] [--torchrun=OPTION]... [any option of train.py]
#
#   --nodes=N             Number of machines.
#   --master=HOST[:PORT]  The machine where all meet, by a name or an address that the others can reach.  [port: 29500]
#   --node=K              This machine's number, from 0 to N - 1. HOST must be 0, and prints the log.  [default: torchrun
#                         chooses it by c10d rendezvous; then the command is the same on all machines]
#   --per-node=N          Processes, one for each GPU.  [default: as many as there are GPUs]
#   --id=NAME             Distinguishes several jobs that meet at one HOST by c10d rendezvous.  [default: glead]
#   --linger=SEC          End torchrun this long after its last process. It may be waiting for machines that it lost, or
#                         that still work.  [default: 330, a little more than torchrun's own limit of 300]
#   --torchrun=OPTION     Any option of torchrun, such as --torchrun=--log-dir=logs; may be given several times.
#
# The data, --outdir and this checkout must be on a file system that all machines share. Leave out --gpus. The number of
# machines times processes must be a power of two. After Ctrl-C, SIGTERM or SIGUSR1 to this script on any machine, all
# machines finish the iteration and save. The same commands resume. If a machine has several networks,
# GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface to use, and --torchrun=--local-addr=ADDRESS gives the
# address by which the other machines reach this one. Example:
#
#   bash train_scripts/cluster/several-nodes.sh --nodes=2 --master=node1 --data=datasets/church256.zip --cfg=paper256 \
#       --aug=noaug --kimg=50000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

offer_help "$@"
split_options nodes master node per-node id linger -- "$@"
NODES=${OWN[nodes]:-} MASTER=${OWN[master]:-} NODE=${OWN[node]:-}
PER_NODE=${OWN[per-node]:-gpu} LINGER=${OWN[linger]:-330}
[[ -n $NODES ]] || die '--nodes is missing: say how many machines there are'
[[ -n $MASTER ]] || die '--master is missing: say at which machine they meet, as HOST or HOST:PORT'
check_number nodes "$NODES" 1
check_number linger "$LINGER" 1
[[ $PER_NODE == gpu ]] || check_number per-node "$PER_NODE" 1
[[ $MASTER =~ ^(.+):([0-9]+)$ ]] && HOST=${BASH_REMATCH[1]} PORT=${BASH_REMATCH[2]} || HOST=$MASTER PORT=29500
MEET=(--nnodes="$NODES" --nproc-per-node="$PER_NODE")
if [[ -n $NODE ]]; then
    check_number node "$NODE" 0
    ((NODE < NODES)) || die "--node=$NODE: expected a number from 0 to $((NODES - 1)), below --nodes"
    MEET+=(--node-rank="$NODE" --master-addr="$HOST" --master-port="$PORT")
else
    MEET+=(--rdzv-backend=c10d --rdzv-endpoint="$HOST:$PORT" --rdzv-id="${OWN[id]:-glead}")
fi
setup_python
launch "${MEET[@]}"
