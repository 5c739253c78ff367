#!/usr/bin/env bash
# Evaluate a checkpoint, in the foreground: runs eval.py with the given arguments and returns its exit code.
#
#     bash scripts/run_eval.sh --checkpoint runs/latest/best.ckpt --data_path DIR
#
# The arguments are those of eval.py; its help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch eval.py "$@"
