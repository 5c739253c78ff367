#!/usr/bin/env bash
# Train with several workers through msrun, in the foreground: runs src.launch, which explains itself with --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# Not `python -m src.launch`, which would look for src in the current folder first.
exec "$PYTHON" -c 'import runpy, sys
sys.path[0] = sys.argv.pop(1)
runpy.run_module("src.launch", run_name="__main__", alter_sys=True)' "$ROOT" "$@"
