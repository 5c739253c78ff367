"""What a training run leaves in its folder, for those that read it again. Imports no MindSpore."""

import csv
from pathlib import Path

from src.errors import UserError

LAST = "last.ckpt"
BEST = "best.ckpt"
CONFIG = "config.yaml"  # resolved
METRICS = "metrics.csv"  # a row an epoch
CURVES = "curves.png"
VERSIONS = "versions.txt"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, an epoch each; none if there is no such file.

    Raises:
        UserError: it holds something else than numbers.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: a row does not hold a number under each name") from error
