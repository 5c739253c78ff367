"""curves.png: what metrics.csv holds, drawn against the epoch."""

import math
import os
from pathlib import Path
from typing import Any

from ..files import write_atomically

History = list[dict[str, Any]]


def plot_curves(history: History, scheduled: list[str], path: Path) -> None:
    """Draw loss, accuracy, flip ratio and the columns `scheduled` against the epoch, as a PNG.

    Columns and values that are missing are left out.

    Raises:
        WriteError: the file cannot be written.
    """
    figure = _new_figure(10, 6)
    largest = {name: max((value for _, value in _points(history, name)), default=0.0) or 1.0 for name in scheduled}
    panels = {
        "Loss": {"train_loss": "training", "test_loss": "test", "holdout_loss": "held-out"},
        "Accuracy": {"test_top1": "test top-1", "test_top5": "test top-5", "holdout_top1": "held-out top-1"},
        "Flip ratio of binary weights": {"flip_ratio": "signs that changed in the epoch"},
        "Schedules at the end of each epoch": {name: f"{name} / {largest[name]:.3g}" for name in scheduled},
    }
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, label in curves.items():
            if points := _points(history, name):
                epochs, values = zip(*points, strict=True)
                shares = [value / largest.get(name, 1.0) for value in values]
                axes.plot(epochs, shares, marker="." if len(epochs) < 50 else "", label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def _points(history: History, name: str) -> list[tuple[int, float]]:
    """The epochs that have a number in that column, with it."""
    pairs = [(metrics["epoch"], metrics.get(name)) for metrics in history]
    return [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]


def _new_figure(width: float, height: float):
    """An empty figure on the Agg canvas, which needs no display and no backend."""
    # matplotlib refuses to be imported with a backend that is not installed, as a notebook's is in a terminal.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
