"""Speed and memory of training a binary network, against PyTorch and against an earlier commit.

    python benchmarks/training_step.py --quick --torch_python PATH      at most 20 minutes and 8 GB
    python benchmarks/training_step.py --torch_python PATH              also other batch sizes, threads and networks

PATH is a Python that has PyTorch (benchmarks/requirements.txt); without one its numbers are left out. Every program
runs in a process of its own. They take turns, so that a slow moment of the machine affects all of them.
benchmarks/README.md explains the numbers.
"""

import argparse
import contextlib
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.orders import Worker, WorkerEnded  # noqa: E402
from benchmarks.scaling_model import milliseconds, table  # noqa: E402
from src import cli, runtime  # noqa: E402
from src.errors import UserError  # noqa: E402

START = "3080c25793d17436db2c81f7fee242176c6c0457"  # the commit that `*_over_start` compare with
FULL_PRECISION, STE, FDA, NOISE = "full precision", "clipped STE", "FDA", "FDA + noise"
VARIANTS = {
    FULL_PRECISION: {"estimator": None, "noise_adaptation": False},
    STE: {"estimator": "clipped_ste", "noise_adaptation": False},
    FDA: {"noise_adaptation": False},
    NOISE: {},
}
BINARY = (STE, FDA, NOISE)
OURS, STARTING, PLAIN, EAGER, COMPILED = "this tree", "starting commit", "BNN_NATIVE=0", "PyTorch", "torch.compile"
OTHER_NETWORKS = {"vgg_small": 128, "resnet18_cifar": 128, "resnet18": 8, "resnet34": 8, "alexnet": 8}  # batch size
PAUSE = 0.25  # seconds before each turn: idle threads of the process before may spin for a while
FIRST = 10  # the loop of train.py is measured from the end of this step
TOLERANCE = 1e-3  # relative error of the comparison with PyTorch
# By key: what it is, and the goal; a goal without a comparison is only reported.
KEYS: dict[str, tuple[str, str, float | None]] = {
    "fda_over_ste": ("step time, FDA (n = 18) over clipped STE", "<=", 1.05),
    "fda_noise_over_ste": ("step time, FDA + noise over clipped STE", "report", None),
    "n64_over_n1": ("step time of FDA, n = 64 over n = 1", "<=", 1.05),
    "fda_over_torch": ("images/s of FDA, over the better of PyTorch and torch.compile", ">=", 1.0),
    "fda_noise_over_torch": ("images/s of FDA + noise, over the better of PyTorch and torch.compile", ">=", 1.0),
    "train_over_start": ("images/s of FDA + noise, over the starting commit", ">=", 3.0),
    "eval_over_start": ("images/s of evaluation, over the starting commit", ">=", 2.0),
    "native_over_plain": ("images/s of FDA + noise, over BNN_NATIVE=0", "report", None),
    "loop_over_step": ("images/s of train.py, over the bare step", ">=", 0.95),
    "train_compilations": ("graphs compiled while n and alpha change every step", "=", 1),
    "memory_over_ste": ("memory, FDA + noise over clipped STE", "<=", 1.2),
    "memory_over_torch": ("memory of FDA + noise, over PyTorch", "<=", 1.0),
    "first_step_over_start": ("seconds until train.py ends its first step, over the starting commit", "<=", 1.0),
}
HEADERS = {  # of the tables that differ
    "Memory": ("", "program", "after the imports, MB", "more at the peak, MB"),
    "Primitives of a binary layer": ("", "forward and backward"),
}

Seconds = list[float]
Turns = dict[tuple[str, str], Callable[[], Seconds]]  # by variant and program: take steps, and return the time of each


@dataclass(frozen=True)
class Budget:
    """How much is measured: turns of each program, timed steps per turn, runs of train.py and steps of each."""

    rounds: int
    steps: int
    loops: int
    loop_steps: int
    batch_size: int = 128


