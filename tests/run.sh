#!/usr/bin/env bash
# Run the tests, on a fresh machine too: makes .venv and installs requirements.txt first.
# Usage: bash tests/run.sh [arguments of pytest], such as: bash tests/run.sh -k golden
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../train_scripts/common.sh"

setup_python
cd "$REPO"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}  # the tests' tensors are small: more threads slow them down
status=0
"$PYTHON" -m pytest tests -q --durations=10 "$@" || status=$?
if ((status == 5)); then
    die "no test fits these arguments: $*"
fi
exit "$status"
