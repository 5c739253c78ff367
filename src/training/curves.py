"""curves.png: what metrics.csv holds, drawn against the epoch; and confusion matrices."""

import math
import os
from collections.abc import Sequence
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


def plot_confusion(counts, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as a PNG: which share of each class (row) was called which class (column).

    Args:
        counts: (K, K) numbers of images.

    Raises:
        WriteError: the file cannot be written.
    """
    side = 2.5 + 0.4 * len(classes)
    figure = _new_figure(side, side)
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("called")
    axes.set_ylabel("class")
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
