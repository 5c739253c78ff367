"""Start exports, each in a process of its own: MindSpore cannot write two ONNX files in one process.

This module imports no MindSpore.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Not `python -m`, which looks in the current folder first and would find another package of the same name there.
START = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path[:] = [root, *(folder for folder in sys.path if folder not in ('', root))]; "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def run_export_job(request: dict[str, Any], traceback: bool = False) -> int:
    """Run `export_job` in a child process and return its exit code.

    Args:
        request: the arguments of `export_job.run`, as plain data.
        traceback: whether an error shows where it came from.
    """
    root = Path(__file__).resolve().parents[2]  # holds this package, whatever it is called there
    words = [sys.executable, "-c", START, str(root), f"{__package__}.export_job", json.dumps(request)]
    return subprocess.run([*words, *(["--traceback"] if traceback else [])]).returncode