QUICK, FULL = Budget(3, 2, 2, 30), Budget(9, 3, 3, 100)


@dataclass
class Benchmark:
    """Measures part by part.

    Args:
        folder: for logs, data and the starting commit.
        torch_python: a Python that has PyTorch; None: PyTorch is left out.

    Attributes:
        values: by the keys of `KEYS`, None until measured.
        tables: rows by title.
    """

    folder: Path
    budget: Budget
    device: str = "CPU"
    torch_python: str | None = None
    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(KEYS))
    tables: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    start_tree: Path | None = None

    def measure(self, parts: Sequence[str]) -> None:
        """Measure the parts of `PARTS` that are named."""
        with contextlib.ExitStack() as held:
            if {"start", "loop", "more"} & set(parts):
                self.start_tree = held.enter_context(starting_commit(self.folder))
            with contextlib.ExitStack() as while_needed:
                own = [part for part in parts if part in ("step", "evaluate", "start", "native", "loop")]
                if own:
                    ours = while_needed.enter_context(self.mindspore(OURS))
                    self.build(ours, VARIANTS if {"step", "evaluate"} & set(own) else (STE, NOISE))
                for part in own:
                    getattr(self, f"measure_{part}")(ours)
            for part in parts:
                if part not in own:
                    getattr(self, f"measure_{part}")()

    def mindspore(self, program: str, threads: int = 0, **environment: str) -> Worker:
        """A worker that trains with this tree, or with the starting commit's."""
        tree = self.start_tree if program == STARTING else ROOT
        command = [sys.executable, str(ROOT / "benchmarks/training_step_worker.py"), str(tree), self.device]
        return Worker([*command, str(threads)], self.folder / f"{program}.log", environment)

    def pytorch(self, threads: int = 0) -> Worker:
        command = [self.torch_python, str(ROOT / "benchmarks/torch_twin.py"), str(threads)]
        return Worker(command, self.folder / f"{EAGER}.log")

    def build(self, worker: Worker, variants: Sequence[str], network: str = "resnet20", batch_size: int = 0) -> None:
        for name in variants:
            size = batch_size or self.budget.batch_size
            worker.ask("build", name=name, network=network, batch_size=size, options=VARIANTS[name])

    def build_in_pytorch(
        self, worker: Worker, variants: Sequence[str], programs: Sequence[str] = (EAGER, COMPILED), batch_size: int = 0
    ) -> Turns:
        """Build the variants, and return the turns of those that work: torch.compile needs a C++ compiler."""
        turns: Turns = {}
        for variant in variants:
            for program in programs:
                name, size = f"{program} {variant}", batch_size or self.budget.batch_size
                options = {**twin_options(variant), "compiled": program == COMPILED}
                problem = worker.ask("build", name=name, batch_size=size, **options)
                if problem is None:
                    turns[variant, program] = partial(worker.ask, "train", name=name, count=self.budget.steps)
                else:
                    cli.echo(f"note: {program} fails for {variant}: {problem}", sys.stderr)
        return turns

    def alternate(
        self, title: str, turns: Turns, rounds: int = 0, batch_size: int = 0
    ) -> dict[tuple[str, str], Seconds]:
        """Let all take turns, put them into the table of that title, and return the median of each round.

        A round before them, in which graphs are compiled, does not count.
        """
        rounds = rounds or self.budget.rounds
        medians: dict[tuple[str, str], Seconds] = {key: [] for key in turns}
        for number in range(rounds + 1):
            for key, turn in turns.items():
                cli.echo(f"{title}, round {number} of {rounds}: {', '.join(key)}", sys.stderr)
                time.sleep(PAUSE)
                seconds = turn()
                if number:
                    medians[key].append(statistics.median(seconds))
        size = batch_size or self.budget.batch_size
        self.tables[title] = [(*key, *time_and_rate(seconds, size)) for key, seconds in medians.items()]
        return medians

    def measure_step(self, ours: Worker) -> None:
        train = partial(partial, ours.ask, "train", count=self.budget.steps)
        turns: Turns = {(variant, OURS): train(name=variant) for variant in VARIANTS}
        turns |= {(f"{FDA}, n = {n}", OURS): train(name=FDA, n=n) for n in (1, 64)}
        with contextlib.ExitStack() as held:
            if self.torch_python:
                theirs = held.enter_context(self.pytorch())
                check(ours, theirs)
                turns |= self.build_in_pytorch(theirs, [STE], [EAGER])
                turns |= self.build_in_pytorch(theirs, (FDA, NOISE))
            medians = self.alternate("Training step", turns)
        self.values["fda_over_ste"] = ratio(medians[FDA, OURS], medians[STE, OURS])
        self.values["fda_noise_over_ste"] = ratio(medians[NOISE, OURS], medians[STE, OURS])
        self.values["n64_over_n1"] = ratio(medians[f"{FDA}, n = 64", OURS], medians[f"{FDA}, n = 1", OURS])
        for key, variant in (("fda_over_torch", FDA), ("fda_noise_over_torch", NOISE)):
            theirs = [medians[variant, program] for program in (EAGER, COMPILED) if (variant, program) in medians]
            if theirs:
                self.values[key] = ratio(min(theirs, key=statistics.median), medians[variant, OURS])
        ours.ask("train", name=NOISE, count=20, n=None)
        self.values["train_compilations"] = ours.ask("compilations", name=NOISE)

    def measure_evaluate(self, ours: Worker) -> None:
        turns: Turns = {
            (variant, OURS): partial(ours.ask, "evaluate", name=variant, count=3 * self.budget.steps)
            for variant in VARIANTS
        }
        self.alternate("Evaluation", turns)

    def measure_start(self, ours: Worker) -> None:
        if self.start_tree is None:
            return
        with self.mindspore(STARTING) as theirs:
            self.build(theirs, (STE, NOISE))
            turns: Turns = {
                (f"{variant}, {action}", program): partial(worker.ask, action, name=variant, count=self.budget.steps)
                for variant, action in ((STE, "train"), (NOISE, "train"), (NOISE, "evaluate"))
                for program, worker in ((OURS, ours), (STARTING, theirs))
            }
            medians = self.alternate("Against the starting commit", turns)
        for key, action in (("train_over_start", "train"), ("eval_over_start", "evaluate")):
            self.values[key] = ratio(medians[f"{NOISE}, {action}", STARTING], medians[f"{NOISE}, {action}", OURS])

    def measure_native(self, ours: Worker) -> None:
        with self.mindspore(PLAIN, BNN_NATIVE="0") as plain:
            self.build(plain, [NOISE])
            turns: Turns = {
                (NOISE, program): partial(worker.ask, "train", name=NOISE, count=self.budget.steps)
                for program, worker in ((OURS, ours), (PLAIN, plain))
            }
            medians = self.alternate("Against the path without kernels", turns)
        self.values["native_over_plain"] = ratio(medians[NOISE, PLAIN], medians[NOISE, OURS])

    def measure_loop(self, ours: Worker) -> None:
        """train.py on files in CIFAR-10's format, and the bare step before each run."""
        steps, batch_size = self.budget.loop_steps, self.budget.batch_size
        write_cifar10(self.folder / "data")
        ours.ask("train", name=NOISE, count=1)  # compiles
        bare, loop, first, first_of_start = [], [], [], []
        for number in range(self.budget.loops):
            cli.echo(f"train.py, run {number + 1} of {self.budget.loops}", sys.stderr)
            time.sleep(PAUSE)
            bare.append(statistics.median(ours.ask("train", name=NOISE, count=3 * self.budget.steps)))
            ends = self.run_train_py(ROOT, steps)
            first.append(ends[0])
            loop.append((ends[-1] - ends[FIRST - 1]) / (steps - FIRST))
            if self.start_tree is not None:
                first_of_start.append(self.run_train_py(self.start_tree, 1)[0])
        rows = [
            (NOISE, "bare step", *time_and_rate(bare, batch_size)),
            (NOISE, f"train.py, steps {FIRST + 1} to {steps}", *time_and_rate(loop, batch_size)),
            ("end of the first step after", OURS, *time_and_rate(first)),
        ]
        self.values["loop_over_step"] = ratio(bare, loop)
        if first_of_start:
            rows.append(("end of the first step after", STARTING, *time_and_rate(first_of_start)))
            self.values["first_step_over_start"] = ratio(first, first_of_start)
        self.tables["train.py"] = rows

    def run_train_py(self, tree: Path, steps: int) -> Seconds:
        """Seconds from the start of a process to the end of each step."""
        command = [sys.executable, str(ROOT / "benchmarks/timed_train.py"), str(tree)]
        command += ["--data.path", str(self.folder / "data"), "--data.batch_size", str(self.budget.batch_size)]
        command += ["--epochs", "1", "--train.steps_per_epoch", str(steps), "--device_target", self.device]
        begun = time.time()
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            raise UserError(f"train.py of {tree} ended with exit code {done.returncode}: {done.stderr[-500:]}")
        return [end - begun for end in json.loads(done.stdout.splitlines()[-1])]

    def measure_memory(self) -> None:
        """Peak memory of training steps less that after the imports, each variant in a process of its own."""
        used: dict[tuple[str, str], int] = {}
        for variant in BINARY:
            for program in (OURS, EAGER) if self.torch_python else (OURS,):
                cli.echo(f"Memory: {variant}, {program}", sys.stderr)
                with self.mindspore(OURS) if program == OURS else self.pytorch() as worker:
                    if program == OURS:
                        self.build(worker, [variant])
                        worker.ask("train", name=variant, count=3)
                    else:
                        self.build_in_pytorch(worker, [variant], [EAGER])[variant, EAGER]()
                    imported, peak = worker.ask("memory")
                used[variant, program] = peak - imported
                megabytes = (f"{size / 1e6:,.0f}" for size in (imported, peak - imported))
                self.tables.setdefault("Memory", []).append((variant, program, *megabytes))
        self.values["memory_over_ste"] = used[NOISE, OURS] / used[STE, OURS]
        if (NOISE, EAGER) in used:
            self.values["memory_over_torch"] = used[NOISE, OURS] / used[NOISE, EAGER]

    def measure_primitives(self) -> None:
        rows = []
        for variant in BINARY:
            folder = str(self.folder / f"graphs of {variant}")
            saving = {"BNN_NATIVE": "0", "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder}
            with self.mindspore(PLAIN, **saving) as worker:
                rows.append((variant, str(count_primitives(worker.ask("compiled_layer", options=VARIANTS[variant])))))
        self.tables["Primitives of a binary layer"] = rows

    def measure_more(self) -> None:
        """ResNet-20 with other batch sizes and threads, and the other networks."""
        for threads in (1, 2):
            for size in (32, 512):
                with contextlib.ExitStack() as held:
                    ours = held.enter_context(self.mindspore(OURS, threads))
                    self.build(ours, (FDA, NOISE), batch_size=size)
                    turns: Turns = {
                        (variant, OURS): partial(ours.ask, "train", name=variant, count=self.budget.steps)
                        for variant in (FDA, NOISE)
                    }
                    if self.torch_python:
                        theirs = held.enter_context(self.pytorch(threads))
                        turns |= self.build_in_pytorch(theirs, (FDA, NOISE), batch_size=size)
                    self.alternate(f"ResNet-20, batch {size}, threads: {threads}", turns, 3, size)
        for network, size in OTHER_NETWORKS.items():
            with contextlib.ExitStack() as held:
                turns = {}
                for program in (OURS, STARTING) if self.start_tree else (OURS,):
                    worker = held.enter_context(self.mindspore(program))
                    self.build(worker, [NOISE], network, size)
                    turns[NOISE, program] = partial(worker.ask, "train", name=NOISE, count=1)
                self.alternate(f"{network}, batch {size}", turns, 3, size)

    def print(self, as_json: bool) -> None:
        for title, rows in self.tables.items():
            print(f"{title}\n\n{table(HEADERS.get(title, ('', 'program', 'ms', 'images/s')), rows)}")
        print(table(("key", "", "value", "goal", ""), [verdict(key, value) for key, value in self.values.items()]))
        if as_json:
            print(json.dumps(self.values))


PARTS = tuple(name.removeprefix("measure_") for name in vars(Benchmark) if name.startswith("measure_"))


def twin_options(variant: str) -> dict:
    """The options of a binary variant as torch_twin.py takes them."""
    options = VARIANTS[variant]
    return {"estimator": options.get("estimator", "fda"), "noise": options.get("noise_adaptation", True)}


def ratio(one: Seconds, other: Seconds) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def time_and_rate(seconds: Seconds, batch_size: int = 0) -> tuple[str, str]:
    """Milliseconds as median (least-largest), and images/s at the median."""
    median = statistics.median(seconds)
    spread = f"{milliseconds(min(seconds))}-{milliseconds(max(seconds))}"
    return f"{milliseconds(median)} ({spread})", f"{batch_size / median:.1f}" if batch_size else ""


def verdict(key: str, value: float | None) -> tuple[str, ...]:
    """The row of a key in the last table."""
    what, comparison, goal = KEYS[key]
    if value is None:
        return f"`{key}`", what, "", f"{comparison} {goal or ''}".strip(), "not measured"
    if goal is None:
        return f"`{key}`", what, f"{value:.3g}", comparison, ""
    met = {"<=": value <= goal, ">=": value >= goal, "=": value == goal}[comparison]
    return f"`{key}`", what, f"{value:.3g}", f"{comparison} {goal}", "met" if met else "missed"


def check(ours: Worker, theirs: Worker) -> None:
    """Compare loss, logits and gradients with PyTorch, for the same weights and images.

    Where a value before a sign is within rounding of 0 the sign may flip, so one batch of three is enough.

    Raises:
        UserError: they differ.
    """
    for variant in BINARY:
        cli.echo(f"comparing {variant} with PyTorch", sys.stderr)
        errors: list[float] = []
        while not errors or (not errors[-1] <= TOLERANCE and len(errors) < 3):
            own = ours.ask("gradients", options=VARIANTS[variant], seed=len(errors))
            given = {"weights": own["weights"], "batch": own["batch"], **twin_options(variant)}
            errors.append(largest_error(own, theirs.ask("gradients", **given)))
        if not errors[-1] <= TOLERANCE:
            raise UserError(f"{variant} of PyTorch computes something else: relative errors {errors}")


def largest_error(own: dict, other: dict) -> float:
    """The largest relative L2 error of the loss, the logits and all gradients together; NaN if one is NaN."""

    def flat(values) -> list[float]:
        if isinstance(values, dict):
            values = [values[name] for name in sorted(values)]
        return [number for value in values for number in flat(value)] if isinstance(values, list) else [values]

    pairs = [(flat(own[what]), flat(other[what])) for what in ("loss", "logits", "gradients")]
    errors = [math.dist(one, two) / math.hypot(*one) for one, two in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def count_primitives(graph: str) -> int:
    """The number of operations in MindSpore's print of a graph, without those that only order or group values."""
    names = re.findall(r"^ +%\d+\([^)]*\) = (\w+)\(", graph, re.MULTILINE)
    return sum(name not in ("Load", "Depend", "UpdateState", "MakeTuple", "TupleGetItem", "Return") for name in names)


def write_cifar10(folder: Path) -> None:
    """Write files in CIFAR-10's format, with random images."""
    import numpy as np

    target = folder / "cifar-10-batches-bin"
    target.mkdir(parents=True)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = np.random.default_rng(0).integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(target / name)


@contextlib.contextmanager
def starting_commit(folder: Path) -> Iterator[Path | None]:
    """The tree of the commit START in a temporary work tree; None, with a note, if it cannot be checked out."""
    tree, git = folder / "start", ["git", "-C", str(ROOT), "worktree"]
    try:
        subprocess.run([*git, "add", "--detach", str(tree), START], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        problem = str(getattr(error, "stderr", error)).strip()
        cli.echo(f"note: the starting commit {START[:7]} is not measured: {problem}", sys.stderr)
        yield None
        return
    try:
        for path in (tree, ROOT):  # so that no run compiles Python sources while it is timed
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(path / "src")], check=False)
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True)


