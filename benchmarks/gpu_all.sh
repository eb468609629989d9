#!/usr/bin/env bash
# Everything that is worth knowing about a GPU that has not been seen before, in eight minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    cat <<'END'
Usage: [OUT=DIR] [PYTHON=python] bash benchmarks/gpu_all.sh [--cpu-rehearsal] [--only=STEP,STEP,...]

Builds and tests the kernels, runs the tests that need a GPU, times training steps and operations, profiles an iteration,
shows where the time of a start goes, and trains for a minute. Then, while there is time: metrics, data, resuming. Each
step has a time limit of its own and leaves its results behind as it ends; one that fails does not stop the others. Needs
no network.

  --cpu-rehearsal  All steps at tiny sizes on the CPU, to try out this script.
  --only=STEPS     These alone.

Environment:
  OUT        Folder of the results.  [default: benchmarks/results]
  PYTHON     Interpreter with the packages of requirements.txt.  [default: python3]
  TOTAL_SEC  Time for everything; what does not fit any more is left out.  [default: 480]

Results: STEP-DEVICE.json for each step with figures; pictures of the training; gpu_all-DEVICE.txt has all output, and
ends with a summary.
END
}

REHEARSAL='' ONLY=''
for argument in "$@"; do
    case $argument in
        --cpu-rehearsal) REHEARSAL=1 ;;
        --only=?*) ONLY=,${argument#*=}, ;;
        -h | --help) usage && exit 0 ;;
        *) printf 'Unknown argument: %s\n\n' "$argument" >&2 && usage >&2 && exit 2 ;;
    esac
done
OUT=${OUT:-benchmarks/results} PYTHON=${PYTHON:-python3} TOTAL_SEC=${TOTAL_SEC:-480}
SECONDS=0 NAMES=() STATES=() TIMES=() BAD=0
export PYTHONUNBUFFERED=1  # what a step that runs out of time has printed is kept

if [[ -n $REHEARSAL ]]; then
    DEVICE=cpu SLUG=cpu-rehearsal
    export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=''
else
    DEVICE=cuda
    SLUG=$("$PYTHON" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))') || {
        printf '%s has no PyTorch that sees a GPU (see above): set PYTHON, or try --cpu-rehearsal\n' "$PYTHON" >&2
        exit 1
    }
fi
mkdir -p "$OUT" && WORK=$(mktemp -d) || exit 1
TRANSCRIPT=$OUT/gpu_all-$SLUG.txt
: >"$TRANSCRIPT" || exit 1

say() { printf "$@" | tee -a "$TRANSCRIPT"; }

finish() {
    local i
    say '\n%-28s %-16s %s\n' step result seconds
    for i in "${!NAMES[@]}"; do
        say '%-28s %-16s %s\n' "${NAMES[i]}" "${STATES[i]}" "${TIMES[i]}"
    done
    say 'Together %s s; results are in %s\n' "$SECONDS" "$OUT"
    rm -rf "$WORK"
}
trap finish EXIT
trap 'exit 130' INT TERM

wanted() { [[ -z $ONLY || $ONLY == *,$1,* ]]; }

# step NAME LIMIT COMMAND...: run it for at most LIMIT seconds.
step() {
    local name=$1 limit=$2 start=$SECONDS status=0 state=ok
    shift 2
    wanted "$name" || return
    if ((limit > TOTAL_SEC - SECONDS)); then
        limit=$((TOTAL_SEC - SECONDS))
    fi
    say '\n== %s\n' "$name"
    if ((limit < 5)); then
        state='no time left'
    else
        timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$TRANSCRIPT"
        status=${PIPESTATUS[0]}
        case $status in
            0) ;;
            124 | 137) state='out of time' ;;
            *) state="failed ($status)" ;;
        esac
    fi
    if [[ $state != ok ]]; then
        BAD=$((BAD + 1))
    fi
    NAMES+=("$name") STATES+=("$state") TIMES+=($((SECONDS - start)))
}

# json NAME: where a step leaves its figures.
json() { printf '%s/%s-%s.json' "$OUT" "$1" "$SLUG"; }

