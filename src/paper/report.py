"""The results of a study, next to the paper's numbers if it has some: Markdown, CSV and a figure."""

import csv
import io
import shlex
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, load_config
from ..files import write_text
from ..run_dir import CONFIG, DATA, START_WEIGHTS, read_versions
from .paired import ONE_SEED, Difference, differences, seed_deviation
from .runs import CIRCUMSTANCES, Run, accuracy, finished_runs, recipe_file
from .runs import differences as config_differences
from .studies import Row, Study

MEASURES = ("top-1", "top-5")
MADE_BY = ("git commit", "mindspore", "processor", "cores", "binary layers", DATA)  # of a run's versions


@dataclass(frozen=True)
class Finished:
    """A finished run and what its folder holds: `history` has a row for each epoch, `versions` a block for the start
    and for each continuation that differs. Accuracies are in percent."""

    run: Run
    history: list[dict[str, float]]
    versions: list[dict[str, str]]

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def start(self) -> str:
        """The checksum of its start weights; empty where it is unknown."""
        return self.versions[0].get(START_WEIGHTS, "")

    @property
    def step_milliseconds(self) -> float | None:
        """Median time of a training step over the epochs; None if it is unknown."""
        rates = [rate for row in self.history if (rate := row.get("images_per_second", 0.0)) > 0]
        return 1000 * self.run.config.data.batch_size / statistics.median(rates) if rates else None

    def accuracy(self, measure: int) -> float:
        """Return the top-1 (0) or top-5 (1) of the last epoch: on held-out images if the run held some out."""
        return 100 * accuracy(self.history[-1], ("top1", "top5")[measure])

    def curve(self) -> list[float]:
        """Return the top-1 of each epoch; NaN where it was not evaluated."""
        return [100 * accuracy(row) for row in self.history]


@dataclass(frozen=True)
class Outcome:
    """The finished runs of a row, whichever command made them; `failures` give the reasons of missing ones."""

    row: Row
    planned: int = 0
    runs: tuple[Finished, ...] = ()  # in the order of their seeds
    failures: tuple[str, ...] = ()

    def accuracy(self, measure: int) -> list[float]:
        """Return the top-1 (0) or top-5 (1) of each run."""
        return [run.accuracy(measure) for run in self.runs]

    def known_step_times(self) -> list[float]:
        """Return the milliseconds of a training step in each run that has them."""
        return [time for run in self.runs if (time := run.step_milliseconds) is not None]


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
    def images(self) -> str:
        """On which images accuracies are."""
        holdout = self.config.data.holdout
        return f"on {holdout:,} held-out training images" if holdout else "on the test images"

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
                tuple(Finished(run, run.metrics(), read_versions(run.folder)) for run in finished),
                tuple(f"seed {run.seed}: {failures[run.folder]}" for run in own if run.folder in failures),
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
    return differences(pairs, top1_by_seed(results), study.pooled)


def top1_by_seed(results: list[Outcome]) -> dict[str, dict[int, float]]:
    """For each method, the top-1 of each of its seeds."""
    return {result.row.method: {run.seed: run.accuracy(0) for run in result.runs} for result in results}


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
    has_paper = any(figure is not None for result in results for figure in result.row.reported)
    timed = study.name == "figure3"
    header = ["network", "method"]
    for measure in measures:
        if has_paper:
            header.append(f"paper {MEASURES[measure]} %")
        header.append(f"ours {MEASURES[measure]} %")
    header += ["ours ms a step"] if timed else []
    header += ["seeds", "note"]
    lines = [header, ["---"] * len(header)]
    for result in results:
        cells = [result.row.network, result.row.method]
        for measure in measures:
            reported = result.row.figure(measure)
            if has_paper:
                cells.append("-" if reported is None else f"{reported:.{study.digits}f}")
            cells.append(spread(result.accuracy(measure)))
        cells += [spread(result.known_step_times(), 1)] if timed else []
        notes = [result.row.note, ONE_SEED if len(result.runs) == 1 else ""]
        notes += [f"failed, {reason}" for reason in result.failures]
        cells.append(counted(result) if result.row.spec else "only the paper's number")
        cells.append("; ".join(filter(None, notes)).replace("|", "/"))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caution = f"\n**Not the paper's recipe.** These are {made_with.caution}.\n" if made_with.caution else ""
    papers = " The paper's numbers are for the official data set at the full length." if has_paper else ""
    many = any(len(result.runs) > 1 for result in results)
    spread_told = ", mean ± standard deviation over the seeds" if many else ""
    timing = (
        " Step times include whatever else the machine did during the runs; benchmarks/step_against_n.py measures "
        "only the step."
        if timed
        else ""
    )
    return f"""# {study.title}

{made_with}.
{caution}
{table}

{study.finding}{papers} Ours are those of the last epoch{spread_told}, {made_with.images}.{timing}
{paired_table(study, results)}{start_weights(results)}
![{study.title}]({study.name}.png)
{made_by(results)}
The last command (finished runs of earlier ones are included), and how to repeat one run:

    {made_with.command}
{single_run(results)}"""


