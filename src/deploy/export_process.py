"""Start exports, each in a separate process: MindSpore cannot write two ONNX files in one process.

This module does not import MindSpore.
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
        traceback: whether to show the traceback of an error.
    """
    root = Path(__file__).resolve().parents[2]  # holds this package, under whatever name
    words = [sys.executable, "-c", START, str(root), f"{__package__}.export_job", json.dumps(request)]
    return subprocess.run([*words, *(["--traceback"] if traceback else [])]).returncode
