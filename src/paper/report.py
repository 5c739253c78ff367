"""What came out of a study, beside the paper's figures: Markdown, CSV and a picture."""

import csv
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, load_config
from ..files import write_text
from . import plots
from .runs import CIRCUMSTANCES, FINISHED, Run, differences, recipe_file
from .studies import Row, Study

MEASURES = ("top-1", "top-5")


@dataclass(frozen=True)
class Outcome:
    """A row's finished runs. Shares are percent; `failures` say why a run is not there."""

    row: Row
    planned: int = 0
    histories: tuple[list[dict[str, float]], ...] = ()  # of the finished runs, a row an epoch
    batch_size: int = 0
    failures: tuple[str, ...] = ()

    def accuracy(self, measure: int) -> list[float]:
        """Of each finished run at its end, top-1 (0) or top-5 (1)."""
        return [100 * history[-1][("test_top1", "test_top5")[measure]] for history in self.histories]

    def step_milliseconds(self) -> list[float]:
        """Of each finished run, the median over its epochs."""
        rates = [[row.get("images_per_second", math.nan) for row in history] for history in self.histories]
        return [
            1000 * self.batch_size / statistics.median(known)
            for rate in rates
            if (known := [value for value in rate if value > 0])
        ]


@dataclass(frozen=True)
class Budget:
    """With what the runs of a study were made, for titles."""

    config: Config  # of any of its runs
    recipe: Config  # and what it would be at its full length
    steps: int  # an epoch
    data_name: str
    seeds: int
    command: str

    @property
    def departures(self) -> dict[str, Any]:
        """Keys in which all runs differ from their recipes, and their values."""
        changed = differences(self.config, self.recipe)
        return {key: value for key, (value, _) in changed.items() if key not in CIRCUMSTANCES}

    @property
    def caution(self) -> str:
        """What must be said of runs that are not the recipe's; empty for those that are."""
        train = self.config.train
        if train.epochs < self.recipe.train.epochs or train.steps_per_epoch is not None:
            return "shortened runs: they test the machinery and say nothing about the methods"
        return "not the paper's recipe: the figures cannot be compared with it" if self.departures else ""

    def __str__(self) -> str:
        train, full = self.config.train, self.recipe.train
        epochs = f"{train.epochs} of {full.epochs}" if train.epochs != full.epochs else str(full.epochs)
        told = ("train.epochs", "train.steps_per_epoch", "data.batch_size", "data.name")
        others = [f"{key} {value}" for key, value in self.departures.items() if key not in told]
        seeds = "seed 0" if self.seeds == 1 else f"seeds 0 to {self.seeds - 1}"
        batch = f"batch {self.config.data.batch_size}"
        return ", ".join([self.data_name, f"{epochs} epochs of {self.steps} steps", batch, *others, seeds])


def budget(run: Run, steps: int, data_name: str, seeds: int, command: str) -> Budget:
    """Of a study to which this run belongs; `steps` a whole epoch has."""
    recipe = load_config(recipe_file(run.cell), run.cell.changes)
    return Budget(run.config, recipe, run.config.train.steps(steps), data_name, seeds, command)


def outcomes(study: Study, runs: list[Run], failures: dict[Path, str]) -> list[Outcome]:
    """A row each, in the study's order; `failures` by the run's folder."""
    results = []
    for row in study.rows:
        own = [run for run in runs if row.cell is not None and run.cell.name == row.cell.name]
        finished = [run for run in own if run.state() == FINISHED]
        results.append(
            Outcome(
                row,
                len(own),
                tuple(run.metrics() for run in finished),
                own[0].config.data.batch_size if own else 0,
                tuple(f"seed {run.seed}: {failures[run.folder]}" for run in own if run.folder in failures),
            )
        )
    return results


def write(study: Study, results: list[Outcome], made_with: Budget, output: Path) -> list[Path]:
    """Writes NAME.md, NAME.csv and NAME.png; their paths."""
    files = [output / f"{study.name}.{suffix}" for suffix in ("md", "csv", "png")]
    write_text(files[0], markdown(study, results, made_with))
    write_text(files[1], as_csv(study, results, made_with))
    plots.draw(study, results, made_with, files[2])
    return files


def spread(values: list[float], digits: int = 2) -> str:
    """`61.20`, or of several values their mean and standard deviation, `61.20 ± 0.31`; a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(study: Study, results: list[Outcome], made_with: Budget) -> str:
    measures = range(max(len(result.row.reported) for result in results))
    timed = study.name == "figure3"
    header = ["network", "method"]
    for measure in measures:
        header += [f"paper {MEASURES[measure]} %", f"ours {MEASURES[measure]} %"]
    header += ["ours ms a step"] if timed else []
    header += ["runs", "note"]
    lines = [header, ["---"] * len(header)]
    for result in results:
        cells = [result.row.network, result.row.method]
        for measure in measures:
            reported = result.row.figure(measure)
            cells += ["-" if reported is None else f"{reported:.{study.digits}f}", spread(result.accuracy(measure))]
        cells += [spread(result.step_milliseconds(), 1)] if timed else []
        notes = [result.row.note, *(f"failed, {reason}" for reason in result.failures)]
        cells.append(f"{len(result.histories)} of {result.planned}" if result.row.cell else "the paper's figure alone")
        cells.append("; ".join(filter(None, notes)).replace("|", "/"))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caution = f"\n**Not results.** These are {made_with.caution}.\n" if made_with.caution else ""
    timing = " Step times are of runs one after the other: what else the machine did is in them." if timed else ""
    return f"""# {study.title}

{made_with}.
{caution}
{table}

The paper: {study.finding} Its figures are for the official data set at the full length. Ours are those of the last
epoch{", mean ± standard deviation over the seeds" if made_with.seeds > 1 else ""}.{timing}

![{study.title}]({study.name}.png)

    {made_with.command}
"""


def as_csv(study: Study, results: list[Outcome], made_with: Budget) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    header = ["network", "method", "cell"]
    for name in ("top1", "top5"):
        header += [f"paper_{name}", f"{name}_mean", f"{name}_std"]
    writer.writerow([*header, "step_ms", "runs", "planned", "data_set", "epochs", "steps_per_epoch", "not_the_recipe"])
    for result in results:
        line: list = [result.row.network, result.row.method, result.row.cell.name if result.row.cell else ""]
        for measure in (0, 1):
            reported = result.row.figure(measure)
            values = result.accuracy(measure)
            line.append("" if reported is None else reported)
            line.append(round(statistics.mean(values), 4) if values else "")
            line.append(round(statistics.stdev(values), 4) if len(values) > 1 else "")
        times = result.step_milliseconds()
        line += [round(statistics.mean(times), 2) if times else "", len(result.histories), result.planned]
        line += [made_with.data_name, made_with.config.train.epochs, made_with.steps, bool(made_with.caution)]
        writer.writerow(line)
    return text.getvalue()
