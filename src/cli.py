"""What the command line programs share: flags with explanations, exit codes, and errors as one sentence.

Imports only the standard library, so that a Python without this project's requirements gets a sentence, too.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from .errors import UserError

BAD_INPUT = 2
NO_READER = 141  # 128 + SIGPIPE: nothing reads the output
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As MindSpore reports it on CPU, GPU and Ascend.
OUT_OF_MEMORY = re.compile(
    r"memory (isn't|is not|not) enough|out of memory|(alloc\w*|malloc)[^\n]*memory[^\n]*fail", re.IGNORECASE
)
A_CHECKPOINT = "a .ckpt or .safetensors file, or pretrained:NAME"
POSIX_MODULES = ("fcntl", "resource", "termios")
# What people call a flag, from other programs, and where its value goes here: the first that the program has.
ALSO_CALLED = {
    "--model --arch --net --backbone": ("network.name",),
    "--gpu --gpus --device --cuda --npu": ("runtime.device_target",),
    "--pretrained --weights --load --checkpoint --ckpt --ckpt_path --finetune": ("init_checkpoint", "checkpoint"),
    "--output --out --out_dir --outdir --save --save_dir --logdir --work_dir --run_dir": ("output_dir", "output"),
    "--num_workers --threads --workers -j": ("data.num_parallel_workers",),
    "--data --data_dir --data_root --root --dataset_path": ("data.path",),
    "--opt --optim": ("optimizer.name",),
    "--sched --lr_scheduler": ("scheduler.name",),
    "--learning_rate --base_lr -lr": ("optimizer.lr",),
    "--bs --batch": ("data.batch_size", "batch_size"),
    "--num_epochs --max_epochs --epoch_size": ("train.epochs",),
    "--wd": ("optimizer.weight_decay",),
    "--warmup": ("scheduler.warmup_epochs",),
    "--amp --fp16 --mixed_precision": ("amp.level",),
    "--quantizer": ("network.weight_quantizer",),
    "--distributed": ("distribute",),
    "--format": ("file_format",),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors. It takes flags with - or _ between words, and no abbreviations of them."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--traceback", action="store_true", help="show where an error came from")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does; an empty value, such as that of a shell's unset variable, is refused."""
        known = {name.replace("-", "_"): name for name in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=")
            name = known.get(flag.replace("-", "_"), flag) if flag.startswith("--") else flag
            words.append(name + equals + value)
        arguments, rest = super().parse_known_args(words, namespace)
        for action in self._actions:
            if vars(arguments).get(action.dest) == "":
                name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
                self.error(f"{name} is empty, but must have a value")
        return arguments, rest

    def flag(self, dest: str) -> str | None:
        """The documented flag of a destination, if there is one."""
        return next((action.option_strings[0] for action in self._actions if action.dest == dest), None)

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` and return its exit code.

    A UserError, an OSError about a file, a missing package or a lack of memory becomes one sentence and exit code 2.
    If nobody reads the output any more, the program ends quietly.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard(sys.stdout)
        return NO_READER
    except (UserError, MemoryError, RuntimeError, OSError, ModuleNotFoundError) as error:
        discard_if_unwritable(sys.stdout)
        text = sentence(error)
        if text is None:
            raise
        if "--traceback" in argv:
            traceback.print_exc()
        print(f"error: {text}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit:  # of --help
        if not _can_write(sys.stdout):
            _discard(sys.stdout)
            return NO_READER
        raise


@contextlib.contextmanager
def explain_missing_packages() -> Iterator[None]:
    """Around a program's imports: end it with a sentence if Python is too old or lacks a package."""
    if sys.version_info < (3, 10):  # noqa: UP036  (such a Python gets as far as here)
        print(f"error: {_python_wanted()}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    try:
        yield
    except ModuleNotFoundError as error:
        sentence = _missing_package(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def sentence(error: Exception) -> str | None:
    """The error in one printable line; None if it is a bug."""
    text = str(error) if isinstance(error, UserError) else _beyond_the_program(error)
    return None if text is None else one_line(text)


def echo(line: str, stream: TextIO | None = None) -> None:
    """Print a line if possible; a reader that is gone or a full disk does not end a run."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: in a signal handler, while another line is printed
        print(line, file=stream or sys.stdout, flush=True)


def one_line(message: str) -> str:
    """The message with control characters as escapes, and with words longer than any path cut."""
    printable = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in message
    )
    return re.sub(r"(\S{200})\S{200,}(\S{20})", r"\1...\2", printable)


def path(text: str) -> str:
    """An argument's type: a file or folder; ~ is the home folder."""
    return os.path.expanduser(text)


def integer(text: str) -> int:
    """An argument's type: a whole number in decimal digits. int() takes 1_000, too."""
    if not re.fullmatch(r"[-+]?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def require_checkpoint(text: str) -> Path:
    """The path of a checkpoint, which may be given as `pretrained:NAME`.

    Raises:
        UserError: no file is there; a folder gets a hint.
    """
    from .pretrained import resolve

    path = resolve(text)
    try:
        if path.is_dir() and path.suffix != ".ckpt":
            best = path / "best.ckpt"
            hint = f"such as {best}" if best.is_file() else "a .ckpt"
            raise UserError(f"the checkpoint {path} is a folder: give a file in it, {hint}")
        if not path.exists():
            raise UserError(f"the checkpoint {path} does not exist")
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    return path


def _can_write(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


def discard_if_unwritable(stream: TextIO | None) -> None:
    """Let what is still buffered go nowhere if the stream can no longer be written, as that of a closed terminal."""
    if not _can_write(stream):
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: Python would complain about it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _beyond_the_program(error: Exception) -> str | None:
    """What the machine failed at, in a sentence; None if it is a bug."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        return f"cannot use {error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        size = re.search(r"alloc size: ?(\d+)B", str(error))
        asked = f", {int(size.group(1)) / 2**20:.0f} MiB more were asked for" if size else ""
        return f"out of memory{asked}: lower data.batch_size, or end other programs; written files are unchanged"
    return None


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """How to install what Python did not find; None if it is a file of this project."""
    package = (error.name or "").split(".")[0]
    if package in ("", "src", __name__.split(".")[0]):
        return None
    if package in POSIX_MODULES:
        return f"this system is not supported, its Python has no {package}: use Linux, or WSL on Windows"
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return _python_wanted()
    own = Path(__file__).resolve().parents[1] / ".venv/bin/python"
    if own.exists() and Path(sys.executable).absolute() != own:
        return f"{sys.executable} has no package {package}: use {own}, or pip install -r requirements.txt"
    return (
        f"{sys.executable} has no package {package}: run pip install -r requirements.txt, or bash "
        "scripts/quickstart.sh, which makes .venv with all packages"
    )


def _python_wanted() -> str:
    return (
        f"{sys.executable} is Python {sys.version.split()[0]}, but Python 3.10, 3.11 or 3.12 is needed: bash "
        "scripts/quickstart.sh makes .venv with one of them"
    )


def add_config_flags(parser: Parser, shorthands: dict[str, str], keys: Sequence[str] | None = None) -> None:
    """Add a flag for every key of the config, dotted: --optimizer.lr.

    Args:
        shorthands: further flags of some keys, "--epochs": "train.epochs".
        keys: the keys and sections that the program uses; None: all.
    """
    from . import config

    parser.usage = " ".join(parser.format_usage().split()[1:]).replace("%", "%%") + " [--KEY VALUE ...]"
    explained = config.explanations()
    groups: dict[str, Any] = {}
    for key in config.leaf_keys(config.Config):
        if keys is not None and not any(key == one or key.startswith(f"{one}.") for one in keys):
            continue
        section = key.rpartition(".")[0]
        if section not in groups:
            meaning = explained[section].meaning if section else "each is a key of default_config.yaml"
            groups[section] = parser.add_argument_group(section or "keys of the config", meaning)
        names = [flag for flag, target in shorthands.items() if target == key and flag != f"--{key}"]
        choices = config.choices(key)
        # --download is short for --download true
        switch = {"nargs": "?", "const": "true"} if choices == ("true", "false") else {}
        text = f"{explained[key].meaning}; default: {explained[key].default}"
        groups[section].add_argument(
            *names,
            f"--{key}",
            dest=key,
            metavar=f"{{{','.join(choices)}}}" if choices else "VALUE",
            help=text.replace("%", "%%"),
            default=argparse.SUPPRESS,
            **switch,
        )


def parse_config_flags(
    parser: Parser, argv: Sequence[str], other_flags: Sequence[str] = ()
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parsed arguments, and the config keys among them with their values.

    Args:
        other_flags: of another program that was given the same arguments, for hints.

    Raises:
        UserError: an unknown flag, with the nearest known one; a flag without its value.
    """
    from . import config

    arguments, rest = parser.parse_known_args(argv)
    all_keys = config.leaf_keys(config.Config)
    overrides = {key: config.parse_override(key, text) for key, text in vars(arguments).items() if key in all_keys}
    words = iter(rest)
    for word in words:
        flag, equals, text = word.partition("=")
        flag = flag.replace("-", "_").replace("_", "-", 2) if flag.startswith("--") else flag
        if not flag.startswith(tuple(f"--{key}." for key in config.FREE_KEYS if parser.flag(key))):
            parser.error(_unknown_argument(parser, word, other_flags))
        if not equals:
            text = next(words, None)
            if text is None:
                parser.error(f"{flag} needs a value")
        key = flag.removeprefix("--")
        overrides[key] = config.parse_override(key, text)
    return arguments, overrides


def _unknown_argument(parser: Parser, word: str, other_flags: Sequence[str]) -> str:
    """What is wrong with an argument that the program does not have."""
    from . import config

    flag = word.partition("=")[0].replace("-", "_")
    flag = re.sub("^_+", lambda match: "-" * len(match.group()), flag)
    key = flag.lstrip("-")
    if key in config.RENAMED:
        return f"--{key} is now called --{config.RENAMED[key]}"
    if key in config.leaf_keys(config.Config) or key.startswith(tuple(f"{free}." for free in config.FREE_KEYS)):
        return f"{parser.prog} does not use --{key}, only train.py does"
    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    known += other_flags
    return f"unknown argument {word!r}{config.did_you_mean(_suggestions(parser, flag, word, known))}"


def _suggestions(parser: Parser, flag: str, word: str, known: Sequence[str]) -> list[str]:
    """The flags that an unknown one may mean."""
    key = flag.lstrip("-")
    if not flag.startswith("-"):
        wanted = {".yaml": "--config", ".yml": "--config", ".ckpt": "--checkpoint"}.get(Path(word).suffix)
        return [f"{wanted} {word}"] if wanted in known else []
    for names, destinations in ALSO_CALLED.items():
        found = [parser.flag(dest) for dest in destinations if parser.flag(dest)]
        if flag in names.split() and found:
            return found[:1]
    same = [name for name in known if name.rpartition(".")[2] == key]  # --lr: --optimizer.lr
    section = [f"--{key}.{last}" for last in ("name", "enabled", "start") if f"--{key}.{last}" in known]
    return same or section or difflib.get_close_matches(flag, known, n=1)
