"""Train with several workers, one per device, in the foreground. On each machine msrun starts train.py --distribute.

One machine, with Ascend, GPU or CPU:
    bash scripts/run_distribute_train.sh --workers 8 --device_target Ascend --data_path DIR
    bash scripts/run_distribute_train.sh --workers 2 --device_target GPU --data_path DIR
    bash scripts/run_distribute_train.sh --workers 2 --device_target CPU --config configs/digits.yaml
Two machines, one launcher on each; --workers counts the workers of both:
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --node_rank 0 --master_addr 10.0.0.1 \\
        --data_path DIR --output_dir runs/two_machines
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --node_rank 1 --master_addr 10.0.0.1 \\
        --data_path DIR --output_dir runs/two_machines
Slurm, Volcano and ModelArts, whose variables give the rest:
    srun --nodes 2 --ntasks-per-node 1 bash scripts/run_distribute_train.sh --workers 16 --data_path DIR
    bash scripts/run_distribute_train.sh --workers 16 --device_target Ascend --data_path DIR
Ascend with a rank table:
    bash scripts/run_distribute_train.sh --workers 8 --device_target Ascend --rank_table FILE --data_path DIR
Print what each machine would run, and start nothing:
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --master_addr 10.0.0.1 --data_path DIR --dry-run
Continue from the last checkpoint, with another number of workers:
    bash scripts/run_distribute_train.sh --workers 4 --resume runs/latest

All other arguments go to train.py; run_standalone_train.sh --help explains them. Each worker takes data.batch_size
images per step. The output of the machine's first worker is shown.

A flag that is not given is looked up in the variables NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, then in those of
Slurm, then in those of Volcano. MASTER_ADDR and MASTER_PORT only count with several machines, which need different host
names; machine 0 needs an address that all of them can reach.

With --rank_table, too, the workers find each other through msrun's scheduler; MindSpore gives the table to the
collective communication. The table must number the workers as msrun does, machine by machine.

SIGTERM, SIGHUP and Ctrl-C reach every worker: all finish the step, worker 0 saves, all end. The exit code is 143 or
130, on every machine. A second signal ends the workers at once. If a worker dies, hangs or loses contact with the
others, all end within a minute, one sentence names it and its log, and --resume continues from the last checkpoint. The
exit code is then that of the worker that failed, or 124 if a worker hung, no longer answered, or did not connect.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import cli

with cli.explain_missing_packages():
    from ..errors import UserError
    from ..run_dir import RUNS, dated_name, make_run_dir
    from ..training import arguments as training
    from . import cluster as clusters
    from .cluster import Cluster
    from .logs import open_log_dir
    from .processes import HANG_SECONDS, Supervisor, changes_to_environment, msrun_command

ROOT = Path(__file__).resolve().parents[2]
LOGS = "launch_logs"  # in the run folder


def main(argv: Sequence[str]) -> int:
    options, arguments = parse(argv)
    if options.dry_run:
        options.node_rank = options.node_rank or 0
    cluster = clusters.find(options)
    config, train_options = training.parse(  # refuses bad input before anything is started
        ["--distribute", *arguments], other_flags=options.flags
    )
    run_dir = config.output_dir
    if options.dry_run:
        run_dir = run_dir or str(RUNS / dated_name(config.network.name, config.data.name))
    else:
        cluster = clusters.at_open_port(cluster)
        if not (run_dir or options.log_dir):
            run_dir = str(make_run_dir(config.network.name, config.data.name))
    command = [str(ROOT / "train.py"), "--distribute", *arguments]
    if run_dir and run_dir not in arguments:  # one folder for all workers, also if runs/latest changes in the meantime
        command += ["--resume" if train_options.resume else "--output_dir", run_dir]
    logs = options.log_dir or str(Path(run_dir) / LOGS)
    if options.dry_run:
        print_commands(cluster, logs, command)
        return 0
    if cluster.nodes > 1:
        print(cluster.describe(), flush=True)
    log_dir = log_folder(logs, cluster)
    with open_log_dir(log_dir):
        supervisor = Supervisor(cluster, log_dir, command, options.hang_timeout)
        supervisor.forward_signals()
        return supervisor.run()


def print_commands(cluster: Cluster, log_dir: str, command: Sequence[str]) -> None:
    """Print what each machine would run, ready to be pasted into a shell."""
    for node_rank in range(cluster.nodes):
        one = replace(cluster, node_rank=node_rank, master_port=cluster.master_port or clusters.DEFAULT_PORT)
        changes = changes_to_environment(one)
        path = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
        variables = [path, *(f"{name}={shlex.quote(changes[name])}" for name in changes if name != "PATH")]
        print(f"# machine {node_rank} of {cluster.nodes}")
        print(*variables, shlex.join(msrun_command(one, log_folder(log_dir, one), command)))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the launcher's flags, and the arguments for train.py."""
    parser = cli.Parser(prog="run_distribute_train.sh", description=__doc__)
    parser.add_argument(
        "--workers", type=cli.integer, metavar="N", default=2, help="processes on all machines together; default 2"
    )
    parser.add_argument(
        "--device_target", choices=("CPU", "GPU", "Ascend"), help="default: runtime.device_target of the config"
    )
    parser.add_argument(
        "--nodes", type=cli.integer, metavar="N", help="number of machines, each with its own launcher; default 1"
    )
    parser.add_argument("--node_rank", type=cli.integer, metavar="N", help="this machine's number, from 0")
    parser.add_argument(
        "--master_addr",
        metavar="HOST",
        help="name or address of machine 0 that all machines can reach; needed with several machines",
    )
    parser.add_argument(
        "--master_port",
        type=cli.integer,
        metavar="PORT",
        help="port of machine 0 to which the workers connect, 1024 to 65535, the same on each machine; default: a free "
        f"one with one machine, {clusters.DEFAULT_PORT} with several",
    )
    parser.add_argument(
        "--timeout",
        type=cli.integer,
        metavar="SECONDS",
        default=Cluster.timeout,
        help="how long workers wait for each other at the start; give more if machines start at different times; "
        f"default {Cluster.timeout}",
    )
    parser.add_argument(
        "--hang_timeout",
        type=cli.integer,
        metavar="SECONDS",
        default=HANG_SECONDS,
        help="time limit for a batch, a step or another action of a worker; if one takes longer, all workers are "
        "ended; give more on slow disks; 0: no limit, except for a worker that is stopped or no longer answers; "
        f"default {HANG_SECONDS}",
    )
    parser.add_argument(
        "--rank_table", metavar="FILE", type=cli.path, help="Ascend: the JSON file that lists the cluster's devices"
    )
    parser.add_argument(
        "--log_dir",
        metavar="DIR",
        type=cli.path,
        help="folder for worker_N.log, scheduler.log and msrun.log; with several machines, its subfolder node_N; "
        f"default: {LOGS} in the run folder",
    )
    parser.add_argument("--dry-run", action="store_true", help="print each machine's command and start nothing")
    options, arguments = parser.parse_known_args(argv)
    options.flags = [name for action in parser._actions for name in action.option_strings]
    if options.hang_timeout < 0:
        raise UserError(f"--hang_timeout is {options.hang_timeout}, but must be at least 0 seconds")
    if options.device_target:
        arguments = ["--device_target", options.device_target, *arguments]
    if options.traceback:
        arguments = ["--traceback", *arguments]
    return options, arguments


def log_folder(folder: str, cluster: Cluster) -> Path:
    """Return the folder of this machine's logs: machines may share their disks."""
    return Path(folder) / f"node_{cluster.node_rank}" if cluster.nodes > 1 else Path(folder)


if __name__ == "__main__":
    sys.exit(cli.run(main))
