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
from ..run_dir import START_WEIGHTS, read_versions
from .paired import Difference, differences
from .runs import CIRCUMSTANCES, Run, accuracy, finished_runs, recipe_file
from .runs import differences as config_differences
from .studies import Row, Study

MEASURES = ("top-1", "top-5")


@dataclass(frozen=True)
class Outcome:
    """The finished runs of a row, whichever command made them; `failures` give the reasons of missing ones. Accuracies
    are in percent."""

    row: Row
    planned: int = 0
    histories: tuple[list[dict[str, float]], ...] = ()  # of the finished runs, a row for each epoch
    batch_size: int = 0
    failures: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()  # of the finished runs
    starts: tuple[str, ...] = ()  # of the finished runs: the checksums of their start weights

    def accuracy(self, measure: int) -> list[float]:
        """Return the final top-1 (0) or top-5 (1) of each finished run: on held-out images if the run held some out."""
        return [100 * accuracy(history[-1], ("top1", "top5")[measure]) for history in self.histories]

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
    command: str

    @property
    def departures(self) -> dict[str, Any]:
        """Keys in which all runs differ from their recipes, and their values."""
        changed = config_differences(self.config, self.recipe)
        return {key: value for key, (value, _) in changed.items() if key not in CIRCUMSTANCES}

    @property
    def caution(self) -> str:
        """A warning about runs that differ from the recipe; empty if they do not."""
        train = self.config.train
        if train.epochs < self.recipe.train.epochs or train.steps_per_epoch is not None:
            return "shortened runs: compare methods with each other at this budget, not with the paper's accuracies"
        if self.departures:
            return "runs that differ from the paper's recipe: their numbers cannot be compared with the paper's"
        return ""

    def __str__(self) -> str:
        train, full = self.config.train, self.recipe.train
        epochs = f"{train.epochs} of {full.epochs}" if train.epochs != full.epochs else str(full.epochs)
        told = ("train.epochs", "train.steps_per_epoch", "data.batch_size", "data.name")
        others = [f"{key} {value}" for key, value in self.departures.items() if key not in told]
        batch = f"batch {self.config.data.batch_size}"
        return ", ".join([self.data_name, f"{epochs} epochs of {self.steps} steps", batch, *others])


def budget(run: Run, steps: int, data_name: str, command: str) -> Budget:
    """Return the budget of the study to which this run belongs; a whole epoch has `steps` steps."""
    recipe = load_config(recipe_file(run.spec), run.spec.changes)
    return Budget(run.config, recipe, run.config.train.steps(steps), data_name, command)


def outcomes(study: Study, runs: list[Run], failures: dict[Path, str]) -> list[Outcome]:
    """Return the outcome of each row, in the study's order; `failures` are given by the run's folder."""
    results = []
    for row in study.rows:
        own = [run for run in runs if row.spec is not None and run.spec.name == row.spec.name]
        finished = finished_runs(row.spec, own[0].output, own[0].overrides) if own else []
        results.append(
            Outcome(
                row,
                len({run.seed for run in own + finished}),
                tuple(run.metrics() for run in finished),
                own[0].config.data.batch_size if own else 0,
                tuple(f"seed {run.seed}: {failures[run.folder]}" for run in own if run.folder in failures),
                tuple(run.seed for run in finished),
                tuple(read_versions(run.folder)[0].get(START_WEIGHTS, "") for run in finished),
            )
        )
    return results


def compare(study: Study, results: list[Outcome]) -> list[Difference]:
    """Return the differences that the study asks for, in top-1."""
    by_method = {result.row.method: result for result in results}
    pairs = []
    for first, second in study.pairs:
        figures = [by_method[method].row.figure(0) for method in (first, second)]
        pairs.append((first, second, None if None in figures else figures[0] - figures[1]))
    accuracies = {
        method: dict(zip(result.seeds, result.accuracy(0), strict=True)) for method, result in by_method.items()
    }
    return differences(pairs, accuracies)


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
        cells.append(counted(result) if result.row.spec else "only the paper's number")
        cells.append("; ".join(filter(None, notes)).replace("|", "/"))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caution = f"\n**Not the paper's recipe.** These are {made_with.caution}.\n" if made_with.caution else ""
    has_paper = any(figure is not None for result in results for figure in result.row.reported)
    papers = " The paper's numbers are for the official data set at the full length." if has_paper else ""
    many = any(len(result.histories) > 1 for result in results)
    spread_told = ", mean ± standard deviation over the seeds" if many else ""
    timing = " Step times include whatever else the machine did during the runs." if timed else ""
    return f"""# {study.title}

{made_with}.
{caution}
{table}

{study.finding}{papers} Ours are those of the last epoch{spread_told}.{timing}
{paired_table(study, results)}{start_weights(results)}

![{study.title}]({study.name}.png)

    {made_with.command}
"""


def counted(result: Outcome) -> str:
    """The number of finished runs, and of how many if some are missing."""
    found = len(result.histories)
    return str(found) if found == result.planned else f"{found} of {result.planned}"


def paired_table(study: Study, results: list[Outcome]) -> str:
    """The differences of the study in Markdown; empty if it asks for none or nothing was run twice."""
    found = compare(study, results)
    if not any(one.values for one in found):
        return ""
    lines = [
        "| difference, top-1 points | paper | seeds | mean | interval | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        reported = "-" if one.reported is None else f"{one.reported:+.2f}"
        mean = f"{statistics.mean(one.values):+.2f}" if one.values else "-"
        bounds = "-" if one.low is None else f"{one.low:+.2f} to {one.high:+.2f}"
        lines.append(
            f"| {one.first} - {one.second} | {reported} | {len(one.values)} | {mean} | {bounds} | {one.verdict} |"
        )
    table = "\n".join(lines)
    return f"""
Differences between runs with the same seed, so the same start weights and the same images. The intervals are Student's
t, at 95 % for the table as a whole (Holm's method).

{table}
"""


def start_weights(results: list[Outcome]) -> str:
    """The checksum of each seed's start weights, and the rows that have another one; empty if none is known."""
    known: dict[int, dict[str, list[str]]] = {}
    for result in results:
        for seed, start in zip(result.seeds, result.starts, strict=True):
            if start:
                known.setdefault(seed, {}).setdefault(start, []).append(result.row.method)
    if not known:
        return ""
    told = []
    for seed, starts in sorted(known.items()):
        words = [f"{start} ({', '.join(methods)})" if len(starts) > 1 else start for start, methods in starts.items()]
        told.append(f"seed {seed} {', '.join(words)}")
    return f"""
Start weights, by checksum, noise modules left out: {"; ".join(told)}.
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