versions() {
    cat <<'END'
import importlib.util, platform, re, torch
print(platform.platform(), "Python", platform.python_version(), "PyTorch", torch.__version__)
print("CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "devices", torch.cuda.device_count())
names = {"pillow": "PIL", "imageio-ffmpeg": "imageio_ffmpeg", "pytest-xdist": "xdist"}
wanted = [re.split("[<>=]", line.strip())[0] for line in open("requirements.txt") if line.strip()]
print("not installed:", ", ".join(n for n in wanted if not importlib.util.find_spec(names.get(n, n))) or "nothing")
END
}

# ----------------------------------------------------------------------------------------------------------------------
# Sizes: GPU, then rehearsal.

if [[ -z $REHEARSAL ]]; then
    # paper256 in one part: all methods by every path, then the plain ways of computing, which take most of the time.
    STEP=(--size=paper256 --batch=64 --perceptual=random-vgg --repeats=3) METHODS=() PATHS=(--half=float16,bfloat16
        --format=nchw,nhwc) BASELINES=(--methods=stylegan2,glead
        --baseline=native-convolutions,cudnn-heuristics,straightforward)
    CIFAR=(--size=cifar --half=float16,bfloat16 --format=nchw,nhwc --perceptual=random-vgg --repeats=5)
    BUILD=() OPS=(--repeats=7 --baseline=native) DATA=(--containers=zip --workers=0,4 --repeats=3 --seconds=0.5)
    METRICS=(--resolution=256 --cbase=16384 --cmax=512 --features=2048 --images=1024 --neighbours=20000 --root=512
        --workers=4 --threads=4)
    IMAGES=(--resolution=256 --max-images=300) START=(--cfg=paper256 --batch=64 --batch-gpu=64 --aug=noaug --kimg=0.128)
    SCENES=(--resolution=64 --max-images=20000) TRAIN=(--cfg=auto --batch=64 --batch-gpu=64 --tick=2 --snap=5
        --metrics=fid1k_full --kimg=1000) TRAIN_SEC=60 MORE_SEC=25
    PROFILE=()
else
    STEP=(--size=small --batch=4 --repeats=1) METHODS=(--methods=glead) PATHS=(--format=nchw,nhwc)
    BASELINES=(--methods=stylegan2 --baseline=native-convolutions,straightforward)
    CIFAR=(--size=small --methods=stylegan2 --batch=4 --repeats=1)
    BUILD=(--arch=80) OPS=(--repeats=3 --shapes=1 --modes=forward --baseline=reference)
    DATA=(--resolutions=32 --containers=zip --workers=1 --images=64 --repeats=1 --seconds=0.2)
    METRICS=(--cbase=256 --cmax=8 --features=16 --files=64 --images=64 --neighbours=200 --root=32 --repeats=1)
    TINY=(--cfg=auto --cbase=64 --cmax=8 --map-depth=1 --batch=8 --batch-gpu=8 --mbstd-group=4 --workers=0
        --metrics=none)
    IMAGES=(--resolution=16 --max-images=64) START=("${TINY[@]}" --kimg=0.016)
    SCENES=("${IMAGES[@]}") TRAIN=("${TINY[@]}" --tick=0.064 --snap=1 --kimg=1000) TRAIN_SEC=12 MORE_SEC=12
    PROFILE=(--resolution=16 --cfg=auto --batch=4 --iterations=1 --option=--cbase=64 --option=--cmax=8
        --option=--mbstd-group=4)
fi

# Puts the seconds since the start before each line: where the time of a command goes.
STAMPED='"$@" 2>&1 | while IFS= read -r line; do printf "%4d s  %s\n" "$SECONDS" "$line"; done; exit "${PIPESTATUS[0]}"'
# Trains for so many seconds and then asks it to stop, as Ctrl-C does: the run saves, and can be resumed.
FOR_A_WHILE='timeout --signal=INT --foreground "$0" "$@"; status=$?; [[ $status == 0 || $status == 124 ]]'
pictures() {
    local run
    run=$(find "$WORK/runs" -mindepth 1 -maxdepth 1 -name '00000-*' 2>/dev/null)
    cp "$run/fakes_init.png" "$run/reals.png" "$run/log.txt" "$OUT" || return
    find "$run" -name 'fakes0*.png' -o -name 'reconstructions0*.png' | sort | tail -n 2 | xargs -I{} cp {} "$OUT"
}

# ----------------------------------------------------------------------------------------------------------------------

say 'Device: %s\n' "$SLUG"
step versions 20 "$PYTHON" -c "$(versions)"
if [[ -z $REHEARSAL ]]; then
    step nvidia-smi 10 nvidia-smi
fi
step ops-build 60 "$PYTHON" -m torch_utils.ops build "${BUILD[@]}"
step ops-status 20 "$PYTHON" -m torch_utils.ops status
if wanted gpu-tests && ! "$PYTHON" -c 'import pytest' >/dev/null 2>&1; then
    say '\n== gpu-tests\npytest is not installed: left out\n'
else
    mapfile -t TESTS < <(grep -rl 'mark\.gpu' tests --include='test_*.py')  # to import all others takes long
    # Interrupted as by Ctrl-C before its time is over, pytest still says what failed.
    step gpu-tests 100 timeout --signal=INT 90 "$PYTHON" -m pytest -q -p no:xdist -m gpu "${TESTS[@]}"
fi
step step 150 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${STEP[@]}" "${METHODS[@]}" "${PATHS[@]}" \
    --out="$(json step)"
step step-baselines 75 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${STEP[@]}" "${BASELINES[@]}" \
    --out="$(json step-baselines)"
step images 15 "$PYTHON" dataset_tool.py --source=synthetic "${IMAGES[@]}" --dest="$WORK/images.zip"
START+=(--device="$DEVICE" --method=stylegan2 --metrics=none --data="$WORK/images.zip" --outdir="$WORK/starts")
step start 45 bash -c "$STAMPED" - "$PYTHON" train.py "${START[@]}"
step start-nobench 30 bash -c "$STAMPED" - "$PYTHON" train.py "${START[@]}" --nobench=true --seed=1
step scenes 20 "$PYTHON" dataset_tool.py --source=synthetic "${SCENES[@]}" --dest="$WORK/scenes.zip"
step detector 15 "$PYTHON" benchmarks/metrics.py --only-detector="$WORK/detector.pt"
TRAINING=("$PYTHON" train.py --outdir="$WORK/runs" --data="$WORK/scenes.zip" --device="$DEVICE" --method=glead
    --aug=noaug --perceptual=random-vgg --detector="$WORK/detector.pt" --trust-net "${TRAIN[@]}")
step train $((TRAIN_SEC + 20)) bash -c "$FOR_A_WHILE" "$TRAIN_SEC" "${TRAINING[@]}"
if wanted train; then
    pictures || say 'the training left no pictures\n'
fi
step cifar 40 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${CIFAR[@]}" --out="$(json step-cifar)"
if [[ -z $REHEARSAL ]]; then
    step graphs 40 "$PYTHON" benchmarks/step.py --device=cuda --size=cifar --methods=stylegan2,glead \
        --perceptual=random-vgg --baseline=cuda-graphs --out="$(json step-graphs)"
fi
step ops 60 "$PYTHON" benchmarks/ops.py --device="$DEVICE" "${OPS[@]}" --out="$(json ops)"
step profile 40 "$PYTHON" benchmarks/profile_step.py --device="$DEVICE" "${PROFILE[@]}" --out="$(json profile)"
step train-on $((MORE_SEC + 20)) bash -c "$FOR_A_WHILE" "$MORE_SEC" "${TRAINING[@]}"
step metrics 45 "$PYTHON" benchmarks/metrics.py --device="$DEVICE" "${METRICS[@]}" --baseline --out="$(json metrics)"
step data 40 "$PYTHON" benchmarks/data.py "${DATA[@]}" --baseline --out="$(json data)"
exit $((BAD > 0))
