"""The process: environment, device, mode, seed, rank and world size. Called by the doors; imports MindSpore late."""

import _thread
import logging
import os
import platform
import signal
import threading
from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class Worker:
    """This process among those that train together: rank in 0 .. size - 1."""

    rank: int = 0
    size: int = 1


def prepare_environment() -> None:
    """Sets what MindSpore reads when it is imported, unless the user did. Call it before the import."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # MindSpore's oneDNN takes a reference loop, 40 times slower, for convolutions in its layout on AVX-512.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    # Idle OpenMP threads that spin take the cores from MindSpore's own threads: a tenth of the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Warnings of the framework's internals (3: errors alone) would bury the progress bar.
    os.environ.setdefault("GLOG_v", "3")


def deliver_interrupts() -> None:
    """Lets Ctrl-C always reach Python's handler. Call it before a thread is started, hence before MindSpore's import.

    While a graph runs, MindSpore's own handler turns SIGINT into SIGTERM. So no thread accepts SIGINT but one that
    waits for it and has Python's handler called, in the main thread as ever.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        while True:
            _thread.interrupt_main(signal.sigwait({signal.SIGINT}))

    threading.Thread(target=wait, name="interrupts", daemon=True).start()


def start(device_target: str = "CPU", mode: str = "graph", seed: int = 0, distribute: bool = False) -> Worker:
    """Chooses device, mode and seed, joins the other workers if `distribute`, and returns this worker's place.

    Raises:
        UserError: the device is absent, or `distribute` without msrun.
    """
    import mindspore as ms

    try:
        if ms.get_context("device_target") != device_target:  # once anything ran, even the same choice is refused
            logging.disable(logging.ERROR)  # MindSpore's lines on missing libraries, beside the error itself
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
    ms.set_auto_parallel_context(
        parallel_mode="data_parallel", gradients_mean=True, parameter_broadcast=True, device_num=worker.size
    )
    return worker


def versions() -> dict[str, str]:
    """What made a run: Python, packages, and the environment variables that change speed or rounding."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("mindspore", "mindcv", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    for variable in ("ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        found[variable] = os.environ.get(variable, "not set")
    return found


def _available_devices(error: Exception) -> str:
    """The targets that MindSpore's own message lists."""
    import re

    listed = re.search(r"\[([^\]]*CPU[^\]]*)\]", str(error))
    names = re.findall(r"CPU|GPU|Ascend", listed.group(1) if listed else "CPU")
    return f"this installation offers {', '.join(dict.fromkeys(names))}; choose one with --device_target"
