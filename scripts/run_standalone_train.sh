#!/usr/bin/env bash
# Trains on one device, in the foreground: train.py with the arguments given; its exit code is passed on.
#
#     bash scripts/run_standalone_train.sh --config configs/digits.yaml --output_dir runs/digits
#
# SIGTERM and Ctrl-C reach train.py, which saves and ends. All arguments are those of train.py, whose help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch train.py "$@"
