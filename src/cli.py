"""What the command line programs share: errors as one sentence, exit codes, and dotted config keys as flags."""

import argparse
import contextlib
import difflib
import errno
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from .config import FREE_KEYS, Config, annotation_of, leaf_keys, parse_override
from .errors import UserError

BAD_INPUT = 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As MindSpore says it on CPU, GPU and Ascend.
OUT_OF_MEMORY = re.compile(
    r"memory (isn't|is not|not) enough|out of memory|(alloc\w*|malloc)[^\n]*memory[^\n]*fail", re.IGNORECASE
)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors, and which does not take abbreviations of flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--traceback", action="store_true", help="show where an error came from")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does; an empty value, such as a shell's unset variable leaves, is refused."""
        arguments, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if vars(arguments).get(action.dest) == "":
                name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
                self.error(f"{name} is empty, but must have a value")
        return arguments, rest

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` and returns its exit code; a UserError, or an OSError about a file, becomes one sentence and
    exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(argv)
    except KeyboardInterrupt:
        return 130
    except (UserError, MemoryError, RuntimeError, OSError) as error:
        sentence = str(error) if isinstance(error, UserError) else _beyond_the_program(error)
        if sentence is None:
            raise
        if "--traceback" in argv:
            traceback.print_exc()
        print(f"error: {one_line(sentence)}", file=sys.stderr)
        return BAD_INPUT


def echo(line: str, stream: TextIO | None = None) -> None:
    """Prints a line where it can; that nobody reads it, or that a log's disk is full, is no reason to lose a run."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: in a signal handler, while another line is printed
        print(line, file=stream or sys.stdout, flush=True)


def one_line(message: str) -> str:
    """The message with control characters as escapes, and with words longer than any path cut."""
    printable = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in message
    )
    return re.sub(r"(\S{200})\S{200,}(\S{20})", r"\1...\2", printable)


def _beyond_the_program(error: Exception) -> str | None:
    """What the machine failed at, in a sentence; None if it is a fault of the program."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        return f"cannot use {error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        size = re.search(r"alloc size: ?(\d+)B", str(error))
        asked = f", {int(size.group(1)) / 2**20:.0f} MiB more were asked for" if size else ""
        return f"out of memory{asked}: lower data.batch_size, or end other programs; written files are as they were"
    return None


def add_config_flags(parser: Parser, shorthands: dict[str, str]) -> None:
    """A flag for every key of the config, dotted: --optimizer.lr. `shorthands`: further flags of some keys."""
    group = parser.add_argument_group("config keys (default_config.yaml explains them)")
    for key in leaf_keys(Config):
        names = [flag for flag, target in shorthands.items() if target == key]
        if f"--{key}" not in names:
            names.append(f"--{key}")
        switch = (
            {"nargs": "?", "const": "true"} if annotation_of(key) is bool else {}
        )  # --download is short for --download true
        group.add_argument(*names, dest=key, metavar="VALUE", default=argparse.SUPPRESS, **switch)


def parse_config_flags(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parsed arguments, and the config keys among them with their values.

    Raises:
        UserError: an unknown flag, with the nearest known one; a flag without its value.
    """
    arguments, rest = parser.parse_known_args(argv)
    overrides = {key: parse_override(key, text) for key, text in vars(arguments).items() if key in leaf_keys(Config)}
    words = iter(rest)
    for word in words:
        flag, equals, text = word.partition("=")
        if not flag.startswith(tuple(f"--{key}." for key in FREE_KEYS)):
            known = [name for action in parser._actions for name in action.option_strings]
            matches = [name for name in known if name.endswith("." + flag.lstrip("-"))] or difflib.get_close_matches(
                flag, known, n=1
            )
            hint = f" (did you mean {matches[0]}?)" if matches else ""
            parser.error(f"unknown argument {word!r}{hint}")
        if not equals:
            text = next(words, None)
            if text is None:
                parser.error(f"{flag} needs a value")
        key = flag.removeprefix("--")
        overrides[key] = parse_override(key, text)
    return arguments, overrides
