"""What a training run leaves in its folder, for those that read it again. Imports no MindSpore."""

import csv
import math
from pathlib import Path

from src.errors import UserError

LAST = "last.ckpt"
BEST = "best.ckpt"
CONFIG = "config.yaml"  # resolved
METRICS = "metrics.csv"  # a row an epoch
CURVES = "curves.png"
VERSIONS = "versions.txt"
ALWAYS = ("epoch", "train_loss", "test_top1", "test_top5")  # columns of METRICS that every row has a number in


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, an epoch each; none if there is no such file.

    Raises:
        UserError: it holds something else than a number under each name, or lacks one of `ALWAYS`.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: it does not hold a number under each name") from error
    for row in rows:
        if not all(math.isfinite(row.get(name, math.nan)) for name in ALWAYS):
            raise UserError(f"{path} is damaged: a row lacks one of {', '.join(ALWAYS)}")
    return rows
