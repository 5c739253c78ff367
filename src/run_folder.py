"""What a training run leaves in its folder, for those that read it again. Imports no MindSpore."""

import csv
from pathlib import Path

LAST = "last.ckpt"
BEST = "best.ckpt"
CONFIG = "config.yaml"  # resolved
METRICS = "metrics.csv"  # a row an epoch
CURVES = "curves.png"
VERSIONS = "versions.txt"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, an epoch each; none if there is no such file."""
    try:
        with (folder / METRICS).open(encoding="utf-8", newline="") as file:
            return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
