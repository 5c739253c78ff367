"""Compile a C++ file on first use, and keep the library for the next process. Imports no MindSpore.

`library` is the whole interface. The libraries are in a folder of the user's own, `~/.cache/fda_bnn`, as

    NAME-KEY-CHECKSUM.so

KEY is a hash of everything that decides whether a library may be used: the C++ files, the flags, the compiler and the
processor. Another one means another name, so a stale library is never found. CHECKSUM is a hash of the library itself,
compared before each use, so a damaged one is never loaded. Each library is compiled in a folder of its own and then
renamed: processes that need the same one at once each compile it, none waits for another, and the last one stays.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Without the second and third, loops with comparisons or square roots are not vectorized. Never -ffast-math: it turns
# inf and nan into numbers.
FLAGS = ("-O3", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared", "-std=c++17")
NATIVE = ("-march=native", "-mcpu=native")  # the first that the compiler takes is added: some know only the second
COMPILERS = ("c++", "g++", "clang++")
HEADERS = ("*.h", "*.hpp")
BUILD = ".build-"  # prefix of the folders that libraries are compiled in
TIMEOUT = 300.0  # seconds for the compiler; usual are a few
VERSION_TIMEOUT = 60.0  # seconds for its answer to --version and to a flag
LEFT_OVER = 3600.0  # seconds after which a build folder is one that a killed process left
MAX_LIBRARIES = 32  # kept in the cache folder, the most recently used ones
NO_COMPILER = "there is no C++ compiler: install g++ or clang++, or name another one in CXX"
ADVICE = "set XDG_CACHE_HOME to a folder of your own"
# The lines of /proc/cpuinfo that decide which instructions run. Others, like the clock rate, vary.
CPU_LINES = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",  # x86
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",  # Arm
    "cpu", "isa", "features",  # POWER, RISC-V, s390x
)  # fmt: skip


class Unavailable(Exception):
    """The library cannot be had on this machine. The message is a sentence for people that gives the reason."""


def library(*sources: Path, flags: Sequence[str] = ()) -> Path:
    """Path of a shared library made of C++ files, compiled for this processor if it is not in the cache.

    The library is loaded into this process, which proves that it can be. Its path contains no ':', as
    `ops.Custom(f"{path}:function", func_type="aot")` requires. The outcome, an error too, is remembered until the
    process ends or CXX, PATH, HOME or XDG_CACHE_HOME change.

    Args:
        sources: the C++ files, all in one folder. They may include headers (`*.h`, `*.hpp`) of this folder.
        flags: added to `FLAGS`, for example "-fopenmp" or "-pthread".

    Raises:
        Unavailable: there is no compiler, or it refuses the files or does not end; the cache folder is not writable or
            not the user's own; the library cannot be loaded.
    """
    environment = tuple(os.environ.get(name) for name in ("CXX", "PATH", "HOME", "XDG_CACHE_HOME"))
    outcome = _outcome(sources, tuple(flags), environment)
    if isinstance(outcome, str):
        raise Unavailable(outcome)
    return outcome


@functools.cache
def _outcome(sources: tuple[Path, ...], flags: tuple[str, ...], environment: tuple) -> Path | str:
    """The library, or the sentence that says why there is none. `environment` is there for the cache only."""
    try:
        return _find_or_build(sources, flags)
    except Unavailable as error:
        return str(error)


def _find_or_build(sources: tuple[Path, ...], flags: tuple[str, ...]) -> Path:
    files = _read(sources)
    compiler = _compiler()
    names = [path.name for path in sources]
    hashes = sorted((name, _digest(content)) for name, content in files.items())
    key = _digest(repr((names, hashes, FLAGS, NATIVE, flags, compiler, _version(compiler), processor())).encode())
    folder = _cache_folder()
    prefix = f"{sources[0].stem}-{key}-"
    try:
        found = [path for path in sorted(folder.iterdir()) if path.name.startswith(prefix)]
    except OSError as error:
        raise Unavailable(f"cannot read the cache folder {folder}: {error.strerror}; {ADVICE}") from error
    for path in found:
        if not _is_intact(path):
            with contextlib.suppress(OSError):
                path.unlink()
        elif _load_error(path) is None:
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)  # used now: `_prune` keeps it
            return path
    path = _build(folder, prefix, names, files, flags, compiler)
    _prune(folder)
    if message := _load_error(path):
        raise Unavailable(f"the compiled library cannot be loaded: {message}")
    return path


def _build(
    folder: Path,
    prefix: str,
    names: list[str],
    files: dict[str, bytes],
    flags: tuple[str, ...],
    compiler: tuple[str, ...],
) -> Path:
    """Compile copies of the files, which are then exactly what the key was computed from."""
    try:
        with tempfile.TemporaryDirectory(prefix=BUILD, dir=folder, ignore_cleanup_errors=True) as name:
            build = Path(name)
            for file, content in files.items():
                (build / file).write_bytes(content)
            native = _native_flag(compiler, build)
            result = build / "library.so"
            command = [*compiler, *FLAGS, *native, *names, *flags, "-o", result.name]
            code, output = _run(command, TIMEOUT, build)
            if code != 0:
                reason = f"{compiler[0]} was stopped by signal {-code}" if code < 0 else _first_error(output)
                raise Unavailable(f"{' '.join(names)} cannot be compiled: {reason}")
            if not result.is_file():
                raise Unavailable(f"{compiler[0]} reported success but wrote no library")
            path = folder / f"{prefix}{_digest(result.read_bytes())}.so"
            os.replace(result, path)
            return path
    except OSError as error:
        raise Unavailable(f"cannot write in the cache folder {folder}: {error.strerror}; {ADVICE}") from error


def _prune(folder: Path) -> None:
    """Delete all but the most recently used libraries, and build folders left by killed processes."""
    with contextlib.suppress(OSError):  # another process may be doing the same
        libraries = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in libraries[MAX_LIBRARIES:]:
            path.unlink(missing_ok=True)
        for path in folder.glob(f"{BUILD}*"):
            if time.time() - path.stat().st_mtime > LEFT_OVER:
                shutil.rmtree(path, ignore_errors=True)


def _read(sources: tuple[Path, ...]) -> dict[str, bytes]:
    """The content of the C++ files and of all headers next to them, by file name."""
    folder = sources[0].parent
    try:
        headers = [path for pattern in HEADERS for path in folder.glob(pattern)]
        return {path.name: path.read_bytes() for path in (*sources, *headers)}
    except OSError as error:
        raise Unavailable(f"cannot read {error.filename}: {error.strerror}") from error


def _compiler() -> tuple[str, ...]:
    """The command of the compiler: that in CXX, which may have options, or the first of `COMPILERS` on PATH."""
    given = os.environ.get("CXX", "").strip()
    if not given:
        found = next(filter(None, map(shutil.which, COMPILERS)), None)
        if found is None:
            raise Unavailable(NO_COMPILER)
        return (found,)
    try:
        program, *options = shlex.split(given)
    except ValueError as error:
        raise Unavailable(f"CXX is {given!r}, which is not a command: {error}") from error
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"CXX is {given!r}, but there is no program {program!r}")
    return (os.path.abspath(found), *options)  # absolute: it runs in another folder


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    code, output = _run([*compiler, "--version"], VERSION_TIMEOUT)
    if code != 0:
        raise Unavailable(f"{compiler[0]} does not work: {_first_error(output)}")
    return output.partition("\n")[0]


def _native_flag(compiler: tuple[str, ...], folder: Path) -> list[str]:
    """The flag that compiles for this processor; none if the compiler has none."""
    for flag in NATIVE:
        command = [*compiler, flag, "-fsyntax-only", "-x", "c++", os.devnull]
        if _run(command, VERSION_TIMEOUT, folder)[0] == 0:
            return [flag]
    return []


@functools.cache
def processor() -> str:
    """A text that differs between processors with different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    pairs = [tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line]
    return "\n".join([platform.machine(), *sorted({": ".join(pair) for pair in pairs if pair[0] in CPU_LINES})])


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fda_bnn"
    except RuntimeError as error:
        raise Unavailable(f"there is no cache folder because this user has no home; {ADVICE}") from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()  # a symbolic link may be replaced after the checks
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"cannot create the cache folder {folder}: {error.strerror}; {ADVICE}") from error
    if status.st_uid != os.geteuid():
        raise Unavailable(f"the cache folder {folder} belongs to another user; {ADVICE}")
    if status.st_mode & 0o022:
        raise Unavailable(f"other users can write in the cache folder {folder}: run `chmod 700 {folder}`")
    if ":" in str(folder):
        raise Unavailable(f"MindSpore allows no ':' in the path of the cache folder {folder}; {ADVICE}")
    return folder


