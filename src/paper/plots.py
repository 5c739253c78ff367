"""The figures of the studies: our runs, and the paper's numbers where they compare.

Drawn without pyplot or an interactive backend.
"""

import statistics
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..files import write_atomically

PAPER, OURS = "0.5", "tab:blue"
CHARACTERS_PER_INCH = 12  # of a title
# Markers of one run, of the mean and of the paper.
RUN = {"color": OURS, "marker": "o", "linestyle": "", "alpha": 0.5}
MEAN = {"color": OURS, "marker": "|", "linestyle": "", "markersize": 10, "markeredgewidth": 2}
REPORTED = {"color": PAPER, "marker": "D", "linestyle": "", "fillstyle": "none"}


def draw(study, results, made_with, path: Path) -> None:
    """Write the figure of a study as a PNG: curves for figure 3 and figure 4, a point for each run for tables.

    The paper's accuracies are drawn unless the runs are of another recipe or length. A method without a run or a number
    of the paper is left out.

    Args:
        study, results, made_with: those of `report.write`.
    """
    comparable = not made_with.caution
    if study.name == "figure3":
        figure = _against_n(results)
    elif study.name == "figure4":
        figure = _over_epochs(results, comparable)
    else:
        figure = _points(results, study.digits, comparable)
    lines = (study.title, f"{made_with}; accuracy {made_with.images}", made_with.caution)
    width = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    figure.suptitle(
        "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines if line), fontsize=10
    )
    save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, on the PNG canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def _points(results, digits: int, with_paper: bool) -> Figure:
    """Draw a panel for each network: for each method the top-1 of each run, their mean, and the paper's top-1."""

    def reported(result) -> float | None:
        return result.row.figure(0) if with_paper else None

    shown = [result for result in results if result.runs or reported(result) is not None]
    networks = list(dict.fromkeys(result.row.network for result in shown))
    if not networks:
        figure = new_figure(6.5, 2)
        figure.text(0.5, 0.3, "no run has finished", ha="center")
        return figure
    most = max(sum(result.row.network == network for result in shown) for network in networks)
    figure = new_figure(5.5 * len(networks) + 1, 2 + 0.34 * most)
    for panel, network in zip(figure.subplots(1, len(networks), squeeze=False).flat, networks, strict=True):
        rows = [result for result in shown if result.row.network == network]
        for place, result in enumerate(rows):
            ours = result.accuracy(0)
            panel.plot(ours, [place] * len(ours), **RUN)
            if ours:
                mean = statistics.mean(ours)
                if len(ours) > 1:
                    panel.plot(mean, place, **MEAN)
                above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 7}
                panel.annotate(f"{mean:.{digits}f}", (mean, place), **above)
            if (top1 := reported(result)) is not None:
                panel.plot(top1, place, **REPORTED)
        panel.set_yticks(range(len(rows)), [result.row.method for result in rows], fontsize=8)
        panel.set_ylim(len(rows) - 0.5, -0.7)
        panel.set_xlabel("top-1 accuracy, %")
        panel.set_title(network, fontsize=10)
        panel.grid(alpha=0.3)
    handles = [Line2D([], [], label="one run, ours", **RUN), Line2D([], [], label="mean", **MEAN)]
    if any(reported(result) is not None for result in shown):
        handles.append(Line2D([], [], label="paper", **REPORTED))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _against_n(results) -> Figure:
    """Draw accuracy and the time of a step against n."""
    figure = new_figure(10, 4)
    n = [int(result.row.method.removeprefix("n = ")) for result in results]
    panels = (
        ("top-1 accuracy at the end, %", [result.accuracy(0) for result in results]),
        ("milliseconds a training step", [result.known_step_times() for result in results]),
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


def _over_epochs(results, with_paper: bool) -> Figure:
    """Draw test accuracy against the epoch: a curve for each setting, with mean and range over the seeds."""
    figure = new_figure(7.5, 4.6)
    panel = figure.subplots()
    for result in results:
        if result.runs:
            shares = np.array([run.curve() for run in result.runs])
            evaluated = np.isfinite(shares).all(0)
            epochs, shares = np.flatnonzero(evaluated) + 1, shares[:, evaluated]
            (line,) = panel.plot(
                epochs, shares.mean(0), marker="o" if len(epochs) < 50 else "", label=result.row.method
            )
            panel.fill_between(epochs, shares.min(0), shares.max(0), color=line.get_color(), alpha=0.2)
        if with_paper and result.row.reported[0] is not None:
            label = f"paper, {result.row.method}, at its end"
            panel.axhline(result.row.reported[0], color=PAPER, linestyle="--", label=label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
    panel.set_ylabel("top-1 accuracy, %")
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8)
    return figure
