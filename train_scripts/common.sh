# What the scripts share: finding Python, the virtual environment, running a command. Sourced, not run.
#
# Environment:
#   GLEAD_PYTHON  use this interpreter, which has all of requirements.txt, instead of making .venv.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

die_interrupted() {
    printf '\nInterrupted. Start %s again to go on: what is done is kept.\n' "$0" >&2
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

# Set PYTHON to that of $REPO/.venv; make it and install requirements.txt unless that has been done.
setup_python() {
    if [[ -n ${GLEAD_PYTHON:-} ]]; then
        command -v "$GLEAD_PYTHON" >/dev/null || die "GLEAD_PYTHON=$GLEAD_PYTHON is no program"
        PYTHON=$GLEAD_PYTHON
        return
    fi
    local base venv=$REPO/.venv wanted
    local stamp=$venv/requirements.stamp  # the requirements that were installed last
    PYTHON=$venv/bin/python
    wanted=$(cksum <"$REPO/requirements.txt")
    if [[ -x $PYTHON && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then  # nothing there, or an interrupted attempt
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

# run [--output=FILE] COMMAND...: show the command, then run it. FILE gets a copy of its output, once it has succeeded.
# If it fails, say which one it was and how to go on.
run() {
    local output='' shown status=0
    if [[ $1 == --output=* ]]; then
        output=${1#*=}
        shift
    fi
    printf -v shown ' %q' "$@"
    printf '$%s\n' "$shown" >&2
    if [[ -z $output ]]; then
        "$@" || status=$?
    else
        { "$@" | tee "$output.part" && mv "$output.part" "$output"; } || status=$?
    fi
    if ((status == 130)); then
        die_interrupted
    elif ((status != 0)); then
        printf '\nThis command failed with status %d:\n %s\n' "$status" "$shown" >&2
        printf 'Mend the cause, then start %s again: what is done is kept.\n' "$0" >&2
        exit "$status"
    fi
}
