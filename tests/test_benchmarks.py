"""benchmarks/scaling_model.py against values worked out by hand, docs/scaling.md against the model, the refusals of
benchmarks/distributed.py, and the numbers of benchmarks/training_step.py from given times. No time is asserted."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mindspore import nn

from benchmarks import convergence, distributed, inference, scaling_model, training_step
from benchmarks.orders import Worker, WorkerEnded
from benchmarks.scaling_model import (
    CASES,
    Cluster,
    Gradients,
    Link,
    allreduce,
    build,
    count_gradients,
    efficiency,
    print_efficiency,
    ring_allreduce,
)
from benchmarks.training_step import BINARY, EAGER, FDA, KEYS, NOISE, OURS, STARTING, STE, Benchmark, Budget
from src import cli
from src.errors import UserError
from src.models import NETWORKS
from tests.helpers import processes

INSIDE = Link("inside", 2e9, 0.5, 1e-6, "")  # 1 GB/s in the model
BETWEEN = Link("between", 1e9, 0.1, 10e-6, "")  # 0.1 GB/s
PAGE = (processes.ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_a_ring_of_two_sends_all_bytes_once_in_two_hops():
    assert ring_allreduce(2, 1e6, speed=1e9, latency=10e-6) == pytest.approx(1e-3 + 20e-6)


def test_every_message_of_a_ring_pays_its_own_latency():
    assert ring_allreduce(8, 8e6, speed=1e9, latency=1e-6, messages=5) == pytest.approx(14 * (1e-3 + 5e-6))


def test_machines_share_the_bytes_in_rings_inside_and_between():
    cluster = Cluster(INSIDE, BETWEEN, devices=8)
    inside = 14 * (1e-3 + 1e-6)
    assert allreduce(8, 8e6, cluster) == pytest.approx(inside)
    assert allreduce(32, 8e6, cluster) == pytest.approx(inside + 6 * (2e6 / 1e8 + 10e-6))
    with pytest.raises(ValueError, match="12 workers do not fill machines of 8"):
        allreduce(12, 8e6, cluster)


def test_machines_of_one_device_are_one_ring():
    assert allreduce(4, 4e6, Cluster(INSIDE, BETWEEN, devices=1)) == pytest.approx(6 * (1e6 / 1e8 + 10e-6))


def test_one_worker_is_as_fast_as_itself():
    for devices in (1, 8):
        assert allreduce(1, 1e9, Cluster(INSIDE, BETWEEN, devices)) == 0
    assert efficiency(0.1, 0.0) == 1


@pytest.mark.parametrize("overlap, expected", [(0, 0.1 / 0.15), (0.5, 0.1 / (0.15 - 0.1 / 3)), (1, 1)])
def test_communication_during_the_backward_pass_costs_nothing(overlap, expected):
    assert efficiency(0.1, 0.05, overlap) == pytest.approx(expected)


def test_only_parameters_that_the_optimizer_updates_count():
    network = nn.Dense(3, 2)
    assert count_gradients(network) == Gradients(values=8, tensors=2)
    assert count_gradients(network).bytes == 32
    network.bias.requires_grad = False
    assert count_gradients(network) == Gradients(values=6, tensors=1)


def test_ratios_are_medians_over_turns(capsys):
    medians = {
        "one": [1.0, 2.0, 1.0],
        "wide": [0.5, 1.0, 0.5],
        "apart": [1.0, 2.0, 1.0],
        "weak": [1.25, 2.5, 1.25],
        "strong": [0.625, 1.25, 0.625],
        "tensors": [0.25, 0.5, 0.25],
        "flat": [0.1, 0.2, 0.1],
    }
    distributed.report("network", Gradients(1_000_000, 4), 8, 2, 2, medians)
    lines = capsys.readouterr().out
    assert "| 2 workers, 1 core each, averaged | 8 | 1,250 (1,250-2,500) | 12.8 | 1.60 |" in lines
    assert "| 2 workers, 1 core each, averaged | 4 | 625 (625-1,250) | 12.8 | 1.60 |" in lines
    assert "| as a step does it | 250 (250-500) | 0.250 |" in lines
    assert "averaged against 2 not connected: 0.80; by the formula from the allreduce alone: 0.80" in lines


@pytest.mark.parametrize(
    "program, arguments, sentence",
    [
        (distributed, ["--workers", "1"], "--workers is 1, but must be at least 2"),
        (distributed, ["--workers", "9999"], "--workers is 9999, but there are"),
        (distributed, ["--turns", "0"], "--turns and --steps must be at least 1"),
        (scaling_model, ["--images_per_second", "0", "1"], "must be above 0"),
        (scaling_model, ["--network", "resnet21"], "unknown network 'resnet21'"),
        (training_step, ["--rounds", "0"], "--rounds is 0, but must be at least 1"),
        (training_step, ["--quick", "--loop_steps", "10"], "--loop_steps is 10, but must be at least 11"),
        (training_step, ["--parts", "speed"], "invalid choice: 'speed'"),
        (training_step, ["--torch_python", "/no/python"], "/no/python, which cannot be run: No such file"),
        (training_step, ["--torch_python", sys.executable], "which has no PyTorch: see benchmarks/requirements.txt"),
        (convergence, ["--torch_python", sys.executable], "which has no PyTorch: see benchmarks/requirements.txt"),
    ],
)
def test_impossible_arguments_are_refused(program, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        program.main(arguments)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "alexnet" else [])
        for name, network in NETWORKS.items()
        if network.make.__module__.startswith("src.models.")  # not a network of the tests
    ],
)
def test_docs_scaling_has_the_gradients_of_every_network(network):
    without, with_noise = (count_gradients(build(network, noise)) for noise in (False, True))
    assert (
        f"| `{network}` | {without.values:,} / {with_noise.values:,} | {without.tensors} / {with_noise.tensors} "
        f"| {without.bytes / 1e6:.2f} / {with_noise.bytes / 1e6:.2f} |"
    ) in PAGE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.network)
def test_docs_scaling_has_the_models_numbers(case, capsys):
    print_efficiency(case, count_gradients(build(case.network, noise=False)))
    for line in capsys.readouterr().out.splitlines():
        assert not line.startswith("| ") or line in PAGE


@pytest.mark.slow
def test_two_workers_of_a_real_network_are_measured():
    options = ("--batch_size", 2, "--turns", 1, "--steps", 1)
    done = processes.run("benchmarks/distributed.py", *options, cwd=processes.ROOT)
    assert done.returncode == 0, done.stderr
    row = r"^\| .* \| \d+ \| [\d.,]+ \([\d.,]+-[\d.,]+\) \| [\d.]+ \| [\d.]+ \|$"
    assert len(re.findall(row, done.stdout, re.MULTILINE)) == 5
    assert re.search(r"by the formula from the allreduce alone: 0\.\d+", done.stdout)


class FakeWorker:
    """Answers a turn with the seconds of its (program, action, name, n)."""

    def __init__(self, program: str, seconds: dict[tuple, float]):
        self.program, self.seconds = program, seconds

    def ask(self, action: str, name: str = "", count: int = 1, n: int | None = 18, **other):
        if action == "build":
            return None
        return 1 if action == "compilations" else [self.seconds.get((self.program, action, name, n), 1.0)] * count

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None: ...


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """One whose workers are fake and whose steps take a second, except those put into its `seconds`."""
    made = Benchmark(tmp_path, Budget(5, 2, 2, 40), torch_python="python", start_tree=tmp_path)
    made.seconds = {}
    monkeypatch.setattr(made, "mindspore", lambda program, *options, **more: FakeWorker(program, made.seconds))
    monkeypatch.setattr(made, "pytorch", lambda threads=0: FakeWorker(EAGER, made.seconds))
    monkeypatch.setattr(training_step, "check", lambda ours, theirs: None)
    monkeypatch.setattr(training_step, "PAUSE", 0)
    return made


def test_keys_of_a_step_are_ratios_of_times_or_of_rates(benchmark):
    benchmark.seconds = {
        (OURS, "train", STE, 18): 2.0,
        (OURS, "train", FDA, 18): 3.0,
        (OURS, "train", NOISE, 18): 4.0,
        (OURS, "train", FDA, 64): 1.5,
        (EAGER, "train", f"torch.compile {FDA}", 18): 0.75,
    }
    benchmark.measure_step(FakeWorker(OURS, benchmark.seconds))
    got = {key: value for key, value in benchmark.values.items() if value is not None}
    assert got == {
        "fda_over_ste": 1.5,  # times
        "fda_noise_over_ste": 2.0,
        "n64_over_n1": 1.5,
        "fda_over_torch": 0.25,  # images/s, over the faster one
        "fda_noise_over_torch": 0.25,
        "train_compilations": 1,
    }
    assert (FDA, "torch.compile", "750 (750-750)", "170.7") in benchmark.tables["Training step"]


def test_keys_over_the_starting_commit_and_the_plain_path_are_ratios_of_rates(benchmark):
    benchmark.seconds = {(OURS, "train", NOISE, 18): 0.25, (STARTING, "evaluate", NOISE, 18): 3.0}
    ours = FakeWorker(OURS, benchmark.seconds)
    benchmark.measure_start(ours)
    benchmark.measure_native(ours)
    assert benchmark.values["train_over_start"] == benchmark.values["native_over_plain"] == 4.0
    assert benchmark.values["eval_over_start"] == 3.0


def test_the_loop_is_measured_from_step_10(benchmark, monkeypatch):
    """Its first ten steps take much longer; the rest take two seconds each, the bare step one."""
    ends = [100.0 * step for step in range(1, 11)]
    runs = {OURS: [*ends, *(1000 + 2.0 * step for step in range(1, 31))], STARTING: [50.0]}
    monkeypatch.setattr(benchmark, "start_tree", Path("start"))
    monkeypatch.setattr(benchmark, "run_train_py", lambda tree, steps: runs[STARTING if steps == 1 else OURS])
    monkeypatch.setattr(training_step, "write_cifar10", lambda folder: None)
    benchmark.measure_loop(FakeWorker(OURS, {}))
    assert benchmark.values["loop_over_step"] == 0.5
    assert benchmark.values["first_step_over_start"] == 2.0


def test_memory_is_counted_without_the_imports(benchmark, monkeypatch):
    used = {STE: 2e9, FDA: 2e9, NOISE: 3e9, f"{EAGER} {NOISE}": 1e9}

    class Memory(FakeWorker):
        def ask(self, action: str, name: str = "", **other):
            self.name = name or self.name
            return (1e9, 1e9 + used.get(self.name, 1e9)) if action == "memory" else super().ask(action, name)

    monkeypatch.setattr(benchmark, "mindspore", lambda program: Memory(program, {}))
    monkeypatch.setattr(benchmark, "pytorch", lambda: Memory(EAGER, {}))
    benchmark.measure_memory()
    assert benchmark.values["memory_over_ste"] == 1.5
    assert benchmark.values["memory_over_torch"] == 3.0
    assert (NOISE, OURS, "1,000", "3,000") in benchmark.tables["Memory"]


def test_json_is_the_last_line_with_every_key(benchmark, capsys):
    benchmark.values["fda_over_ste"] = 1.25
    benchmark.print(as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert "| `fda_over_ste` | step time, FDA (n = 18) over clipped STE | 1.25 | <= 1.05 | missed |" in lines
    assert "| `fda_noise_over_ste` | step time, FDA + noise over clipped STE |  | report | not measured |" in lines
    values = json.loads(lines[-1])
    assert list(values) == list(KEYS) and len(KEYS) == 13
    assert values["fda_over_ste"] == 1.25 and values["memory_over_ste"] is None


@pytest.mark.parametrize(
    "key, value, expected",
    [("fda_over_torch", 1.0, "met"), ("fda_over_torch", 0.99, "missed"), ("train_compilations", 2, "missed")],
)
def test_goals_are_compared(key, value, expected):
    assert training_step.verdict(key, value)[-1] == expected


def test_ratio_is_the_median_of_the_rounds():
    assert training_step.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_relative_errors_of_two_answers():
    own = {"loss": 2.0, "logits": [[3.0, 4.0]], "gradients": {"a": [1.0], "b": [[0.0]]}}
    assert training_step.largest_error(own, own) == 0
    assert training_step.largest_error(own, {**own, "logits": [[3.0, 5.0]]}) == pytest.approx(0.2)
    assert training_step.largest_error(own, {**own, "gradients": {"b": [[0.5]], "a": [1.0]}}) == pytest.approx(0.5)
    assert math.isnan(training_step.largest_error(own, {**own, "loss": math.nan}))


def test_another_function_in_pytorch_is_refused():
    answers = {"weights": {}, "batch": {}, "loss": 1.0, "logits": [1.0], "gradients": {"a": [1.0]}}

    class Answer(FakeWorker):
        def ask(self, action: str, **options):
            return {**answers, "loss": self.seconds}

    with pytest.raises(UserError, match="clipped STE of PyTorch computes something else: relative errors"):
        training_step.check(Answer("", 1.0), Answer("", 1.1))
    training_step.check(Answer("", 1.0), Answer("", 1.0001))


def test_primitives_are_counted_without_those_that_only_order_values():
    graph = """
  %0(CNode_1) = PrimFunc_Greater(%para1_x, Tensor(shape=[], dtype=Float32, value=0)) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (2, 16, 8, 8)>) -> (<Tensor[Bool], (2, 16, 8, 8)>)
  %1(ValueNode_2) = Load(%para3_layer.weight, UMonad[U]) cnode_attrs: {checkpoint: Bool(1)}
  %2(CNode_3) = Conv2D(%0, %1) {instance name: operation}
  %3(CNode_4) = MakeTuple(%2, %0)
  Return(%3)
