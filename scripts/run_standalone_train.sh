#!/usr/bin/env bash
# Train on one device, in the foreground: runs train.py with the given arguments and returns its exit code.
#
#     bash scripts/run_standalone_train.sh --config configs/digits.yaml --output_dir runs/digits
#
# SIGTERM and Ctrl-C reach train.py, which saves and ends. The arguments are those of train.py; its help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch train.py "$@"
