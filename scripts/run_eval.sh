#!/usr/bin/env bash
# Evaluates a checkpoint, in the foreground: eval.py with the arguments given; its exit code is passed on.
#
#     bash scripts/run_eval.sh --checkpoint runs/latest/best.ckpt --data_path DIR
#
# All arguments are those of eval.py, whose help follows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch eval.py "$@"
