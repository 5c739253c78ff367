"""log.txt: what a run printed. And printing while a progress bar is shown."""

import contextlib
import sys
import traceback
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from .. import cli


def echo(line: str, stream: TextIO | None = None) -> None:
    """Print a line above the progress bar, if one is shown. A terminal that is gone does not end a run."""
    stream = stream or sys.stdout
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: in a signal handler, while another line is printed
        tqdm.write(line, file=stream)
        stream.flush()


class RunLog:
    """Copies what this process prints into a file, as long as the context lasts; progress bars are left out.

    What is printed before `open` is kept and written then. The error that ends the context is logged as the CLI prints
    it, a bug with its traceback. A file that cannot be written does not end a run.
    """

    def __init__(self) -> None:
        self.file: TextIO | None = None
        self.pending: list[str] = []

    def __enter__(self) -> "RunLog":
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Copied(sys.stdout, self), _Copied(sys.stderr, self)
        return self

    def open(self, path: Path) -> None:
        """Append to this file from now on."""
        with contextlib.suppress(OSError):
            self.file = path.open("a", encoding="utf-8", errors="backslashreplace")
            self.add("".join(self.pending))

    def add(self, text: str) -> None:
        if self.file is None:
            self.pending.append(text)
            return
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: in a signal handler
            self.file.write(text)
            self.file.flush()

    def __exit__(self, kind, error, trace) -> None:
        sys.stdout, sys.stderr = self.streams
        for stream in self.streams:
            cli.discard_if_unwritable(stream)
        if isinstance(error, Exception):
            sentence = cli.sentence(error)
            self.add("".join(traceback.format_exception(error)) if sentence is None else f"error: {sentence}\n")
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()


class _Copied:
    """A stream whose lines also go to the log. If it can no longer be written, the run continues."""

    def __init__(self, stream: TextIO, log: RunLog):
        self.stream = stream
        self.log = log
        self.line = ""

    def write(self, text: str) -> int:
        if "\r" not in text:  # else a progress bar, which draws its line again and again
            *lines, self.line = (self.line + text).split("\n")
            self.log.add("".join(f"{line}\n" for line in lines if line))
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)
