"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.errors import UserError


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a place beside `path` and renames what it made, so that `path` is at every moment whole.

    Raises:
        UserError: it cannot be written; an earlier file at `path` is untouched.
    """
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder, give the name of a file")
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        with contextlib.suppress(OSError, ValueError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def write_text(path: Path, text: str) -> None:
    """A text file, by `write_beside`."""
    write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; UserError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


def require_writable(folder: Path) -> None:
    """UserError if no file can be written in a folder, or if it is not there and cannot be made. Leaves nothing."""
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"cannot write in the folder {folder}: {place}: {error.strerror}") from error
