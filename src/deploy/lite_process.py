"""MindSpore Lite in a Python of its own, which may be older than this project's. Imports no MindSpore.

    bash scripts/run_convert_lite.sh exports/net.onnx exports/net_lite.mindir --device ascend

converts a file for MindSpore Lite; one for CPUs is compared with its source. The environment variable PYTHON_LITE names
the Python that has MindSpore Lite; without it, that is this one. `lite.py` is what runs there.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .. import cli
from ..errors import UserError
from . import description
from .exported_model import ExportedModel
from .formats import FORMATS
from .lite import DEVICES, NOT_INSTALLED, LiteError, check

PYTHON_LITE = "PYTHON_LITE"
SERVER = Path(__file__).with_name("lite.py")
COMPARED_IMAGES = 500


def load(path: Path, device: str = "cpu") -> ExportedModel:
    """Load a file into MindSpore Lite.

    Args:
        path: ends in .mindir or .ms.
        device: "cpu" or "ascend".

    Raises:
        LiteError: MindSpore Lite is not installed, or cannot read the file or use the device.
    """
    outputs = outputs_of(path, lite_python(), device)
    return ExportedModel(lambda images: outputs(images)[0])


def lite_python() -> str:
    """The Python that has MindSpore Lite: PYTHON_LITE, or this one. LiteError: neither."""
    if python := os.environ.get(PYTHON_LITE):
        return python
    if importlib.util.find_spec("mindspore_lite") is None:
        raise LiteError(NOT_INSTALLED.format(sys.executable))
    return sys.executable


def outputs_of(path: Path, python: str, device: str = "cpu") -> Callable[[np.ndarray], list[np.ndarray]]:
    """Load a file in a process of `python`, and return the function from images, float32 (N, C, H, W), to all outputs.

    The process ends with the function, or with this process.

    Raises:
        LiteError: as `load`; the returned function raises it, too.
    """
    folder = tempfile.TemporaryDirectory(prefix="fda_bnn_lite_")
    log, images_file, outputs_file = (
        str(Path(folder.name) / name) for name in ("log.txt", "images.npy", "outputs.npz")
    )
    command = [python, str(SERVER), "serve", str(path), "--device", device]
    try:
        with open(log, "w") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, encoding="utf-8"
            )
    except OSError as error:
        folder.cleanup()
        raise LiteError(f"{PYTHON_LITE} is {python!r}, which cannot be started: {error.strerror}") from error

    def end() -> None:
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the process may have ended by itself
                pipe.close()
        process.wait()
        folder.cleanup()

    def wait_for_reply() -> None:
        reply = process.stdout.readline()
        if not reply:
            lines = Path(log).read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            raise LiteError(f"{python} ended with {process.wait()} while it had {path}: {last.strip()}")
        if error := json.loads(reply)["error"]:
            raise LiteError(error)

    def outputs(images: np.ndarray) -> list[np.ndarray]:
        np.save(images_file, images)
        with contextlib.suppress(OSError):  # the process has ended; then there is no reply
            process.stdin.write(json.dumps({"images": images_file, "outputs": outputs_file}) + "\n")
            process.stdin.flush()
        wait_for_reply()
        with np.load(outputs_file, allow_pickle=False) as found:
            return [found[name] for name in found.files]

    finalizer = weakref.finalize(outputs, end)
    try:
        wait_for_reply()
    except LiteError:
        finalizer()
        raise
    return outputs


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="scripts/run_convert_lite.sh", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", type=cli.path, help=".onnx or .mindir file of export.py")
    parser.add_argument("target", metavar="TARGET", type=cli.path, help=".mindir, or .ms for small devices")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=f"default: {DEVICES[0]}")
    arguments = parser.parse_args(argv)
    source, target = Path(arguments.source), Path(arguments.target)
    try:
        check(str(source), str(target))
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            unverified = Path(folder) / target.name
            result = convert(source, unverified, arguments.device)
            description.path_of(target).unlink(missing_ok=True)  # no description is better than another file's
            os.replace(unverified, target)
            if (described := description.path_of(unverified)).exists():
                os.replace(described, description.path_of(target))
    except LiteError as error:
        raise UserError(str(error)) from error
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB; {result}")
    return 0


def convert(source: Path, target: Path, device: str) -> str:
    """Convert a file for MindSpore Lite and, on a CPU, compare it with the source. Return a sentence about that.

    Raises:
        LiteError: MindSpore Lite is not installed, or cannot convert or run the file.
        UserError: the file does not agree with its source.
    """
    python = lite_python()
    command = [python, str(SERVER), "convert", str(source), str(target), "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise LiteError(f"{PYTHON_LITE} is {python!r}, which cannot be started: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise LiteError(lines[-1].removeprefix("error: "))
    if device != "cpu":
        return "not compared: compare its accuracy on the device, by eval.py --model"
    if source.suffix != ".onnx" or not description.path_of(source).exists():
        return "not compared: only ONNX files of export.py show the values before signs"
    from .verification import compare_files  # imports MindSpore

    described = description.read(source).input
    images = np.random.default_rng(0).normal(size=(COMPARED_IMAGES, *described.shape)).astype(np.float32)
    outputs = outputs_of(target, python)
    model = ExportedModel(lambda batch: outputs(batch)[0])
    try:
        return f"{compare_files(FORMATS['ONNX'].load(source), model, images, described.batch_size or 1)} (random)"
    except UserError as error:
        raise UserError(f"{target.name} does not agree with {source} and is not kept: {error}") from error


if __name__ == "__main__":
    sys.exit(cli.run(main))
