"""Fixtures of all tests. The environment must stand before the first `import mindspore`, hence before any test file."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()


@pytest.fixture(params=["graph", "pynative"])
def mode(request) -> str:
    """Runs the test in either execution mode, and leaves graph mode behind."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE if request.param == "graph" else ms.PYNATIVE_MODE)
    yield request.param
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Initial weights are the same whichever tests run before."""
    if "mindspore" in sys.modules:
        sys.modules["mindspore"].set_seed(0)
