"""The figures of the studies: the paper's numbers next to ours. Drawn without pyplot or an interactive backend."""

import statistics
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..files import write_atomically
from .runs import accuracy

PAPER, OURS = "0.65", "tab:blue"


def draw(study, results, made_with, path: Path) -> None:
    """Write the figure of a study as a PNG: curves for figure 3 and figure 4, bars for tables.

    Args:
        study, results, made_with: those of `report.write`.
    """
    drawers = {"figure3": _against_n, "figure4": _over_epochs}
    figure = drawers[study.name](results) if study.name in drawers else _bars(results, study.digits)
    budget = f"{made_with}; accuracy {made_with.images}"
    figure.suptitle("\n".join(filter(None, (study.title, budget, made_with.caution))), fontsize=10)
    save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, on the PNG canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def _bars(results, digits: int) -> Figure:
    """Draw a panel for each network: for each method the paper's top-1 and ours."""
    networks = list(dict.fromkeys(result.row.network for result in results))
    most = max(sum(result.row.network == network for result in results) for network in networks)
    figure = new_figure(5.5 * len(networks) + 1, 1.6 + 0.42 * most)
    for panel, network in zip(figure.subplots(1, len(networks), squeeze=False).flat, networks, strict=True):
        rows = [result for result in results if result.row.network == network]
        for place, result in enumerate(rows):
            reported, ours = result.row.reported[0], result.accuracy(0)
            for offset, values, color in ((-0.2, [reported] if reported else [], PAPER), (0.2, ours, OURS)):
                if values:
                    mean = statistics.mean(values)
                    error = statistics.stdev(values) if len(values) > 1 else None
                    panel.barh(place + offset, mean, 0.38, color=color, xerr=error, ecolor="black", capsize=2)
                    panel.text(mean + 1 + (error or 0), place + offset, f"{mean:.{digits}f}", va="center", fontsize=7)
        panel.set_yticks(range(len(rows)), [result.row.method for result in rows], fontsize=8)
        panel.invert_yaxis()
        panel.set_xlim(0, 112)
        panel.set_xlabel("top-1 accuracy, %")
        panel.set_title(network)
    handles = [Patch(color=color, label=label) for label, color in (("paper", PAPER), ("ours", OURS))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _against_n(results) -> Figure:
    """Draw accuracy and the time of a step against n."""
    figure = new_figure(10, 4)
    n = [int(result.row.method.removeprefix("n = ")) for result in results]
    panels = (
        ("top-1 accuracy at the end, %", [result.accuracy(0) for result in results]),
        ("milliseconds a training step", [result.step_milliseconds() for result in results]),
    )
    for panel, (label, values) in zip(figure.subplots(1, 2), panels, strict=True):
        known = [(place, found) for place, found in zip(n, values, strict=True) if found]
        panel.errorbar(
            [place for place, _ in known],
            [statistics.mean(found) for _, found in known],
            [statistics.stdev(found) if len(found) > 1 else 0 for _, found in known],
            marker="o",
            capsize=3,
            color=OURS,
            label="ours, closed form",
        )
        panel.set_xticks(n)
        panel.set_xlabel("n (n + 1 cosines)")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.axes[1].set_ylim(bottom=0)
    return figure


def _over_epochs(results) -> Figure:
    """Draw test accuracy against the epoch: a curve for each setting, with mean and range over the seeds."""
    figure = new_figure(7.5, 4.6)
    panel = figure.subplots()
    for result in results:
        if result.histories:
            shares = np.array([[100 * accuracy(row) for row in history] for history in result.histories])
            evaluated = np.isfinite(shares).all(0)
            epochs, shares = np.flatnonzero(evaluated) + 1, shares[:, evaluated]
            (line,) = panel.plot(
                epochs, shares.mean(0), marker="o" if len(epochs) < 50 else "", label=result.row.method
            )
            panel.fill_between(epochs, shares.min(0), shares.max(0), color=line.get_color(), alpha=0.2)
        if result.row.reported[0] is not None:
            label = f"paper, {result.row.method}, at its end"
            panel.axhline(result.row.reported[0], color=PAPER, linestyle="--", label=label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
    panel.set_ylabel("top-1 accuracy, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    return figure
