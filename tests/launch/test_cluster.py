"""Machines that train together: flags, variables of schedulers, rank tables, and refusals."""

import json
import socket
from argparse import Namespace

import pytest

from src.errors import UserError
from src.launch.cluster import DEFAULT_PORT, Cluster, at_open_port, find

LARGER_JOB = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "n[1-4]"}


def options(**given) -> Namespace:
    """The launcher's flags; None: not given."""
    absent = dict.fromkeys(("nodes", "node_rank", "master_addr", "master_port", "rank_table", "device_target"))
    return Namespace(**{"workers": 4, "timeout": 40, **absent, **given})


def refused(variables=None, **given) -> str:
    with pytest.raises(UserError) as caught:
        find(options(**given), variables or {})
    return str(caught.value)


def rank_table(folder, servers) -> str:
    """A file as Ascend's tools write it; servers: for each its (rank_id, device_id)."""
    file = folder / "table.json"
    listed = [
        {"server_id": f"10.0.0.{number}", "device": [{"rank_id": str(r), "device_id": str(d)} for r, d in devices]}
        for number, devices in enumerate(servers)
    ]
    file.write_text(json.dumps({"version": "1.0", "status": "completed", "server_list": listed}))
    return str(file)


def test_without_flags_and_variables_there_is_one_machine():
    assert find(options(), {"MASTER_ADDR": "n0", "MASTER_PORT": "9000"}) == Cluster(4, master_port=0, timeout=40)