def find_pytorch(python: str | None, device: str) -> str | None:
    """The Python with which PyTorch is measured; None, with a note, if this one has no PyTorch.

    Raises:
        UserError: another Python was asked for, and has none.
    """
    if device != "CPU":
        cli.echo(f"note: PyTorch is measured on CPU only, and this runs on {device}", sys.stderr)
        return None
    command = [python or sys.executable, "-c", "import torch; print('PyTorch', torch.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--torch_python is {python}, which cannot be run: {error.strerror}") from error
    if done.returncode == 0:
        print(done.stdout.strip())
        return command[0]
    if python:
        raise UserError(f"--torch_python is {python}, which has no PyTorch: see benchmarks/requirements.txt")
    cli.echo("note: PyTorch is not measured: give --torch_python, see benchmarks/requirements.txt", sys.stderr)
    return None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Budget]:
    """The arguments, and the budget that they ask for; UserError for a number that is too small."""
    parser = cli.Parser(prog="benchmarks/training_step.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and without the part `more`")
    parser.add_argument("--json", action="store_true", help="also print the values as JSON, in the last line")
    parser.add_argument("--device_target", default="CPU", help="CPU, GPU or Ascend; default: CPU")
    parser.add_argument("--torch_python", type=cli.path, metavar="PATH", help="Python that has PyTorch; default: this")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    for name, meaning in (
        ("rounds", "turns of each program"),
        ("steps", "timed steps per turn"),
        ("loops", "runs of train.py"),
        ("loop_steps", "steps of each run of train.py"),
        ("batch_size", "images per step"),
    ):
        text = f"{meaning}; default: {getattr(FULL, name)}, with --quick {getattr(QUICK, name)}"
        parser.add_argument(f"--{name}", type=cli.integer, help=text)
    arguments = parser.parse_args(argv)
    usual = vars(QUICK if arguments.quick else FULL)
    chosen = {name: usual[name] if getattr(arguments, name) is None else getattr(arguments, name) for name in usual}
    for name, value in chosen.items():
        least = FIRST + 1 if name == "loop_steps" else 1
        if value < least:
            raise UserError(f"--{name} is {value}, but must be at least {least}")
    return arguments, Budget(**chosen)


def main(argv: Sequence[str]) -> int:
    arguments, budget = parse(argv)
    parts = [part for part in PARTS if part in arguments.parts and not (part == "more" and arguments.quick)]
    torch_python = find_pytorch(arguments.torch_python, arguments.device_target)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers end too
    with tempfile.TemporaryDirectory(prefix="training_step_", ignore_cleanup_errors=True) as folder:
        benchmark = Benchmark(Path(folder), budget, arguments.device_target, torch_python)
        try:
            benchmark.measure(parts)
        except WorkerEnded as error:
            raise UserError(str(error)) from error
    print(f"ResNet-20, batch {budget.batch_size}, medians of {budget.rounds} rounds (least-largest)")
    print(f"{runtime.code_and_machine()}, starting commit {START[:7]}\n")
    benchmark.print(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
