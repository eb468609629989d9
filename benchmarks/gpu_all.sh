#!/usr/bin/env bash
# Everything that is worth knowing about a GPU that has not been seen before, in under nine minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    cat <<'END'
Usage: [OUT=DIR] [PYTHON=python] bash benchmarks/gpu_all.sh [--cpu-rehearsal] [--only=STEP,STEP,...]

Builds and tests the kernels, runs the tests that need a GPU, times operations, training steps, data and metrics, trains
and goes on with the run, and profiles an iteration. Each step has a time limit of its own and leaves its results behind
as it ends; one that fails does not stop the others. Needs no network.

  --cpu-rehearsal  All steps at tiny sizes on the CPU, to try out this script.
  --only=STEPS     These alone.

Environment:
  OUT        Folder of the results.  [default: benchmarks/results]
  PYTHON     Interpreter with the packages of requirements.txt.  [default: python3]
  TOTAL_SEC  Time for everything; what does not fit any more is left out.  [default: 530]

Results: STEP-DEVICE.json for each step with figures; gpu_all-DEVICE.txt has all output and ends with a summary.
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
OUT=${OUT:-benchmarks/results} PYTHON=${PYTHON:-python3} TOTAL_SEC=${TOTAL_SEC:-530}
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
    STEP=(--size=paper256 --batch=64 --perceptual=random-vgg --repeats=3)
    BASELINE=(--baseline=straightforward) HALF=(--half=float16,bfloat16)
    CIFAR=(--size=cifar --half=float16,bfloat16 --perceptual=random-vgg --repeats=5)
    BUILD=() OPS=(--repeats=7 --baseline=native) DATA=(--containers=zip --workers=0,4 --repeats=3 --seconds=0.5)
    METRICS=(--resolution=256 --cbase=16384 --cmax=512 --features=2048 --images=1024 --neighbours=20000 --root=512
        --workers=4 --threads=4)
    IMAGES=(--resolution=64 --max-images=1000)    # the pictures of a run take longer than its training
    TRAIN=(--cfg=paper256 --batch=32 --batch-gpu=8 --tick=1 --snap=2 --metrics=fid1k_full) KIMG=2 MORE_KIMG=4
    PROFILE=()
else
    STEP=(--size=small --methods=glead --batch=4 --repeats=1) BASELINE=(--baseline=straightforward) HALF=()
    CIFAR=(--size=small --methods=stylegan2 --batch=4 --repeats=1)
    BUILD=(--arch=80) OPS=(--repeats=3 --shapes=1 --modes=forward --baseline=reference)
    DATA=(--resolutions=32 --containers=zip --workers=1 --images=64 --repeats=1 --seconds=0.2)
    METRICS=(--cbase=256 --cmax=8 --features=16 --files=64 --images=64 --neighbours=200 --root=32 --repeats=1)
    IMAGES=(--resolution=16 --max-images=64)
    TRAIN=(--cfg=auto --cbase=64 --cmax=8 --map-depth=1 --batch=8 --batch-gpu=8 --mbstd-group=4 --tick=0.016 --snap=2
        --workers=0 --metrics=none) KIMG=0.032 MORE_KIMG=0.064
    PROFILE=(--resolution=16 --cfg=auto --batch=4 --iterations=1 --option=--cbase=64 --option=--cmax=8
        --option=--mbstd-group=4)
fi

# ----------------------------------------------------------------------------------------------------------------------

say 'Device: %s\n' "$SLUG"
step versions 20 "$PYTHON" -c "$(versions)"
if [[ -z $REHEARSAL ]]; then
    step nvidia-smi 10 nvidia-smi
fi
step ops-build 110 "$PYTHON" -m torch_utils.ops build "${BUILD[@]}"
step ops-status 60 "$PYTHON" -m torch_utils.ops status
if wanted gpu-tests && ! "$PYTHON" -c 'import pytest' >/dev/null 2>&1; then
    say '\n== gpu-tests\npytest is not installed: left out\n'
else
    mapfile -t TESTS < <(grep -rl 'mark\.gpu' tests --include='test_*.py')  # to import all others takes long
    # Interrupted as by Ctrl-C before its time is over, pytest still says what failed.
    step gpu-tests 100 timeout --signal=INT 90 "$PYTHON" -m pytest -q -p no:xdist -m gpu "${TESTS[@]}"
fi
step ops 90 "$PYTHON" benchmarks/ops.py --device="$DEVICE" "${OPS[@]}" --out="$(json ops)"
# The comparison with the plain way takes most of the time: once is enough.
step step-nchw 120 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${STEP[@]}" "${BASELINE[@]}" \
    --out="$(json step-nchw)"
step step-nhwc 90 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${STEP[@]}" "${HALF[@]}" --channels-last \
    --out="$(json step-nhwc)"
step step-cifar 40 "$PYTHON" benchmarks/step.py --device="$DEVICE" "${CIFAR[@]}" --out="$(json step-cifar)"
step data 40 "$PYTHON" benchmarks/data.py "${DATA[@]}" --baseline --out="$(json data)"
step metrics 45 "$PYTHON" benchmarks/metrics.py --device="$DEVICE" "${METRICS[@]}" --baseline --out="$(json metrics)"
step images 20 "$PYTHON" dataset_tool.py --source=synthetic "${IMAGES[@]}" --dest="$WORK/images.zip"
step detector 30 "$PYTHON" benchmarks/metrics.py --only-detector="$WORK/detector.pt"
TRAINING=("$PYTHON" train.py --outdir="$WORK/runs" --data="$WORK/images.zip" --device="$DEVICE" --method=glead --aug=ada
    --perceptual=random-vgg --detector="$WORK/detector.pt" --trust-net "${TRAIN[@]}")
step train 60 "${TRAINING[@]}" --kimg=$KIMG
RUN=$(find "$WORK/runs" -mindepth 1 -maxdepth 1 -name '00000-*' 2>/dev/null)
step train-on 40 "${TRAINING[@]}" --kimg=$MORE_KIMG --resume="$RUN"
step profile 60 "$PYTHON" benchmarks/profile_step.py --device="$DEVICE" "${PROFILE[@]}" --out="$(json profile)"
exit $((BAD > 0))
