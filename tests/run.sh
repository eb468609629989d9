#!/usr/bin/env bash
# Run the tests on all cores, on a fresh machine too: makes .venv and installs requirements.txt first.
# Usage: bash tests/run.sh [arguments of pytest], such as: bash tests/run.sh -k golden
#        bash tests/run.sh -n 0 ...: in one process, as debuggers and print statements need it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../train_scripts/common.sh"

setup_python
cd "$REPO"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # each process has a core
status=0
"$PYTHON" -m pytest tests -q --numprocesses=auto --dist=worksteal --durations=10 "$@" || status=$?
if ((status == 5)); then
    die "no test fits these arguments: $*"
fi
exit "$status"
