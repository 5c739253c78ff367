"""Trains with several workers, one a device, in the foreground: msrun starts train.py --distribute on each machine.

One machine, with Ascend, GPU or CPU:
    bash scripts/run_distribute_train.sh --workers 8 --device_target Ascend --data_path DIR
    bash scripts/run_distribute_train.sh --workers 2 --device_target GPU --data_path DIR
    bash scripts/run_distribute_train.sh --workers 2 --device_target CPU --config configs/digits.yaml
Two machines, one launcher on each; --workers counts all workers of both:
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --node_rank 0 --master_addr 10.0.0.1 --data_path DIR
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --node_rank 1 --master_addr 10.0.0.1 --data_path DIR
Slurm, and Volcano or ModelArts, whose variables say the rest:
    srun --nodes 2 --ntasks-per-node 1 bash scripts/run_distribute_train.sh --workers 16 --data_path DIR
    bash scripts/run_distribute_train.sh --workers 16 --device_target Ascend --data_path DIR
Ascend with a rank table:
    bash scripts/run_distribute_train.sh --workers 8 --device_target Ascend --rank_table FILE --data_path DIR
What would be started where, without starting it:
    bash scripts/run_distribute_train.sh --workers 16 --nodes 2 --master_addr 10.0.0.1 --data_path DIR --dry-run
On with the last checkpoint, with another number of workers:
    bash scripts/run_distribute_train.sh --workers 4 --resume runs/latest

All arguments beside those below go to train.py; run_standalone_train.sh --help explains them. Each worker takes
data.batch_size images a step. The first worker of the machine is shown as it runs.

What no flag gives is looked up in the variables NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, then in those of Slurm,
then in those of Volcano; MASTER_ADDR and MASTER_PORT count with several machines alone. Several machines need different
host names, and machine 0 an address that all can reach.

With --rank_table the workers find each other as ever, through msrun's scheduler, and MindSpore gives the table to the
collective communication. The table must number the workers as msrun does, machine by machine.

SIGTERM, SIGHUP and Ctrl-C reach every worker: all finish the step, worker 0 saves, all end; the exit code is 143 or
130, on every machine. A second signal ends them at once. When a worker dies, hangs or cannot reach the others, all end
within a minute, one sentence names it and its log, and --resume goes on from the last checkpoint. The exit code is then
that of the worker that failed; 124 if it hung, went silent on another machine, or the workers did not meet.
"""

import argparse
import fcntl
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import cli
from ..errors import UserError
from ..training import arguments as training
from . import cluster as clusters
from .cluster import Cluster
from .processes import HANG_SECONDS, Launch, changes_to_environment, msrun_command

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str]) -> int:
    options, arguments = parse(argv)
    command = [str(ROOT / "train.py"), "--distribute", *arguments]
    if options.dry_run:
        options.node_rank = options.node_rank or 0
        print_commands(clusters.find(options), options.log_dir, command)
        return 0
    cluster = clusters.at_open_port(clusters.find(options))
    config, options_of_train = training.parse(command[1:])  # refuses bad input before anything is started
    if options_of_train.resume:  # all workers resume in one folder, also if a link to it changes meanwhile
        command += ["--resume", config.output_dir]
    if cluster.nodes > 1:
        print(cluster.describe(), flush=True)
    log_dir = log_folder(options.log_dir, cluster)
    with open_log_dir(log_dir):
        launch = Launch(cluster, log_dir, command, options.hang_timeout)
        launch.catch_signals()
        return launch.run()


def print_commands(cluster: Cluster, log_dir: str, command: Sequence[str]) -> None:
    """What each machine would run, to be pasted into a shell."""
    for node_rank in range(cluster.nodes):
        one = replace(cluster, node_rank=node_rank, master_port=cluster.master_port or clusters.DEFAULT_PORT)
        changes = changes_to_environment(one)
        path = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
        variables = [path, *(f"{name}={shlex.quote(changes[name])}" for name in changes if name != "PATH")]
        print(f"# machine {node_rank} of {cluster.nodes}")
        print(*variables, shlex.join(msrun_command(one, log_folder(log_dir, one), command)))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's flags, and the arguments for train.py."""
    parser = cli.Parser(prog="run_distribute_train.sh", description=__doc__)
    parser.add_argument("--workers", type=int, metavar="N", default=2, help="processes on all machines; default 2")
    parser.add_argument("--device_target", choices=("CPU", "GPU", "Ascend"), help="default: what the config says")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines, each with its own launcher; default 1")
    parser.add_argument("--node_rank", type=int, metavar="N", help="this machine's number, from 0")
    parser.add_argument(
        "--master_addr",
        metavar="HOST",
        help="machine 0, by the name or address that all reach it by; needed with several machines",
    )
    parser.add_argument(
        "--master_port",
        type=int,
        metavar="PORT",
        help="where the workers meet there, 1024 to 65535, the same on each machine; default: on one machine a free "
        f"one, on several {clusters.DEFAULT_PORT}",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        metavar="SECONDS",
        default=Cluster.timeout,
        help="how long workers wait for each other when they start; more where machines start at different times; "
        f"default {Cluster.timeout}",
    )
    parser.add_argument(
        "--hang_timeout",
        type=int,
        metavar="SECONDS",
        default=HANG_SECONDS,
        help="what a worker may take at least for a batch, a step or the like before it is found to hang and all are "
        "ended; more on slow disks; 0: never, unless it is stopped or does not answer the others; default "
        f"{HANG_SECONDS}",
    )
    parser.add_argument("--rank_table", metavar="FILE", help="Ascend: the JSON file that lists the cluster's devices")
    parser.add_argument(
        "--log_dir",
        metavar="DIR",
        default="runs/msrun_logs",
        help="where worker_N.log, scheduler.log and msrun.log go, with several machines in node_N there; default "
        "runs/msrun_logs",
    )
    parser.add_argument("--dry-run", action="store_true", help="print each machine's command and start nothing")
    options, arguments = parser.parse_known_args(argv)
    if options.hang_timeout < 0:
        raise UserError(f"--hang_timeout is {options.hang_timeout}, but must be at least 0 seconds")
    if options.device_target:
        arguments = ["--device_target", options.device_target, *arguments]
    if options.traceback:
        arguments = ["--traceback", *arguments]
    return options, arguments


def log_folder(folder: str, cluster: Cluster) -> Path:
    """This machine's own: machines may share their disks."""
    return Path(folder) / f"node_{cluster.node_rank}" if cluster.nodes > 1 else Path(folder)


def open_log_dir(folder: Path):
    """An open file that keeps other runs out of the folder until it is closed; the last run's logs are gone then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--log_dir is {folder}, but nothing can be written there ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise UserError(f"--log_dir is {folder}, where another run is writing; give this one its own") from error
        raise UserError(
            f"--log_dir is {folder}, which cannot be locked ({error.strerror}): give a folder on a local disk"
        ) from error
    for log in (*folder.glob("worker_*.log"), folder / "scheduler.log"):
        log.unlink(missing_ok=True)
    return lock


if __name__ == "__main__":
    sys.exit(cli.run(main))
