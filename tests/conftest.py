"""Fixtures of all tests. The environment is set before the first `import mindspore`, so before any test file."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()


def run_in(mode: str):
    """Set the execution mode for one test."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    yield mode


@pytest.fixture(autouse=True)
def pynative_mode():
    """A test that does not ask for a mode runs in PyNative mode, MindSpore's default, whichever tests run before."""
    yield
    if "mindspore" in sys.modules:
        ms = sys.modules["mindspore"]
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def graph_mode():
    """Run the test in graph mode, for what only a compiled graph has."""
    yield from run_in("graph")


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Run the test in either execution mode."""
    yield from run_in(request.param)


@pytest.fixture(params=[pytest.param("graph", marks=pytest.mark.slow), "pynative"])
def any_mode(request):
    """Like `mode`, but graph mode is slow: for tests with graphs similar to those of another test, which takes `mode`.

    Compiling a graph of a few operations takes five to ten times as long as running them one by one.
    """
    yield from run_in(request.param)


@pytest.fixture(params=["native", "plain"])
def backend(request, monkeypatch):
    """Run the test with the C++ kernels for CPU, and with plain operations alone."""
    monkeypatch.setenv("BNN_NATIVE", "1" if request.param == "native" else "0")
    if request.param == "native":
        from tests.helpers.kernels import require_kernels

        require_kernels()
    return request.param


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Initial weights are the same whichever tests run before."""
    if "mindspore" in sys.modules:
        sys.modules["mindspore"].set_seed(0)


@pytest.fixture(autouse=True, scope="module")
def free_memory():
    """Give the memory of a file's networks back to the system: after collection most of it stays with the process."""
    yield
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def pytest_collection_finish() -> None:
    """Exclude all modules from garbage collection: MindSpore collects before each compilation, 0.3 s over them all."""
    gc.collect()
    gc.freeze()
