# Functions that the scripts share: Python and its packages, running a command, published settings. Sourced, not run.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DATASETS=${GLEAD_DATA:-$REPO/datasets}  # the folder of the prepared data sets

# Environment variables, as --help explains them.
PYTHON_VARIABLE='GLEAD_PYTHON = interpreter with the packages of requirements.txt, used instead of .venv'
VARIABLES=("GLEAD_DATA = folder of the prepared data sets  [default: $REPO/datasets]" "$PYTHON_VARIABLE")

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

die_interrupted() {
    printf '\nInterrupted. Start %s again to resume: what is done is kept.\n' "$0" >&2
    exit 130
}

# Print the first Python of version 3.10 or later.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# Set PYTHON to $GLEAD_PYTHON or the Python of $REPO/.venv, which is made, with requirements.txt, if it is missing.
setup_python() {
    if [[ -n ${GLEAD_PYTHON:-} ]]; then
        command -v "$GLEAD_PYTHON" >/dev/null || die "GLEAD_PYTHON=$GLEAD_PYTHON is no program"
        PYTHON=$GLEAD_PYTHON
        return
    fi
    local base venv=$REPO/.venv wanted
    local stamp=$venv/requirements.stamp  # checksum of the requirements that were installed last
    PYTHON=$venv/bin/python
    wanted=$(cksum <"$REPO/requirements.txt")
    if [[ -x $PYTHON && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then  # there is no .venv, or making it was interrupted
        base=$(find_python) || die 'No Python 3.10 or later found (looked for python3, python3.10 ... 3.14, python):' \
            'install one, or set GLEAD_PYTHON to an interpreter that has the packages of requirements.txt.'
        printf 'Making %s with %s\n' "$venv" "$base" >&2
        "$base" -m venv "$venv" || die "$base can't make the virtual environment $venv (see above)." \
            'On Debian and Ubuntu, install the package python3-venv, then start again.'
    fi
    printf 'Installing requirements.txt into %s (PyTorch is large: this takes some minutes)\n' "$venv" >&2
    "$PYTHON" -m pip install --disable-pip-version-check -r "$REPO/requirements.txt" >&2 ||
        die 'Installing requirements.txt failed (see above): check network and disk space, then start again.'
    printf '%s\n' "$wanted" >"$stamp"
}

# last_value NAME ARGUMENT...: print the value of the last --NAME=VALUE or --NAME VALUE; fail if there is none.
last_value() {
    local name=--$1 argument previous='' value='' status=1
    shift
    for argument in "$@"; do
        if [[ $argument == "$name"=* ]]; then
            value=${argument#*=} status=0
        elif [[ $previous == "$name" ]]; then
            value=$argument status=0
        fi
        previous=$argument
    done
    printf '%s\n' "$value"
    return "$status"
}

# offer_help ARGUMENT...: if --help is an argument, print the comment at the top of the script and VARIABLES, and exit.
offer_help() {
    local argument
    for argument in "$@"; do
        if [[ $argument == -h || $argument == --help ]]; then
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
            printf '\nEnvironment:\n'
            printf '  %s\n' "${VARIABLES[@]}"
            exit 0
        fi
    done
}

# run_python ARGUMENT...: print the command, then run it in place of this script.
run_python() {
    printf '$' >&2
    printf ' %q' "$PYTHON" "$@" >&2
    printf '\n' >&2
    exec "$PYTHON" "$@"
}

# find_data NAME SCRIPT: print the path of a data set, a zip or a folder. If it is missing, say that SCRIPT makes it.
find_data() {
    local path
    for path in "$DATASETS/$1.zip" "$DATASETS/$1"; do
        if [[ -e $path ]]; then
            printf '%s\n' "$path"
            return
        fi
    done
    die "No data set at $DATASETS/$1.zip: make it with 'bash train_scripts/data/$2.sh --source=DOWNLOAD'," \
        'or say where it is: --data=PATH for this one, GLEAD_DATA=FOLDER for all.'
}

# train DATASET ARGUMENT...: run train.py with the settings of the published runs on DATASET. Arguments override them.
train() {
    local name=$1 made_by=$1 settings data
    shift
    offer_help "$@"
    case $name in
        ffhq256) made_by=ffhq settings=(--cfg=paper256 --gpus=8 --aug=noaug --mirror=true --kimg=25000
            --metrics=fid50k_full,pr50k3_full) ;;
        church256) made_by=lsun-church settings=(--cfg=paper256 --gpus=8 --aug=noaug --mirror=false --kimg=50000
            --metrics=fid50k_full,pr50k3_full) ;;
        bedroom256) made_by=lsun-bedroom settings=(--cfg=paper256 --gpus=8 --aug=noaug --mirror=false --kimg=50000
            --metrics=fid50k,pr50k3) ;;
        cifar10) settings=(--cfg=cifar --gpus=2 --aug=ada --cond=false --mirror=false --kimg=100000
            --metrics=fid50k_full,is50k) ;;
        afhqcat512 | afhqdog512 | afhqwild512) made_by=${name/afhq/afhq-} made_by=${made_by%512}
            settings=(--cfg=paper512 --gpus=8 --aug=ada --mirror=true --kimg=25000
            --metrics=fid50k_full,pr50k3_full) ;;
        *) die "common.sh knows no data set named $name" ;;
    esac
    data=$(last_value data "$@") || data=$(find_data "$name" "$made_by")
    setup_python
    run_python "$REPO/train.py" --outdir="$REPO/runs" --data="$data" "${settings[@]}" "$@"
}

# prepare NAME DOWNLOAD ARGUMENT...: run dataset_tool.py with these arguments, to make the data set $DATASETS/NAME.
prepare() {
    local name=$1 download=$2 source
    shift 2
    offer_help "$@"
    source=$(last_value source "$@") || die "--source is missing: give the path of $download"
    [[ -e $source ]] || die "--source=$source: there is no such file or folder"
    setup_python
    last_value dest "$@" >/dev/null || mkdir -p "$DATASETS"
    run_python "$REPO/dataset_tool.py" --dest="$DATASETS/$name" "$@"
}
