#!/usr/bin/env bash
# train.py on several machines, started by torchrun: run the same command on each of them.
#
# Usage: bash train_scripts/cluster/several-nodes.sh --nodes=N --master=HOST[:PORT] [--node=K] [--per-node=N]
#            [--id=NAME] [--linger=SEC] [--torchrun=OPTION]... [any option of train.py]
#
#   --nodes=N             Machines.
#   --master=HOST[:PORT]  Where they meet: one of them, by a name or an address that all others reach.  [port: 29500]
#   --node=K              This machine's number, 0 for HOST, where the log is then printed.  [default: they find out, in
#                         any order, by torchrun's c10d rendezvous; then the command is the very same on all]
#   --per-node=N          Processes, one for each GPU.  [default: as many as there are GPUs]
#   --id=NAME             Keeps c10d rendezvous of several jobs on one HOST apart.  [default: glead]
#   --linger=SEC          End torchrun so long after its last process ended; it may wait for machines that are out of
#                         reach, and for others to finish.  [default: 330, torchrun's own 300 and some]
#   --torchrun=OPTION     Any option of torchrun, such as --torchrun=--log-dir=logs; may be given several times.
#
# The data, --outdir and this checkout must be the same files on all machines: a shared file system. Leave out --gpus;
# machines times processes must be a power of two. Ctrl-C, SIGTERM and SIGUSR1 to this script, on any one machine, let
# all finish the iteration and save; the same commands go on from there. Where a machine has several networks,
# GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface to use, and --torchrun=--local-addr=ADDRESS what others
# reach this machine by. Example:
#
#   bash train_scripts/cluster/several-nodes.sh --nodes=2 --master=node1 --data=datasets/church256.zip --cfg=paper256 \
#       --aug=noaug --kimg=50000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

show_help "$@"
split_options nodes master node per-node id linger -- "$@"
NODES=${OWN[nodes]:-} MASTER=${OWN[master]:-} NODE=${OWN[node]:-} PER_NODE=${OWN[per-node]:-gpu} LINGER=${OWN[linger]:-330}
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
