#!/usr/bin/env bash
# Train all methods and rivals, one after the other, on the same data with the same settings and seed.
# Usage: bash train_scripts/rivals.sh [--outdir=DIR] [--data=PATH] [--methods=NAME,NAME,...] [any option of train.py]
# Each run is in DIR/METHOD. The same command resumes the run that was interrupted, and skips runs that are finished.
# The default is CIFAR-10 with ADA, as published. It takes days on two GPUs for each method.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

METHODS=stylegan2,ggdr,glead,glead+ggdr,stylegan2+wgan-gp,stylegan2+relativistic,stylegan2+centring,stylegan2+zcr
METHODS+=,stylegan2+ar,stylegan2+fsmr,stylegan2+pa,stylegan2+unet,stylegan2+latent,stylegan2+contrad
METHODS+=,stylegan2+cross-scale,glead+centring,glead+relativistic,glead+masked,glead+through-g,glead+g-features
METHODS+=,glead+edited,glead+ada-lambda,glead+lambda-schedule

offer_help "$@"
trap die_interrupted INT
outdir=$(last_value outdir "$@") || outdir=$REPO/runs/rivals
methods=$(last_value methods "$@") || methods=$METHODS
data=$(last_value data "$@") || data=$(find_data cifar10 cifar10)
said=()
for argument in "$@"; do
    case $argument in
        --outdir=* | --methods=* | --data=*) ;;
        --outdir | --methods | --data) die "$argument: give its value after =, as in $argument=VALUE" ;;
        --method | --method=*) die "$argument: name what to train by --methods=NAME,NAME,..." ;;
        *) said+=("$argument") ;;
    esac
done
setup_python
IFS=, read -r -a names <<<"$methods"
for name in "${names[@]}"; do
    outcome=$outdir/$name/outcome.txt
    if [[ -e $outcome && $(<"$outcome") == finished ]]; then
        printf '\n== %s: done before (%s)\n' "$name" "$outcome" >&2
        continue
    fi
    printf '\n== %s\n' "$name" >&2
    mkdir -p "$outdir/$name"
    "$PYTHON" "$REPO/train.py" --outdir="$outdir/$name" --outcome="$outcome" --data="$data" --cfg=cifar --aug=ada \
        --kimg=100000 --metrics=fid50k_full,is50k --seed=0 ${said[@]+"${said[@]}"} --method="$name"
    if [[ -e $outcome && $(<"$outcome") == stopped ]]; then
        die_interrupted
    fi
done
