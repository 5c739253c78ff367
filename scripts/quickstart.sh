#!/usr/bin/env bash
# From nothing to an exported binary network: make .venv, train ResNet-20 with FDA and the noise module on digits,
# evaluate the checkpoint, export it, check the files, and predict an image with the OpenVINO file, which has 1-bit
# weights.   usage: bash scripts/quickstart.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
setup_environment

REQUIRED_ACCURACY=0.95
run_folder=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
"$PYTHON" train.py --config configs/digits.yaml --output_dir "$run_folder"
"$PYTHON" eval.py --checkpoint "$run_folder/best.ckpt" | tee "$run_folder/evaluation.txt"
"$PYTHON" export.py --checkpoint "$run_folder/best.ckpt" --file_format ALL
tail -n 1 "$run_folder/evaluation.txt" | "$PYTHON" -c '
import json, sys
accuracy, required = json.load(sys.stdin)["Top1-Acc"], float(sys.argv[1])
print(f"test accuracy {accuracy:.2%}, required {required:.0%}")
sys.exit(accuracy < required)' "$REQUIRED_ACCURACY"
"$PYTHON" -c '
import sys
from PIL import Image
from src.data.digits import arrays
pixels, labels = arrays("test")
Image.fromarray(pixels[0].transpose(1, 2, 0)).save(sys.argv[1])
print(f"{sys.argv[1]} is the first test image, a {labels[0]}; its classes as the 1-bit network sees it:")' "$run_folder/digit.png"
"$PYTHON" predict.py --model "$run_folder/best.xml" "$run_folder/digit.png"
echo "done: the checkpoint, its curves and the exported files are in $run_folder"
