#!/usr/bin/env bash
# Lint and test in .venv, which is made if it is missing.   usage: bash scripts/run_tests.sh [--all] [PYTEST ARGUMENTS]
# --all adds the tests marked slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
setup_environment

selection=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    selection=()
    shift
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n 2 --dist loadfile "${selection[@]}" "$@"
