"""The versions and settings that a run records, and the signals of its process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.runtime import git_commit, processor, usable_cores, versions
from tests.helpers.processes import ROOT


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_machine_is_named():
    found = versions()
    assert found["processor"] == processor() and int(found["cores"]) == usable_cores() >= 1
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and "model name" in cpuinfo.read_text():
        assert f": {processor()}\n" in cpuinfo.read_text()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_a_repository_of_our_own(tmp_path, monkeypatch):
    tmp_path = tmp_path.resolve()
    assert git_commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) == "unknown"  # nothing is committed yet
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "First")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert git_commit(tmp_path) == commit
    (tmp_path / "src/file.py").write_text("2\n")
    assert git_commit(tmp_path) == f"{commit} (dirty)"
    assert git_commit(tmp_path / "src") == "unknown"  # installed inside a repository of somebody else
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) == "unknown"  # without git


def test_no_thread_has_started_when_interrupts_are_set_up():
    """A thread that started before would take Ctrl-C for MindSpore's handler, which makes SIGTERM of it."""
    program = "import psutil, train; print(psutil.Process().num_threads())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_script_with_a_network_in_a_global_variable_ends_in_silence():
    program = """from src import runtime
runtime.prepare_environment()
from src.models import create_model
network = create_model("resnet20")"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
