#!/usr/bin/env bash
# From a fresh checkout to a trained GLeaD model, its score and its samples. It needs only Python 3.10 or later.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DEFAULT_KIMG_CPU=90
DEFAULT_KIMG_GPU=1000
NUM_SHAPES=10000
METRIC=fid1k_full

usage() {
    cat <<EOF
Usage: bash train_scripts/quickstart.sh [--data=FOLDER|ZIP] [--dir=DIR] [--kimg=K]

Installs the requirements into .venv, then trains GLeaD on small images, scores it as it learns, and draws a picture of
it. Steps whose result exists are skipped, so the same command resumes after an interruption.

  --data=FOLDER|ZIP  Your own images, of any size: they are cropped and scaled to 32x32, to 64x64 with a GPU.
                     [default: drawn shapes of 16x16, 64x64 with a GPU]
  --dir=DIR          Folder for all results.  [default: quickstart]
  --kimg=K           Train on K thousand images.  [default: $DEFAULT_KIMG_CPU without a GPU, $DEFAULT_KIMG_GPU with one]

Environment: $PYTHON_VARIABLE
EOF
}

parse_arguments() {
    DATA='' DIR=$REPO/quickstart KIMG=''
    local argument
    for argument in "$@"; do
        case $argument in
            --data=?*) DATA=$(absolute "${argument#*=}") ;;
            --dir=?*) DIR=$(absolute "${argument#*=}") ;;
            --kimg=?*) KIMG=${argument#*=} ;;
            -h | --help) usage && exit 0 ;;
            *) printf 'Unknown argument: %s\n\n' "$argument" >&2 && usage >&2 && exit 2 ;;
        esac
    done
    if [[ -n $KIMG && ! $KIMG =~ ^[1-9][0-9]{0,5}$ ]]; then
        printf -- '--kimg=%s: expected a whole number from 1 to 999999\n' "$KIMG" >&2
        exit 2
    fi
    [[ -z $DATA || -e $DATA ]] || die "--data=$DATA: there is no such folder or zip"
    DIR=${DIR#"$REPO"/}  # commands are shown as they can be typed in the repository
}

absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# step RESULT TITLE COMMAND...: run the command unless RESULT exists. The command and its output go to $RECORD. On a
# terminal, stderr is shown instead. If the command fails, print it and how to resume.
step() {
    local result=$1 title=$2 status=0 shown
    shift 2
    if [[ -n $result && -e $result ]]; then
        printf '%s: done before\n' "$title"
        return
    fi
    printf '%s\n' "$title"
    printf -v shown ' %q' "$@"
    printf '$%s\n' "$shown" >>"$RECORD"
    if [[ -t 2 ]]; then
        "$@" >>"$RECORD" || status=$?
    else
        "$@" >>"$RECORD" 2>&1 || status=$?
    fi
    if ((status == 130)); then
        die_interrupted
    elif ((status != 0)); then
        [[ -t 2 ]] || tail -n 3 "$RECORD" >&2
        printf '\nThis command failed with status %d, see %s:\n %s\n' "$status" "$RECORD" "$shown" >&2
        printf 'Mend the cause, then start %s again: what is done is kept.\n' "$0" >&2
        exit "$status"
    fi
}

# Set SNAPSHOT to the network pickle after $KIMG of the newest run that has one, or to nothing.
find_snapshot() {
    local candidate name
    printf -v name 'network-snapshot-%06d.pkl' "$KIMG"
    SNAPSHOT=''
    for candidate in "$DIR"/runs/[0-9][0-9][0-9][0-9][0-9]-*/"$name"; do
        if [[ -e $candidate ]]; then
            SNAPSHOT=$candidate
        fi
    done
}

# Set KIMG unless it was given, RESOLUTION, and SPEED: options for the size of networks and the number of processes.
choose_sizes() {
    if [[ $("$PYTHON" -c 'import torch; print(torch.cuda.is_available())') == True ]]; then
        KIMG=${KIMG:-$DEFAULT_KIMG_GPU} RESOLUTION=64
        SPEED=(--cbase=8192 --cmax=128)
        return
    fi
    KIMG=${KIMG:-$DEFAULT_KIMG_CPU} RESOLUTION=16
    [[ -z $DATA ]] || RESOLUTION=32
    SPEED=(--device=cpu --fp32=true --cbase="$((32 * RESOLUTION))")    # 32 channels at full resolution
    if (($(getconf _NPROCESSORS_ONLN) > 1)); then
        SPEED+=(--gpus=2)  # two processes on two cores
    fi
}

parse_arguments "$@"
trap die_interrupted INT
setup_python
cd "$REPO"
choose_sizes
mkdir -p "$DIR"
RECORD=$DIR/log.txt

step "$DIR/shapes.zip" "Draw $NUM_SHAPES images of shapes" \
    "$PYTHON" dataset_tool.py --source=synthetic:simple --resolution="$RESOLUTION" --max-images="$NUM_SHAPES" \
    --dest="$DIR/shapes.zip"
IMAGES=$DIR/shapes.zip LABELS=true    # labels make training on shapes several times faster
if [[ -n $DATA ]]; then
    IMAGES=$DIR/images.zip LABELS=false
    step "$IMAGES" 'Prepare your images' \
        "$PYTHON" dataset_tool.py --source="$DATA" --transform=center-crop --color=rgb --resolution="$RESOLUTION" \
        --dest="$IMAGES"
fi
step "$DIR/detector.safetensors" 'Train the detector, a small net in whose features samples are scored' \
    "$PYTHON" feature_net.py --data="$DIR/shapes.zip" --out="$DIR/detector.safetensors" --epochs=2

find_snapshot
step "$SNAPSHOT" "Train GLeaD on $KIMG thousand images; status and scores so far: $DIR/log.txt" \
    "$PYTHON" train.py --outdir="$DIR/runs" --cfg=quickstart --method=glead --aug=noaug --data="$IMAGES" \
    --cond="$LABELS" --kimg="$KIMG" --perceptual=mse --lambda-real=50 --lambda-fake=15 --res-g="$((RESOLUTION / 2))" \
    --res-decoder="$RESOLUTION" --detector="$DIR/detector.safetensors" --metrics="$METRIC" "${SPEED[@]}"
find_snapshot
[[ -n $SNAPSHOT ]] || die "train.py left no snapshot of $KIMG kimg under $DIR/runs: see the log.txt there"
RUN=$(dirname "$SNAPSHOT")

step '' 'Draw what happened' \
    "$PYTHON" plot_runs.py "$RUN" --pictures --out="$RUN/story.png"

printf 'Look at %s, then open %s\n' "$RUN/story.png" "$RUN/report.html"
printf 'The model: %s\n' "$SNAPSHOT"
tail -n 1 "$RECORD"    # the scores, by plot_runs.py