def _is_intact(path: Path) -> bool:
    """Whether the file's content is the one that its name was made from."""
    try:
        return path.is_file() and path.name.endswith(f"-{_digest(path.read_bytes())}.so")
    except OSError:
        return False


def _load_error(path: Path) -> str | None:
    """Load the library; the loader's message if that fails: a library it needs is not there, or a disk is noexec."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]  # 128 bits: two of them fit into a file's name


def _run(command: list[str], timeout: float, folder: Path | None = None) -> tuple[int, str]:
    """Exit status and output of the compiler. With a folder, it runs in it and leaves its temporary files there.

    A compiler is several processes. They have a session of their own, so that all of them can be killed: if one lived
    on, reading its output would not end.
    """
    environment = {**os.environ, "LC_ALL": "C"}  # messages that `_first_error` can read
    if folder is not None:
        environment["TMPDIR"] = str(folder)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unavailable(f"{command[0]} did not end within {timeout:g} seconds") from error
            raise
    return process.returncode, output.decode(errors="replace")


def _first_error(output: str) -> str:
    """The compiler's first line with an error. A linker's lines have no 'error:', only its summary does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    summaries = ("ld returned", "linker command failed")
    errors = [line for line in lines if "error:" in line and not any(summary in line for summary in summaries)]
    return (errors or lines or ["it printed no message"])[0]
