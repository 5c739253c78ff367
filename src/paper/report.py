"""What came out of a study, beside the paper's figures: Markdown, CSV and a picture."""

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from src.config import Config, load_config
from src.files import write_text
from src.paper import plots
from src.paper.runs import FINISHED, Run, recipe_file
from src.paper.studies import Row, Study

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
        rates = [[row["images_per_second"] for row in history] for history in self.histories]
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
    def shortened(self) -> bool:
        """Whether this is less than the recipe: then the figures mean nothing about the methods."""
        train, full = self.config.train, self.recipe.train
        return train.epochs < full.epochs or train.steps_per_epoch is not None

    @property
    def caution(self) -> str:
        """What must be said of shortened runs; empty for whole ones."""
        return "shortened runs: they test the machinery and say nothing about the methods" if self.shortened else ""

    def __str__(self) -> str:
        train, full = self.config.train, self.recipe.train
        epochs = f"{train.epochs} of {full.epochs}" if train.epochs != full.epochs else str(full.epochs)
        plural = "" if train.epochs == 1 and epochs == "1" else "s"
        seeds = "seed 0" if self.seeds == 1 else f"seeds 0 to {self.seeds - 1}"
        batch = f"batch {self.config.data.batch_size}"
        return f"{self.data_name}, {epochs} epoch{plural} of {self.steps} steps, {batch}, {seeds}"


def budget(runs: list[Run], steps: int, data_name: str, seeds: int, command: str) -> Budget:
    config = runs[0].config()
    steps = min(config.train.steps_per_epoch or steps, steps)
    return Budget(config, load_config(recipe_file(runs[0].cell)), steps, data_name, seeds, command)


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
                own[0].config().data.batch_size if own else 0,
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
    digits = 1 if study.dataset == "imagenet" else 2  # as the paper prints them
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
            reported = result.row.reported[measure] if measure < len(result.row.reported) else None
            cells += ["-" if reported is None else f"{reported:.{digits}f}", spread(result.accuracy(measure))]
        cells += [spread(result.step_milliseconds(), 1)] if timed else []
        notes = [result.row.note, *(f"failed, {reason}" for reason in result.failures)]
        cells.append(f"{len(result.histories)} of {result.planned}" if result.row.cell else "the paper's figure alone")
        cells.append("; ".join(filter(None, notes)).replace("|", "/"))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caution = f"\n**Not results.** These are {made_with.caution}.\n" if made_with.caution else ""
    return f"""# {study.title}

{made_with}.
{caution}
{table}

The paper: {study.finding} Its figures are for the lossless data set at {made_with.recipe.train.epochs} epochs.
Ours are those of the last epoch{", mean ± standard deviation over the seeds" if made_with.seeds > 1 else ""}.

![{study.title}]({study.name}.png)

    {made_with.command}
"""


def as_csv(study: Study, results: list[Outcome], made_with: Budget) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    header = ["network", "method", "cell"]
    for name in ("top1", "top5"):
        header += [f"paper_{name}", f"{name}_mean", f"{name}_std"]
    writer.writerow([*header, "step_ms", "runs", "planned", "data_set", "epochs", "steps_per_epoch", "shortened"])
    for result in results:
        line: list = [result.row.network, result.row.method, result.row.cell.name if result.row.cell else ""]
        for measure in (0, 1):
            reported = result.row.reported[measure] if measure < len(result.row.reported) else None
            values = result.accuracy(measure)
            line.append("" if reported is None else reported)
            line.append(round(statistics.mean(values), 4) if values else "")
            line.append(round(statistics.stdev(values), 4) if len(values) > 1 else "")
        times = result.step_milliseconds()
        line += [round(statistics.mean(times), 2) if times else "", len(result.histories), result.planned]
        line += [made_with.data_name, made_with.config.train.epochs, made_with.steps, made_with.shortened]
        writer.writerow(line)
    return text.getvalue()
