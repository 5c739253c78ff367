"""benchmarks/scaling_model.py against values worked out by hand, docs/scaling.md against the model, and the refusals of
benchmarks/distributed.py."""

import re

import pytest
from mindspore import nn

from benchmarks import distributed, scaling_model
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