def test_flags_describe_several_machines():
    cluster = find(options(nodes=2, node_rank=1, master_addr="n0"), {})
    assert (cluster.nodes, cluster.node_rank, cluster.master_addr, cluster.master_port) == (2, 1, "n0", DEFAULT_PORT)
    assert (cluster.local_workers, cluster.first_rank, cluster.machine_of(1), cluster.machine_of(2)) == (2, 2, 0, 1)
    arguments = cluster.msrun_arguments("logs")
    for expected in ("--worker_num=4", "--local_worker_num=2", "--node_rank=1", "--master_addr=n0"):
        assert expected in arguments


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n0", "MASTER_PORT": "9000"}, (2, 1, "n0", 9000)),
        (
            {"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[3-4]"},
            (2, 1, "n3", DEFAULT_PORT),
        ),
        (
            {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "n[3-4]", **LARGER_JOB},
            (2, 1, "n3", DEFAULT_PORT),
        ),
        ({"VC_WORKER_HOSTS": "w0.svc,w1.svc", "VC_TASK_INDEX": "1"}, (2, 1, "w0.svc", DEFAULT_PORT)),
        (
            {"MA_NUM_HOSTS": "2", "VC_WORKER_HOSTS": "w0.svc,w1.svc", "VC_TASK_INDEX": "0"},
            (2, 0, "w0.svc", DEFAULT_PORT),
        ),
    ],
)
def test_a_schedulers_variables_replace_missing_flags(variables, expected, tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    cluster = find(options(), variables)
    assert (cluster.nodes, cluster.node_rank, cluster.master_addr, cluster.master_port) == expected
    ignored = LARGER_JOB if "SLURM_STEP_NODELIST" in variables else ()
    for name in variables:
        assert (name in cluster.describe()) == (name not in ignored)
    overridden = find(options(node_rank=0, master_addr="mine", master_port=9001), variables)
    assert (overridden.nodes, overridden.node_rank, overridden.master_addr, overridden.master_port) == (
        2,
        0,
        "mine",
        9001,
    )
    assert find(options(nodes=1), variables).nodes == 1


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        ({"workers": 0}, {}, "--workers is 0"),
        ({"timeout": 0}, {}, "--timeout is 0"),
        ({"nodes": 0}, {}, "--nodes is 0, but must be at least 1"),
        ({"workers": 7, "nodes": 2}, {}, "--workers is 7, but must be a multiple of 2 machines, such as 6 or 8"),
        ({"workers": 1, "nodes": 2}, {}, "multiple of 2 machines, such as 2"),
        ({"node_rank": 1}, {}, "--node_rank is 1, but there is one machine"),
        (
            {"nodes": 2, "master_addr": "n0"},
            {},
            "--node_rank is missing: there are 2 machines by --nodes, so give it, or set one of NODE_RANK, "
            "SLURM_NODEID, VC_TASK_INDEX; with --nodes 1 only this machine trains",
        ),
        ({}, {"SLURM_JOB_NUM_NODES": "2"}, "--node_rank is missing: there are 2 machines by SLURM_JOB_NUM_NODES, so"),
        ({"nodes": 2, "node_rank": 0}, {}, "--master_addr is missing: there are 2 machines by --nodes, so"),
        ({"nodes": 2, "node_rank": 2, "master_addr": "n0"}, {}, "--node_rank is 2, but must be 0 to 1"),
        ({"nodes": 2, "node_rank": -1, "master_addr": "n0"}, {}, "--node_rank is -1"),
        ({"nodes": 2, "node_rank": 0, "master_addr": "n0", "master_port": 80}, {}, "--master_port is 80"),
        (
            {"nodes": 2, "node_rank": 0, "master_addr": "n0", "master_port": 0},
            {},
            "--master_port is 0, but must be 1024 to 65535",
        ),
        (
            {"nodes": 2, "node_rank": 0, "master_addr": "n0"},
            {"MASTER_PORT": "0"},
            "MASTER_PORT is 0, but must be 1024 to 65535",
        ),
        ({}, {"NNODES": "two"}, "NNODES is 'two', but must be a whole number; or give --nodes"),
        ({}, {"NNODES": "2", "NODE_RANK": "5", "MASTER_ADDR": "n0"}, "NODE_RANK is 5, but must be 0 to 1"),
        ({"nodes": 2}, {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n[3-4]"}, "`scontrol show hostnames` gave no host"),
    ],
)
def test_what_does_not_fit_together_is_refused(given, variables, expected, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert expected in refused(variables, **given)


def test_a_rank_table_gives_machines_and_devices(tmp_path):
    table = rank_table(tmp_path, [[(1, 5), (0, 4)], [(3, 7), (2, 6)]])
    cluster = find(options(rank_table=table, node_rank=1, master_addr="10.0.0.0", device_target="Ascend"), {})
    assert (cluster.nodes, cluster.first_rank) == (2, 2)
    assert f"--rank_table_file={table}" in cluster.msrun_arguments("logs")
    assert cluster.environment() == {"ASCEND_RT_VISIBLE_DEVICES": "6,7"}
    message = refused(rank_table=table, master_addr="10.0.0.0")
    assert "there are 2 machines by --rank_table, so" in message and "--nodes 1" not in message


@pytest.mark.parametrize(
    ("servers", "given", "expected"),
    [
        ([[(0, 0), (1, 1)]], {}, "which lists 2 devices, but --workers is 4"),
        ([[(0, 0), (1, 1)], [(2, 0), (3, 1)]], {"nodes": 4}, "which lists 2 servers, but --nodes is 4"),
        ([[(0, 0), (2, 1)], [(1, 0), (3, 1)]], {}, "whose rank_id are [[0, 2], [1, 3]] by server"),
        ([[(0, 0), (1, 1), (2, 2)], [(3, 0)]], {}, "whose rank_id are [[0, 1, 2], [3]]"),
        ([[(0, 0), (1, 1), (2, 2), (3, 3)]], {"device_target": "GPU"}, "only Ascend has rank tables"),
    ],
)
def test_a_rank_table_of_another_run_is_refused(servers, given, expected, tmp_path):
    assert expected in refused(rank_table=rank_table(tmp_path, servers), **given)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "which cannot be read (No such file or directory)"),
        ("{", "which is not JSON"),
        ("{}", "which has no server_list of devices"),
        ('{"server_list": [{"device": [{"rank_id": "first", "device_id": "0"}]}]}', "which has no server_list"),
        ('{"server_list": []}', "which lists 0 devices"),
        ('{"server_list": [], "status": "initializing"}', "whose status is 'initializing'"),
    ],
)
def test_a_file_that_is_no_rank_table_is_refused(content, expected, tmp_path):
    file = tmp_path / "table.json"
    if content is not None:
        file.write_text(content)
    assert f"--rank_table is {file}, {expected}" in refused(rank_table=str(file))


def test_a_port_is_found_or_refused():
    assert at_open_port(Cluster(2, master_port=0)).master_port > 1023
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(UserError, match="something else listens there"):
            at_open_port(Cluster(2, master_port=server.getsockname()[1]))


@pytest.mark.parametrize(
    ("address", "node_rank", "expected"),
    [
        ("127.0.1.1", 0, "which other machines cannot reach"),
        ("localhost", 1, "which other machines cannot reach"),
        ("192.0.2.77", 0, "this machine, number 0, does not have that address"),
        ("0.0.0.0", 1, "this machine's own, but the master is machine 0"),
        ("no such host", 0, "which this machine cannot resolve"),
    ],
)
def test_the_masters_address_must_be_machine_0s_own(address, node_rank, expected):
    cluster = Cluster(2, DEFAULT_PORT, address, nodes=2, node_rank=node_rank)
    with pytest.raises(UserError) as caught:
        at_open_port(cluster)
    assert expected in str(caught.value)


def test_the_address_of_another_machine_is_taken_as_it_is():
    cluster = Cluster(2, DEFAULT_PORT, "192.0.2.77", nodes=2, node_rank=1)
    assert at_open_port(cluster) == cluster
