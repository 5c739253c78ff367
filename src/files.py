"""Files that are written whole or not at all."""

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
    """Call `write` with a path next to `path` and rename what it made, so that `path` is at every moment a whole file.

    The content reaches the disk before the name does: after a power cut, too, the file is the old one or the new one.

    Args:
        path: the file.
        write: makes it; raises OSError, RuntimeError or ValueError where it cannot.
        suffix: that the place must end in.

    Raises:
        WriteError: it cannot be written; an earlier file at `path` is untouched.
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
    """A text file, by `write_atomically`."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def locked(path: Path, wait: bool = False, inherited: bool = False) -> Iterator[int]:
    """Hold an exclusive lock, and give the descriptor of its file. The lock ends with the process, however that ends.

    A file is locked, not a folder, and it is open for writing: network disks want both. Machines that share a disk
    exclude each other as far as the disk supports locks. A disk without locks gets a warning.

    Args:
        path: of the lock's file, which is made, and removed at the end.
        wait: wait if another process holds the lock.
        inherited: child processes inherit the descriptor and hold the lock as well until they end, also after this
            process has been killed. So the file is not removed.

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
                    f"warning: {path} cannot be locked ({error.strerror}): start no second run there", file=sys.stderr
                )
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue  # the process that held it has just removed it, and a third one may have made the next one
            try:
                yield file.fileno()
            finally:
                if not inherited:
                    with contextlib.suppress(OSError):  # the folder became unwritable: that error is already on its way
                        path.unlink(missing_ok=True)
            return


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; UserError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().split("\n")[0]


def require_writable(folder: Path) -> None:
    """UserError if no file can be written in a folder, or if it is not there and cannot be made. Leaves nothing."""
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"cannot write in the folder {folder}: {place}: {error.strerror}") from error
