#!/usr/bin/env bash
# Convert an exported ONNX or MINDIR file to an offline model of MindSpore Lite, which runs on CPUs and on Ascend.
#
#     bash scripts/run_convert_lite.sh exports/net.onnx exports/net_lite.mindir --device ascend
#
# The Python that has MindSpore Lite may be another than the project's: PYTHON_LITE=/path/to/python. docs/ascend.md
# explains the rest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch_module src.deploy.lite_process "$@"
