"""log.txt: what was printed, and nothing of progress bars."""

import errno
import sys

import pytest
from tqdm import tqdm

from src.errors import UserError
from src.training.log import RunLog, echo


def test_lines_of_both_streams_are_logged_also_those_before_the_file(tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.write_text("of the first part\n")
    with RunLog() as log:
        print("early")
        log.open(path)
        print("warning: käse", file=sys.stderr)
        print("no", "newline", end="")
    assert path.read_text(encoding="utf-8") == "of the first part\nearly\nwarning: käse\n"
    shown = capsys.readouterr()
    assert shown.out == "early\nno newline" and shown.err == "warning: käse\n"
    print("after")
    assert "after" not in path.read_text()


def test_a_bar_is_not_logged_and_a_line_is_not_glued_to_it(tmp_path, capsys):
    with RunLog() as log:
        log.open(tmp_path / "log.txt")
        with tqdm(total=2, file=sys.stderr, desc="bar", mininterval=0) as bar:
            bar.update()
            echo("a line", sys.stderr)
            bar.update()
        print("the end")
    assert (tmp_path / "log.txt").read_text() == "a line\nthe end\n"
    assert "\ra line\n" in capsys.readouterr().err.replace("\r ", "").replace(" \r", "\r")


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (UserError("bad\tvalue"), "error: bad\\tvalue\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: cannot use a file: No space left on device\n"),
    ],
)
def test_the_error_that_ends_the_run_is_logged_as_it_is_printed(tmp_path, error, logged):
    with pytest.raises(type(error)), RunLog() as log:
        log.open(tmp_path / "log.txt")
        raise error
    assert (tmp_path / "log.txt").read_text() == logged


def test_a_fault_of_the_program_is_logged_with_its_traceback(tmp_path):
    with pytest.raises(KeyError), RunLog() as log:
        log.open(tmp_path / "log.txt")
        {}["missing"]
    assert "Traceback" in (tmp_path / "log.txt").read_text() and "KeyError" in (tmp_path / "log.txt").read_text()


def test_neither_a_lost_terminal_nor_a_lost_log_ends_a_run(tmp_path, monkeypatch):
    terminal = (tmp_path / "terminal").open("w")

    class Gone:
        fileno = terminal.fileno

        def write(self, *text):
            raise OSError(errno.EIO, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    with RunLog() as log:
        log.open(tmp_path / "no folder" / "log.txt")
        print("into nothing", flush=True)
    with RunLog() as log:
        log.open(tmp_path / "log.txt")
        print("into the log", flush=True)
    assert (tmp_path / "log.txt").read_text() == "into the log\n"
