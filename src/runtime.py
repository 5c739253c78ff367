"""The process: environment, device, mode, seed, rank and world size. Called by the CLI; imports MindSpore late."""

import _thread
import atexit
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together: rank in 0 .. size - 1."""

    rank: int = 0
    size: int = 1


def prepare_environment() -> None:
    """Set environment variables that MindSpore reads on import, unless the user did, and let programs with a network in
    a global variable end without errors. Call it before the import."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # With AVX-512, MindSpore's oneDNN uses a reference loop for convolutions in its layout, 40 times slower.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    # Idle OpenMP threads that spin take cores from MindSpore's own threads, which then run at a tenth of the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # 3: only errors. Internal warnings of the framework would hide the progress bar.
    os.environ.setdefault("GLOG_v", "3")
    atexit.unregister(_release_main_module)  # an earlier call's
    atexit.register(_release_main_module)


def _release_main_module() -> None:
    """Make dill, which MindSpore's data sets import, forget the main module: it keeps it until MindSpore's modules are
    gone, and then each layer of a network there would print that it cannot be deleted."""
    for name in ("dill._dill", "dill.session"):
        if name in sys.modules:
            sys.modules[name]._main_module = types.ModuleType("__main__")


def deliver_interrupts() -> None:
    """Make Ctrl-C always reach Python's handler. Call it before any thread starts, so before MindSpore is imported.

    While a graph runs, MindSpore's own handler turns SIGINT into SIGTERM. So SIGINT is blocked in all threads except
    one, which waits for it and triggers Python's handler, in the main thread as usual.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        while True:
            _thread.interrupt_main(signal.sigwait({signal.SIGINT}))

    threading.Thread(target=wait, name="interrupts", daemon=True).start()


def start(device_target: str = "CPU", mode: str = "graph", seed: int = 0, distribute: bool = False) -> Worker:
    """Set device, mode and seed, join the other workers if `distribute`, and return this process's `Worker`.

    Raises:
        UserError: the device is not available, or `distribute` without msrun.
    """
    import mindspore as ms

    try:
        if ms.get_context("device_target") != device_target:  # after the first operation even the same one is refused
            logging.disable(logging.ERROR)  # hide MindSpore's lines on missing libraries; it raises an error too
            ms.set_device(device_target)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"device {device_target} is not available here: {_available_devices(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_seed(seed)
    if not distribute:
        return Worker()
    if "MS_WORKER_NUM" not in os.environ and "RANK_TABLE_FILE" not in os.environ:
        raise UserError(
            "--distribute needs a launcher: start it with scripts/run_distribute_train.sh, which uses msrun"
        )
    from mindspore.communication import get_group_size, get_rank, init

    init()
    worker = Worker(get_rank(), get_group_size())
    # No parameter_broadcast: it would overwrite each worker's own moving statistics when an epoch is resumed.
    # The seed gives all workers the same weights; the trainer checks that they are.
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True, device_num=worker.size)
    return worker


def versions() -> dict[str, str]:
    """Versions used by a run: the code's commit, Python, packages, the processor with the number of its cores that the
    process may use, and environment variables that change speed or rounding."""
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "git commit": git_commit(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": str(usable_cores()),
    }
    for package in ("mindspore", "mindcv", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for variable in ("ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        found[variable] = os.environ.get(variable, "not set")
    return found


def code_and_machine() -> str:
    """Code and machine in a line, for the heading of a measurement."""
    found = versions()
    return (
        f"commit {found['git commit']}, MindSpore {found['mindspore']}, {found['processor']}, {found['cores']} core(s)"
    )


def processor() -> str:
    """The name of the processor, as Linux gives it; otherwise its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit(root: Path) -> str:
    """The commit of the repository with the top folder `root`, and "(dirty)" if tracked files differ from it;
    "unknown" for an installed package or without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        return done.stdout.strip()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return "unknown"
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" (dirty)" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _available_devices(error: Exception) -> str:
    """The device targets that MindSpore's error message lists."""
    import re

    listed = re.search(r"\[([^\]]*CPU[^\]]*)\]", str(error))
    names = re.findall(r"CPU|GPU|Ascend", listed.group(1) if listed else "CPU")
    return f"this installation offers {', '.join(dict.fromkeys(names))}; choose one with --device_target"