"""
    assert training_step.count_primitives(graph) == 2


def test_other_networks_are_all_networks():
    own = {name for name, network in NETWORKS.items() if network.make.__module__.startswith("src.models.")}
    assert {"resnet20", *training_step.OTHER_NETWORKS} == own
    for name, size in training_step.OTHER_NETWORKS.items():
        assert size == (128 if NETWORKS[name].image_size == 32 else 8)


def test_a_missing_starting_commit_is_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_step, "START", "0" * 40)
    with training_step.starting_commit(tmp_path) as tree:
        assert tree is None
    assert "note: the starting commit 0000000 is not measured: " in capsys.readouterr().err


def test_a_worker_answers_until_it_ends(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(processes.ROOT)!r})\n"
        "from benchmarks.orders import serve\n"
        "def double(x):\n    print('noise')\n    return 2 * x\n"
        "def fail():\n    sys.exit('no more')\n"
        "serve({'double': double, 'fail': fail})\n"
    )
    with Worker([sys.executable, str(program)], tmp_path / "name.log") as worker:
        assert [worker.ask("double", x=x) for x in (1, 2.5)] == [2, 5.0]
        with pytest.raises(WorkerEnded, match="name ended with exit code 1: .*noise / no more"):
            worker.ask("fail")
        with pytest.raises(WorkerEnded, match="exit code 1"):
            worker.ask("double", x=1)


@pytest.mark.parametrize(
    "name",
    [
        "convergence",
        "distributed",
        "inference",
        "kernels",
        "operations",
        "scaling_model",
        "step_against_n",
        "training_step",
    ],
)
def test_help_of_a_benchmark_imports_no_mindspore(name, tmp_path):
    (tmp_path / "mindspore.py").write_text("raise ImportError('MindSpore is imported')")
    done = subprocess.run(
        processes.command(f"benchmarks/{name}.py", "--help"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.parametrize(
    ("apart", "theirs", "good", "told"),
    [
        ([1e-6, 9e-6], [60.5, 61.5, 62.5], True, "+0.00 apart, standard error 0.82, within two of them"),
        ([1e-6, 2e-5], [60.5, 61.5, 62.5], False, "apart by at most 2.0e-05, NOT as asked"),
        ([1e-6, math.nan], [60.5, 61.5, 62.5], False, "NOT as asked"),
        ([1e-6, 9e-6], [57.5, 58.5, 59.5], False, "+3.00 apart, standard error 0.82, NOT within two of them"),
    ],
)
def test_convergence_is_judged(apart, theirs, good, told):
    sentences, found = convergence.judge(apart, [60.5, 61.5, 62.5], theirs)
    assert found == good and told in "\n".join(sentences)


@pytest.mark.parametrize(
    ("flags", "told"),
    [(("--seeds", "0"), "--seeds is 0, but must be at least 1"), (("--seed", "3"), "--seed cannot be")],
)
def test_convergence_refuses_other_seeds(capsys, flags, told):
    assert cli.run(convergence.main, ["--torch_python", sys.executable, *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_measured_against_n(tmp_path):
    options = ("--rounds", 1, "--batch_size", 2, "--output", tmp_path / "figure.png")
    done = processes.run("benchmarks/step_against_n.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\d+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", done.stdout, re.MULTILINE)
    assert rows == ["1", "3", "5", "7", "9", "12", "15", "18"], done.stdout
    assert done.stdout.startswith("commit ") and (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_training_step_is_measured(tmp_path):
    """With a tiny budget and without PyTorch; the keys that need neither it nor the starting commit have values."""
    options = ("--rounds", 1, "--steps", 1, "--loops", 1, "--loop_steps", 11, "--batch_size", 4, "--json", "--quick")
    parts = ("--parts", "step", "loop", "memory", "primitives")
    done = processes.run("benchmarks/training_step.py", *options, *parts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    missing = {key for key, value in values.items() if value is None}
    assert missing <= {key for key in KEYS if re.search("torch|_over_start|native", key)}
    assert values["train_compilations"] == 1
    counted = dict(re.findall(r"^\| ([^|]*) \| (\d+) \|$", done.stdout, re.MULTILINE))
    assert 0 < int(counted[STE]) < int(counted[FDA]) < int(counted[NOISE])
    assert set(BINARY) == set(counted)


class GivenTimes:
    """A worker of benchmarks/inference.py that answers with given seconds."""

    seconds = {inference.BINARY: 1e-3, inference.FLOAT: 2e-3, inference.ORT: 3e-3, inference.MINDSPORE: 1e-2}

    def __init__(self, name: str):
        self.name = name

    def ask(self, action: str, count: int, **given) -> list[float]:
        return count * [self.seconds[self.name]]

    def __exit__(self, *error) -> None:
        pass


def test_keys_of_inference_are_ratios_of_one_image_on_one_thread(tmp_path, monkeypatch, capsys):
    measured = inference.Benchmark(tmp_path, rounds=2)
    monkeypatch.setattr(measured, "worker", lambda name, path, threads, batch_size: GivenTimes(name))
    monkeypatch.setattr(inference, "PAUSE", 0)
    for batch_size, threads in ((32, 1), (1, 2)):
        measured.speeds("resnet20", tmp_path, batch_size, threads)
    assert set(measured.values.values()) == {None}
    measured.speeds("resnet20", tmp_path, 1, 1)
    assert measured.values["resnet20_openvino_over_ort"] == pytest.approx(3)
    header, rows = measured.tables["resnet20 at 32x32, images: 32, threads: 1"]
    assert dict(zip(header, rows[0], strict=True))["images/s"] == "32000"
    measured.print(as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == measured.values and measured.values.keys() == inference.KEYS.keys()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("resnet20_file_bytes", 60_000, ("60,000", "<= 60,000", "met")),
        ("resnet20_file_bytes", 60_001, ("60,001", "<= 60,000", "missed")),
        ("resnet18_openvino_over_ort", 2.4, ("2.4", ">= 2.5", "missed")),
        ("first_prediction_s", None, ("", "<= 1.5", "not measured")),
    ],
)
def test_goals_of_inference_are_compared(key, value, expected):
    assert inference.verdict(key, value)[2:] == expected


def test_a_turn_has_enough_runs():
    assert [inference.count_of(seconds) for seconds in (1e-4, 0.01, 1.0)] == [200, 30, 3]


@pytest.mark.slow
def test_inference_is_measured(tmp_path):
    done = processes.run("benchmarks/inference.py", "--quick", "--rounds", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    assert {key for key, value in values.items() if value is None} == {key for key in values if "resnet18" in key}
    layers = re.findall(r"^\| layer\d\.\d\.conv\d \| (\S+) \| [\d.]+ \| \d+ \|", done.stdout, re.MULTILINE)
    assert len(layers) == 18 and all(implementation.endswith("u1") for implementation in layers)
    assert 20_000 < values["resnet20_file_bytes"] < 100_000
