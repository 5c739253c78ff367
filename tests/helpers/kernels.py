"""Whether the C++ kernels can be tested here, and tests of both paths that cost as much as those of one."""

import pytest

from src import native_build
from src.binary.kernels import chosen_path, native

# The fixtures `mode` and `backend` for tests that take long: two of the four pairs are slow.
modes_and_backends = pytest.mark.parametrize(
    ("mode", "backend"),
    [
        ("graph", "native"),
        ("pynative", "plain"),
        pytest.param("graph", "plain", marks=pytest.mark.slow),
        pytest.param("pynative", "native", marks=pytest.mark.slow),
    ],
    indirect=True,
)


def require_kernels() -> None:
    """Skip the test if there is no compiler or no folder of kernels; with them, kernels must be what is chosen."""
    if native is None:
        pytest.skip("src/binary/native is not there")
    require_compiler()
    assert chosen_path() == "native kernels"


def require_compiler() -> tuple[str, ...]:
    """The command that kernels are compiled with, which CXX may name; skip the test if there is none."""
    try:
        return native_build._compiler()
    except native_build.Unavailable as error:
        pytest.skip(str(error))
