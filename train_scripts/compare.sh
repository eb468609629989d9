#!/usr/bin/env bash
# Train several methods or settings with several seeds, and compare their scores by several feature nets: compare.py.
# Usage: bash train_scripts/compare.sh --methods=NAME,NAME,... | --plan=FILE  --outdir=DIR [any option of train.py]
# The same command resumes. All options: bash train_scripts/compare.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setup_python
exec "$PYTHON" "$REPO/compare.py" "$@"
