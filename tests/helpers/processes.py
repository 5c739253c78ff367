"""Run the programs as a user does: as processes, in an empty folder."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a test waits for a process or an event before it fails. On an idle machine of two cores nothing takes a
# tenth of it, so that a slow or busy machine does not fail.
PATIENCE = 3000
CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def command(program: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / program), *map(str, arguments)]


def run(program: str, *arguments, cwd: Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
    """The finished process, its output as text."""
    return subprocess.run(command(program, *arguments), cwd=cwd, capture_output=True, text=True, timeout=timeout)


def start(program: str, *arguments, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(program, *arguments), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process: subprocess.Popen, timeout: float = PATIENCE) -> None:
    """Return once `condition()` holds; fail if the process ends or the time runs out first."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode}: {process.communicate()[0]}"
        assert time.monotonic() < end, f"the condition did not become true within {timeout:g} s"
        time.sleep(0.02)


def modified(path: Path) -> int:
    """The file's time in nanoseconds, 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def write_cifar10(folder: Path, names: Sequence[str] = CIFAR10_FILES, within: str = "cifar-10-batches-bin") -> Path:
    """Files in CIFAR-10's layout, of random images with labels in turn. The files have full size."""
    target = folder / within
    target.mkdir(parents=True)
    for seed, name in enumerate(names):
        records = np.random.default_rng(seed).integers(0, 256, (10_000, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        records.tofile(target / name)
    return folder
