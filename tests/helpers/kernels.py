"""Whether the C++ kernels can be tested here."""

import shutil

import pytest

from src.binary.kernels import chosen_path, native


def require_kernels() -> None:
    """Skip the test if there is no compiler or no folder of kernels; with them, kernels must be what is chosen."""
    if native is None:
        pytest.skip("src/binary/native is not there")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("there is no C++ compiler")
    assert chosen_path() == "native kernels"
