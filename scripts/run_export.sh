#!/usr/bin/env bash
# Exports a checkpoint for inference, in the foreground: export.py with the arguments given; its exit code is passed on.
#
#     bash scripts/run_export.sh --checkpoint runs/latest/best.ckpt --file_format MINDIR --output exported
#
# All arguments are those of export.py, whose help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch export.py "$@"
