"""The folder for the logs of msrun and its workers."""

import errno
import fcntl
import os

import pytest

from src.errors import UserError
from src.launch.logs import open_log_dir


def test_two_runs_do_not_share_a_log_folder(tmp_path):
    with open_log_dir(tmp_path / "logs"):
        with pytest.raises(UserError, match="where another run is writing"):
            with open_log_dir(tmp_path / "logs"):
                pass
    with open_log_dir(tmp_path / "logs"):
        pass


def test_logs_of_an_earlier_run_are_deleted_and_other_files_stay(tmp_path):
    for name in ("worker_0.log", "worker_17.log", "scheduler.log", "notes.txt"):
        (tmp_path / name).touch()
    with open_log_dir(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".lock"}
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(file, flags):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with open_log_dir(tmp_path):
        assert "cannot be locked (No locks available)" in capsys.readouterr().err
