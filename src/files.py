"""Write files completely or not at all; locks and folders."""

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, WriteError

PARTIAL = ".partial"  # in the names of files that are being written


def write_atomically(path: Path, write: Callable[[Path], Any], suffix: str = "") -> None:
    """Call `write` with a path next to `path`, then rename its file to `path`, which is complete at every moment.

    The content reaches the disk before the rename: after a power cut too, the file is the old one or the new one.

    Args:
        path: the file.
        write: writes the file; raises OSError, RuntimeError or ValueError if it cannot.
        suffix: suffix that the path given to `write` must have.

    Raises:
        WriteError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    if not path.name:
        raise UserError(f"cannot write {path}: it is a folder, give the name of a file")
    partial = path.with_name(f".{path.name}{PARTIAL}{suffix}")
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder, give the name of a file")
        write(partial)
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise WriteError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file with `write_atomically`."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def locked(path: Path, wait: bool = False, inherited: bool = False) -> Iterator[int]:
    """Hold an exclusive lock, and give the descriptor of its file. The lock ends with the process, in whatever way.

    The lock is on a file, not a folder, and the file is open for writing: network disks need both. Machines that share
    a disk exclude each other if the disk supports locks. A disk without locks causes a warning.

    Args:
        path: path of the lock file, which is created, and deleted at the end.
        wait: wait if another process holds the lock.
        inherited: child processes inherit the descriptor and hold the lock too until they end, even if this process is
            killed. So the file is not deleted.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        OSError: the file cannot be opened for writing.
    """
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                print(
                    f"warning: {path} cannot be locked ({error.strerror}): do not start a second run there",
                    file=sys.stderr,
                )
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue  # the process that held it has just deleted it, and a third one may have created it again
            try:
                yield file.fileno()
            finally:
                if not inherited:
                    with contextlib.suppress(OSError):  # the folder became unwritable: that error is already on its way
                        path.unlink(missing_ok=True)
            return


def make_folder(path: Path) -> None:
    """Create a folder and its parents; UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().split("\n")[0]


def require_writable(folder: Path) -> None:
    """UserError if no file can be written in a folder, or if it does not exist and cannot be created. Leaves no
    file."""
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"cannot write in the folder {folder}: {place}: {error.strerror}") from error
