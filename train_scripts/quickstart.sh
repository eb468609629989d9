#!/usr/bin/env bash
# From a fresh checkout to a trained GLeaD model, its score and its samples. Needs Python 3.10 or later, nothing else.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DEFAULT_KIMG_CPU=18
DEFAULT_KIMG_GPU=1000
RESOLUTION=32
NUM_SHAPES=20000
METRIC=fid1k_full

usage() {
    cat <<EOF
Usage: bash train_scripts/quickstart.sh [--data=FOLDER|ZIP] [--dir=DIR] [--kimg=K]

Installs what is needed into .venv, then trains GLeaD on small images, scores the result and draws samples.
Steps whose result is there already are skipped, so the same command goes on after an interruption.

  --data=FOLDER|ZIP  Your own images, of any size: they are cropped and scaled to ${RESOLUTION}x$RESOLUTION.
                     [default: drawn shapes, made by dataset_tool.py]
  --dir=DIR          Where everything goes.  [default: quickstart]
  --kimg=K           Train on K thousand images.  [default: $DEFAULT_KIMG_CPU without a GPU, $DEFAULT_KIMG_GPU with one]

Environment: GLEAD_PYTHON = an interpreter that has the packages of requirements.txt, used instead of .venv.
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

# step RESULT TITLE [--output=FILE] COMMAND...: run the command unless RESULT exists.
step() {
    local result=$1 title=$2
    shift 2
    if [[ -n $result && -e $result ]]; then
        printf '\n== %s: done before (%s)\n' "$title" "$result" >&2
    else
        printf '\n== %s\n' "$title" >&2
        run "$@"
    fi
}

# Set SNAPSHOT to the last of a run of $KIMG; the newest such run wins, empty if there is none.
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

# show MEANING FILE...: name the files that exist; of many, the pattern's first and last.
show() {
    local meaning=$1 files=("${@:2}")
    if [[ -e ${files[0]} ]]; then
        printf '  %-44s %s\n' "$meaning" "${files[0]}"
        if ((${#files[@]} > 1)); then
            printf '  %-44s %s\n' '' "... ${files[-1]}"
        fi
    fi
}

parse_arguments "$@"
trap die_interrupted INT
setup_python
cd "$REPO"
if [[ -z $KIMG ]]; then
    KIMG=$DEFAULT_KIMG_CPU
    if [[ $("$PYTHON" -c 'import torch; print(torch.cuda.is_available())') == True ]]; then
        KIMG=$DEFAULT_KIMG_GPU
    fi
fi
mkdir -p "$DIR"

step "$DIR/shapes.zip" 'Draw a labelled set of shapes' \
    "$PYTHON" dataset_tool.py --source=synthetic --resolution="$RESOLUTION" --max-images="$NUM_SHAPES" \
    --dest="$DIR/shapes.zip"
IMAGES=$DIR/shapes.zip
if [[ -n $DATA ]]; then
    IMAGES=$DIR/images.zip
    step "$IMAGES" 'Prepare your images' \
        "$PYTHON" dataset_tool.py --source="$DATA" --transform=center-crop --color=rgb --resolution="$RESOLUTION" \
    --dest="$IMAGES"
fi
step "$DIR/perceptual.safetensors" 'Train the perceptual net, which compares images with what D and G rebuild of them' \
    "$PYTHON" feature_net.py --data="$DIR/shapes.zip" --out="$DIR/perceptual.safetensors" --width=12 --epochs=4 --seed=1
step "$DIR/detector.safetensors" 'Train the detector, in whose features samples are scored' \
    "$PYTHON" feature_net.py --data="$DIR/shapes.zip" --out="$DIR/detector.safetensors" --seed=2

find_snapshot
step "$SNAPSHOT" "Train GLeaD on $KIMG thousand images" \
    "$PYTHON" train.py --outdir="$DIR/runs" --cfg=quickstart --method=glead --aug=noaug --data="$IMAGES" \
    --kimg="$KIMG" --perceptual="$DIR/perceptual.safetensors" --detector="$DIR/detector.safetensors" --metrics="$METRIC"
find_snapshot
[[ -n $SNAPSHOT ]] || die "train.py left no snapshot of $KIMG kimg under $DIR/runs: see the log.txt there"
RUN=$(dirname "$SNAPSHOT")

step "$RUN/scores.txt" 'Score samples' --output="$RUN/scores.txt" \
    "$PYTHON" calc_metrics.py --network="$SNAPSHOT" --data="$IMAGES" --detector="$DIR/detector.safetensors" --metrics="$METRIC"
step "$RUN/samples/grid.png" 'Draw samples' \
    "$PYTHON" generate.py --network="$SNAPSHOT" --seeds=0-63 --outdir="$RUN/samples" --grid=auto

printf '\nWhere to look:\n'
show 'Real images' "$RUN/reals.png"
show 'Samples over time' "$RUN"/fakes*.png
show 'Images, and what D and G rebuild of them' "$RUN"/reconstructions*.png
show 'Samples of the finished model' "$RUN/samples/grid.png"
show 'The model' "$SNAPSHOT"
show "Score ($METRIC in this detector, no published FID)" "$RUN/scores.txt"
cat "$RUN/scores.txt"