def counted(result: Outcome) -> str:
    """The seeds of the finished runs, and of how many they are if some are missing."""
    if not result.runs:
        return f"none of {result.planned}"
    found = spoken_seeds([run.seed for run in result.runs])
    return found if len(result.runs) == result.planned else f"{found}: {len(result.runs)} of {result.planned}"


def spoken_seeds(seeds: list[int]) -> str:
    """`0-2, 7` for 0, 1, 2 and 7."""
    groups: list[list[int]] = []
    for seed in sorted(seeds):
        if groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return ", ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


def paired_table(study: Study, results: list[Outcome]) -> str:
    """The differences of the study in Markdown; empty if it asks for none or nothing was run twice."""
    found = compare(study, results)
    if not any(one.values for one in found):
        return ""
    has_paper = any(one.reported is not None for one in found)
    header = ["difference, top-1 points", "seeds", "mean", "interval", ""]
    if has_paper:
        header.insert(1, "paper")
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for one in found:
        cells = [
            f"{one.first} - {one.second}",
            str(len(one.values)),
            f"{one.mean:+.2f}" if one.values else "-",
            "-" if one.low is None else f"{one.low:+.2f} to {one.high:+.2f}",
            one.verdict,
        ]
        if has_paper:
            cells.insert(1, "-" if one.reported is None else f"{one.reported:+.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    spread_told = ""
    if study.pooled and (known := seed_deviation(top1_by_seed(results))) is not None:
        spread_told = (
            " The standard error comes from all rows: without what a seed does to all of them, a method's standard "
            f"deviation over seeds is {known[0]:.2f} points ({known[1]} degrees of freedom)."
        )
    return f"""
Differences between runs with the same seed: they saw the same images in the same order, and started from the same
weights where the checksums below are the same. An interval (Student's t) holds 0 exactly if Holm's test of the whole
table, at 5 %, finds no difference.{spread_told}

{table}
"""


def made_by(results: list[Outcome]) -> str:
    """Which code, data and machines made the runs; empty if nothing is known. A run that continued with other code or
    on another machine is counted for each."""
    runs = {one.run.folder: one.versions for result in results for one in result.runs}
    found = [
        {tuple(block.get(name, "unknown") for name in MADE_BY) for block in each if block} for each in runs.values()
    ]
    counts = Counter(key for keys in found for key in keys)
    if not counts:
        return ""
    lines = [
        f"- {count} of {len(runs)} runs: commit {commit}, MindSpore {mindspore}, {processor}, {cores} core(s), binary "
        f"layers computed by {layers}, checksum of the data {data}"
        for (commit, mindspore, processor, cores, layers, data), count in sorted(counts.items())
    ]
    continued = any(len(keys) > 1 for keys in found)
    note = " A run that continued with other code or on another machine is counted for each." if continued else ""
    return f"\nMade by:{note}\n\n" + "\n".join(lines) + "\n"


def single_run(results: list[Outcome]) -> str:
    """The command that repeats one finished run, on as many cores; empty if there is none."""
    first = next((run for result in results for run in result.runs), None)
    if first is None:
        return ""
    made = first.versions[0]
    cores, threads = made.get("cores", ""), made.get("OMP_NUM_THREADS", "")
    prefix = f"OMP_NUM_THREADS={threads} " if threads.isdecimal() else ""
    prefix += f"taskset --cpu-list 0-{int(cores) - 1} " if cores.isdecimal() else ""
    config = shlex.quote(str(first.run.folder / CONFIG))
    return f"    {prefix}python train.py --config {config} --output_dir runs/again\n"


def start_weights(results: list[Outcome]) -> str:
    """The checksum of each seed's start weights, and the rows that have another one; empty if none is known."""
    known: dict[int, dict[str, list[str]]] = {}
    for result in results:
        for run in result.runs:
            if run.start:
                known.setdefault(run.seed, {}).setdefault(run.start, []).append(result.row.method)
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
    """A line for each finished run, and one for each row without any."""
    text = io.StringIO()
    writer = csv.writer(text)
    header = ["network", "method", "paper_top1", "paper_top5", "run", "seed", "top1", "top5", "step_ms"]
    writer.writerow(
        [*header, "images", "start_weights", *MADE_BY, "data_set", "epochs", "steps_per_epoch", "not_the_recipe"]
    )
    for result in results:
        row = result.row
        reported = ["" if row.figure(measure) is None else row.figure(measure) for measure in (0, 1)]
        first = [row.network, row.method, *reported, row.spec.name if row.spec else ""]
        last = [made_with.data_name, made_with.config.train.epochs, made_with.steps, bool(made_with.caution)]
        for run in result.runs:
            made = [
                " then ".join(dict.fromkeys(block[name] for block in run.versions if name in block)) for name in MADE_BY
            ]
            time = run.step_milliseconds
            figures = [*(round(run.accuracy(measure), 4) for measure in (0, 1)), time and round(time, 2)]
            writer.writerow([*first, run.seed, *figures, made_with.images, run.start, *made, *last])
        if not result.runs:
            writer.writerow([*first, *[""] * (6 + len(MADE_BY)), *last])
    return text.getvalue()
