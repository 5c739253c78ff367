"""The results of a study next to the paper's numbers: Markdown, CSV and a figure."""

import csv
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, load_config
from ..files import write_text
from .runs import CIRCUMSTANCES, FINISHED, Run, differences, recipe_file
from .studies import Row, Study

MEASURES = ("top-1", "top-5")


@dataclass(frozen=True)
class Outcome:
    """The finished runs of a row. Accuracies are in percent; `failures` give the reasons of missing runs."""

    row: Row
    planned: int = 0
    histories: tuple[list[dict[str, float]], ...] = ()  # of the finished runs, a row for each epoch
    batch_size: int = 0
    failures: tuple[str, ...] = ()

    def accuracy(self, measure: int) -> list[float]:
        """Return the final top-1 (0) or top-5 (1) of each finished run."""
        return [100 * history[-1][("test_top1", "test_top5")[measure]] for history in self.histories]

    def step_milliseconds(self) -> list[float]:
        """Return the median over the epochs, for each finished run."""
        rates = [[row.get("images_per_second", math.nan) for row in history] for history in self.histories]
        return [
            1000 * self.batch_size / statistics.median(known)
            for rate in rates
            if (known := [value for value in rate if value > 0])
        ]


@dataclass(frozen=True)
class Budget:
    """The settings with which the runs of a study were made, for titles."""

    config: Config  # of one of its runs
    recipe: Config  # of the same run at full length
    steps: int  # in an epoch
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
        """A warning about runs that differ from the recipe; empty if they do not."""
        train = self.config.train
        if train.epochs < self.recipe.train.epochs or train.steps_per_epoch is not None:
            return "shortened runs: they test the code and say nothing about the methods"
        if self.departures:
            return "runs that differ from the paper's recipe: their numbers cannot be compared with the paper's"
        return ""

    def __str__(self) -> str:
        train, full = self.config.train, self.recipe.train
        epochs = f"{train.epochs} of {full.epochs}" if train.epochs != full.epochs else str(full.epochs)
        told = ("train.epochs", "train.steps_per_epoch", "data.batch_size", "data.name")
        others = [f"{key} {value}" for key, value in self.departures.items() if key not in told]
        seeds = "seed 0" if self.seeds == 1 else f"seeds 0 to {self.seeds - 1}"
        batch = f"batch {self.config.data.batch_size}"
        return ", ".join([self.data_name, f"{epochs} epochs of {self.steps} steps", batch, *others, seeds])


def budget(run: Run, steps: int, data_name: str, seeds: int, command: str) -> Budget:
    """Return the budget of the study to which this run belongs; a whole epoch has `steps` steps."""
    recipe = load_config(recipe_file(run.spec), run.spec.changes)
    return Budget(run.config, recipe, run.config.train.steps(steps), data_name, seeds, command)


def outcomes(study: Study, runs: list[Run], failures: dict[Path, str]) -> list[Outcome]:
    """Return the outcome of each row, in the study's order; `failures` are given by the run's folder."""
    results = []
    for row in study.rows:
        own = [run for run in runs if row.spec is not None and run.spec.name == row.spec.name]
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
    """Write NAME.md, NAME.csv and NAME.png; return their paths."""
    from . import plots  # matplotlib only when something is drawn

    files = [output / f"{study.name}.{suffix}" for suffix in ("md", "csv", "png")]
    write_text(files[0], markdown(study, results, made_with))
    write_text(files[1], as_csv(study, results, made_with))
    plots.draw(study, results, made_with, files[2])
    return files


def spread(values: list[float], digits: int = 2) -> str:
    """Return `61.20`, or for several values mean and standard deviation, `61.20 ± 0.31`; a dash for none."""
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
        cells.append(f"{len(result.histories)} of {result.planned}" if result.row.spec else "only the paper's number")
        cells.append("; ".join(filter(None, notes)).replace("|", "/"))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caution = f"\n**Not results.** These are {made_with.caution}.\n" if made_with.caution else ""
    timing = " Step times include whatever else the machine did during the runs." if timed else ""
    return f"""# {study.title}

{made_with}.
{caution}
{table}

The paper: {study.finding} Its numbers are for the official data set at the full length. Ours are those of the last
epoch{", mean ± standard deviation over the seeds" if made_with.seeds > 1 else ""}.{timing}

![{study.title}]({study.name}.png)

    {made_with.command}
"""


def as_csv(study: Study, results: list[Outcome], made_with: Budget) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    header = ["network", "method", "run"]
    for name in ("top1", "top5"):
        header += [f"paper_{name}", f"{name}_mean", f"{name}_std"]
    writer.writerow([*header, "step_ms", "runs", "planned", "data_set", "epochs", "steps_per_epoch", "not_the_recipe"])
    for result in results:
        line: list = [result.row.network, result.row.method, result.row.spec.name if result.row.spec else ""]
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
