#!/usr/bin/env bash
# Export a checkpoint for inference, in the foreground: runs export.py with the given arguments and returns its exit
# code.
#
#     bash scripts/run_export.sh --checkpoint runs/latest/best.ckpt --file_format MINDIR --output exported
#
# The arguments are those of export.py; its help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch export.py "$@"
