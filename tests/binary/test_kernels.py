"""The choice of a path where the folder of kernels is not there. The kernels themselves are in test_native.py."""

import shutil
import subprocess
import sys

from tests.helpers import processes

USE = "from src.binary.kernels import chosen_path, native; print(native); print(chosen_path())"


def test_a_pycache_that_is_left_of_the_folder_is_no_folder_of_kernels(tmp_path):
    """git does not delete an ignored `__pycache__`, and to Python a folder without `__init__.py` is a package."""
    shutil.copytree(processes.ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("native", "__pycache__"))
    (tmp_path / "src/binary/native/__pycache__").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["None", "plain operations (src/binary/native is not there)"], done.stderr
