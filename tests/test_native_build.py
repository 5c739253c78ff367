"""Libraries compiled from C++ on first use: when one is compiled, which one is loaded, and what happens if none can be.

Compilers that fail in some way are shell scripts around the real one.
"""

import ctypes
import errno
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src import native_build
from src.heartbeat import has_ended
from src.native_build import Unavailable, library
from tests.helpers.processes import PATIENCE, ROOT, wait_for

COMPILER = next(filter(None, map(shutil.which, native_build.COMPILERS)), None)
CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
NATIVE = ROOT / "src" / "binary" / "native"
needs_compiler = pytest.mark.skipif(COMPILER is None, reason=native_build.NO_COMPILER)
USE = """
import ctypes, sys
from pathlib import Path
from src.native_build import library
print(ctypes.CDLL(str(library(Path(sys.argv[1])))).answer())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache folder: an own one for each test, which does not exist yet. CXX is not set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "fda_bnn"


@pytest.fixture
def source(tmp_path) -> Path:
    """A C++ file whose function `answer` returns 42."""
    path = tmp_path / "source" / "kernel.cpp"
    path.parent.mkdir()
    return write(path, 42)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A function that makes a shell script the compiler: its argument is the commands that replace a compilation.

    In them, "$@" are the arguments, $output is the file to write and $real the real compiler. The function returns a
    log with a line for each compilation. Asking for the version and trying a flag do not count.
    """

    def use(commands: str = 'exec $real "$@"', name: str = "compiler") -> Path:
        script, log = tmp_path / name, tmp_path / f"{name}.log"
        script.write_text(
            "#!/bin/sh\n"
            f"real={shlex.quote(str(COMPILER))}\n"
            'for last; do output=$last; done\ncase "$output" in\n--version | /dev/null) exec $real "$@" ;;\nesac\n'
            f"echo compiled >> {shlex.quote(str(log))}\n{commands}\n"
        )
        script.chmod(0o700)
        log.touch()
        monkeypatch.setenv("CXX", str(script))
        return log

    return use


def write(path: Path, answer: int) -> Path:
    path.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')
    return path


def answer(path: Path) -> int:
    return ctypes.CDLL(str(path)).answer()


def compilations(log: Path) -> int:
    return len(log.read_text().splitlines())


def forget() -> None:
    """Forget what this process has compiled, as a new process would."""
    native_build._outcome.cache_clear()
    native_build._version.cache_clear()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def use_in_a_process(source: Path, **environment: str) -> subprocess.Popen:
    """Start a Python process that builds the library and prints its answer."""
    return subprocess.Popen(
        [sys.executable, "-c", USE, str(source)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_compiler
def test_builds_and_loads(source, cache):
    path = library(source)
    assert answer(path) == 42
    assert path.parent == cache.resolve() and path.is_absolute()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert files(cache) == [path.name]  # nothing else is left


@needs_compiler
def test_compiles_once(source, compiler):
    log = compiler()
    path = library(source)
    assert library(source) == path  # remembered
    forget()
    assert library(source) == path  # found
    assert compilations(log) == 1


@needs_compiler
def test_several_files_and_a_header(source):
    source.with_name("kernel.h").write_text("int seven();\n")
    source.with_name("other.cpp").write_text('#include "kernel.h"\nint seven() { return 7; }\n')
    source.write_text('#include "kernel.h"\nextern "C" int answer() { return seven(); }\n')
    assert answer(library(source, source.with_name("other.cpp"))) == 7


@needs_compiler
def test_flags_reach_the_compiler(source, compiler, tmp_path):
    compiler(f'echo "$@" > {tmp_path}/arguments; exec $real "$@"')
    source.write_text('extern "C" int answer() { return ANSWER; }\n')
    assert answer(library(source, flags=["-DANSWER=3", "-pthread"])) == 3
    arguments = (tmp_path / "arguments").read_text().split()
    assert {*native_build.FLAGS, "-pthread"} <= set(arguments)
    assert "-march=native" in arguments or "-mcpu=native" in arguments
    assert "-ffast-math" not in arguments and "-Ofast" not in arguments


@needs_compiler
@pytest.mark.parametrize("change", ["source", "header", "flags", "compiler", "version", "processor"])
def test_each_has_a_library_of_its_own(change, source, cache, compiler, monkeypatch):
    compiler()
    header = source.with_name("kernel.h")
    header.write_text("// first\n")
    paths, flags = [library(source)], ()
    forget()
    if change == "source":
        write(source, 43)
    elif change == "header":
        header.write_text("// second\n")
    elif change == "flags":
        flags = ("-DSECOND",)
    elif change == "compiler":
        compiler(name="second")
    elif change == "version":
        monkeypatch.setattr(native_build, "_version", lambda command: "c++ 99")
    else:
        monkeypatch.setattr(native_build, "processor", lambda: "another processor")
    paths.append(library(source, flags=flags))
    assert paths[0] != paths[1]
    assert files(cache) == sorted(path.name for path in paths)
    assert [answer(path) for path in paths] == [42, 43 if change == "source" else 42]


def test_the_processor_is_known():
    text = native_build.processor()
    assert os.uname().machine in text
    if Path("/proc/cpuinfo").exists() and os.uname().machine == "x86_64":
        assert "flags: " in text and "model name: " in text and "MHz" not in text


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte", "foreign", "a folder"])
def test_a_damaged_library_is_built_again(damage, source, cache, compiler, tmp_path):
    # In processes: this one has the library loaded, and writing into it would end this process.
    log = compiler()
    assert use_in_a_process(source).communicate(timeout=PATIENCE)[0] == "42\n"
    (path,) = cache.glob("*.so")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "one byte":
        path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    elif damage == "foreign":
        foreign = library(write(tmp_path / "foreign.cpp", 13)).read_bytes()
        path.write_bytes(foreign)
    else:
        path.unlink()
        path.with_stem(path.stem[:-32] + "0" * 32).mkdir()
    before = compilations(log)
    assert use_in_a_process(source).communicate(timeout=PATIENCE)[0] == "42\n"
    assert compilations(log) == before + 1


@needs_compiler
def test_two_processes_at_once(source, cache, compiler, tmp_path):
    """Both compile, because each compiler waits for the other to have started, and both get the library."""
    here = tmp_path / "started"
    here.mkdir()
    wait = f'touch {here}/$$\nuntil [ "$(ls {here} | wc -l)" -ge 2 ]; do sleep 0.02; done\n'
    log = compiler(wait + 'exec $real "$@"')
    processes = [use_in_a_process(source) for _ in range(2)]
    assert [process.communicate(timeout=PATIENCE)[0] for process in processes] == ["42\n", "42\n"]
    assert compilations(log) == 2
    assert not list(cache.glob(f"{native_build.BUILD}*"))
    assert use_in_a_process(source).communicate(timeout=PATIENCE)[0] == "42\n"
    assert compilations(log) == 2


@needs_compiler
def test_a_child_process_uses_the_library_of_its_parent(source, compiler):
    log = compiler()
    path = library(source)
    child = os.fork()
    if child == 0:
        os._exit(0 if library(source) == path and answer(path) == 42 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert compilations(log) == 1


@needs_compiler
def test_a_process_killed_while_it_compiles_leaves_no_library(source, cache, compiler, tmp_path):
    compiler(f"printf half > $output; touch {tmp_path}/compiling; sleep 2; exit 1")
    process = use_in_a_process(source)
    wait_for((tmp_path / "compiling").exists, process)
    process.kill()
    process.communicate()
    assert not list(cache.glob("*.so"))
    (left,) = cache.glob(f"{native_build.BUILD}*")
    compiler()
    path = library(source)
    assert answer(path) == 42 and left.exists()  # another process may be compiling there
    long_ago = time.time() - 2 * native_build.LEFT_OVER
    os.utime(left, (long_ago, long_ago))
    library(write(source.with_name("next.cpp"), 1))
    assert not left.exists() and path.exists()


@needs_compiler
def test_only_the_most_recently_used_are_kept(source, cache, monkeypatch):
    monkeypatch.setattr(native_build, "MAX_LIBRARIES", 2)
    paths = []
    for number in range(3):
        paths.append(library(write(source.with_name(f"kernel{number}.cpp"), number)))
        os.utime(paths[-1], (number, number))
        if number == 1:
            forget()
            assert library(source.with_name("kernel0.cpp")) == paths[0]  # used again: now the most recent one
    assert [path.exists() for path in paths] == [True, False, True]


@needs_compiler
def test_a_library_is_found_in_a_folder_that_can_only_be_read(source, cache, compiler):
    log = compiler()
    path = library(source)
    cache.chmod(0o500)
    forget()
    assert library(source) == path
    assert compilations(log) == 1


@needs_compiler
@pytest.mark.parametrize("unknown", ["-march=native", "-m*=native"])
def test_a_compiler_without_march_native(unknown, source, tmp_path, monkeypatch):
    """Some clang know -mcpu=native only; others know neither."""
    script = tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\nfor one; do case "$one" in {unknown}) echo "error: unknown $one" >&2; exit 1 ;; esac; done\n'
        f'echo "$@" > {tmp_path}/arguments\nexec {COMPILER} "$@"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    assert answer(library(source)) == 42
    assert ("-mcpu=native" in (tmp_path / "arguments").read_text()) == (unknown == "-march=native")


@needs_compiler
def test_cxx_may_have_options(source, monkeypatch):
    source.write_text('extern "C" int answer() { return ANSWER; }\n')
    monkeypatch.setenv("CXX", f"{COMPILER} -DANSWER=5")
    assert answer(library(source)) == 5


def test_no_compiler(source, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"^there is no C\+\+ compiler: install g\+\+ or clang\+\+"):
        library(source)
    assert not cache.exists()


@pytest.mark.parametrize(
    "command, message",
    [
        ("no-such-compiler -m64", r"^CXX is 'no-such-compiler -m64', but there is no program 'no-such-compiler'$"),
        ("c++ 'open", r"^CXX is \"c\+\+ 'open\", which is not a command: No closing quotation$"),
    ],
)
def test_cxx_is_no_compiler(command, message, source, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(Unavailable, match=message):
        library(source)


def test_a_compiler_without_a_version(source, compiler):
    compiler().with_suffix("").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Unavailable, match="compiler does not work: it printed no message$"):
        library(source)


def test_cxx_is_no_program_at_all(source, tmp_path, monkeypatch):
    script = tmp_path / "compiler"
    script.write_bytes(b"\x7fELF, but not really")
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(Unavailable, match="compiler cannot be run: Exec format error$"):
        library(source)


def test_no_source(tmp_path):
    """The folder of the kernels may be missing."""
    with pytest.raises(Unavailable, match="^cannot read .*missing.cpp: No such file or directory$"):
        library(tmp_path / "native" / "missing.cpp")


@needs_compiler
def test_a_source_that_does_not_compile(source, cache, compiler):
    log = compiler()
    source.write_text("int f() {\n  return unknown;\n}\nint g() { return also_unknown; }\n")
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            library(source)
        assert str(caught.value).startswith("kernel.cpp cannot be compiled: kernel.cpp:2:10: error: ")
        assert "\n" not in str(caught.value) and "also_unknown" not in str(caught.value)
    assert compilations(log) == 1  # the error is remembered
    assert files(cache) == []


@needs_compiler
def test_a_source_that_does_not_link(source, cache):
    with pytest.raises(Unavailable, match="^kernel.cpp cannot be compiled: .*no_such_library"):
        library(source, flags=["-lno_such_library"])
    assert files(cache) == []


@needs_compiler
def test_a_library_that_does_not_load(source):
    source.write_text('void nowhere();\nextern "C" void answer() { nowhere(); }\n')
    with pytest.raises(Unavailable, match="^the compiled library cannot be loaded: .*undefined symbol: .*nowhere"):
        library(source)


@needs_compiler
@pytest.mark.parametrize(
    "commands, message",
    [
        ("printf half > $output; kill -9 $$", "compiler was stopped by signal 9$"),
        ("printf half > $output; kill -11 $$", "compiler was stopped by signal 11$"),
        ("printf half > $output; echo 'g++: fatal error: Killed signal'; exit 1", r"g\+\+: fatal error: Killed signal"),
        ("printf half > $output; echo 'ld: No space left'; echo 'error: ld returned 1'; exit 1", "ld: No space left$"),
        ("printf half > $output", "the compiled library cannot be loaded: "),
        ("exit 0", "reported success but wrote no library$"),
    ],
)
def test_a_compiler_that_fails(commands, message, source, cache, compiler):
    compiler(commands)
    with pytest.raises(Unavailable, match=message):
        library(source)
    assert not list(cache.glob(f"{native_build.BUILD}*"))
    compiler()  # another path would be another key: here it is the same compiler, repaired
    forget()
    assert answer(library(source)) == 42


@needs_compiler
def test_a_compiler_that_hangs_is_killed_with_its_processes(source, cache, compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "TIMEOUT", 0.5)
    compiler(f"(sleep 60; touch {tmp_path}/late) & echo $! > {tmp_path}/child; wait")
    with pytest.raises(Unavailable, match="compiler did not end within 0.5 seconds$"):
        library(source)
    assert files(cache) == []
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + PATIENCE
    while not has_ended(child):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not (tmp_path / "late").exists()


@pytest.fixture
def any_compiler(compiler):
    """A compiler that answers --version even where there is none."""
    log = compiler()
    script = log.with_suffix("")
    script.write_text("#!/bin/sh\necho a compiler\n")


@pytest.mark.usefixtures("any_compiler")
def test_a_cache_folder_of_another_user(source, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Unavailable, match="^the cache folder .*fda_bnn belongs to another user; set XDG_CACHE_HOME "):
        library(source)


@pytest.mark.usefixtures("any_compiler")
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_cache_folder_in_which_others_can_write(mode, source, cache):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(Unavailable, match="^other users can write in the cache folder .*: run `chmod 700 .*fda_bnn`$"):
        library(source)
    assert files(cache) == []


@pytest.mark.usefixtures("any_compiler")
@pytest.mark.parametrize("where", ["below a file", "is a file", "in /proc"])
def test_a_cache_folder_that_cannot_be_created(where, source, cache, monkeypatch):
    if where == "below a file":
        cache.parent.write_text("")
    elif where == "is a file":
        cache.parent.mkdir()
        cache.write_text("")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(Unavailable, match="^cannot create the cache folder .*fda_bnn: .*; set XDG_CACHE_HOME to a"):
        library(source)


@pytest.mark.usefixtures("any_compiler")
def test_a_cache_folder_that_cannot_be_written(source, cache, monkeypatch):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    if os.geteuid() == 0:  # root may write there all the same

        def refuse(**_):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(native_build.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(Unavailable, match="^cannot write in the cache folder .*fda_bnn: Permission denied; set XDG_"):
        library(source)


@pytest.mark.usefixtures("any_compiler")
def test_a_cache_folder_with_a_colon(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a:b"))
    with pytest.raises(Unavailable, match="^MindSpore allows no ':' in the path of the cache folder "):
        library(source)


@pytest.mark.usefixtures("any_compiler")
def test_no_home(source, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(Unavailable, match="^there is no cache folder because this user has no home; set XDG_CACHE_"):
        library(source)


@needs_compiler
@pytest.mark.parametrize("value", [None, "", "relative/path"])
def test_the_cache_is_in_the_home_without_xdg_cache_home(value, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert library(source).parent == (tmp_path / ".cache" / "fda_bnn").resolve()


@pytest.mark.skipif(CROSS_COMPILER is None, reason="no C++ compiler for aarch64 (aarch64-linux-gnu-g++)")
@pytest.mark.parametrize("kernel", sorted(path.name for path in NATIVE.glob("*.cpp")) or [None])
def test_compiles_for_aarch64(kernel, source, tmp_path):
    """Nothing in the kernels depends on x86. Without their folder, a file of this test's is compiled."""
    path = source if kernel is None else NATIVE / kernel
    flags = [flag for flag in native_build.FLAGS if flag != "-shared"]
    command = [CROSS_COMPILER, *flags, "-march=armv8-a", "-c", str(path), "-o", str(tmp_path / "kernel.o")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
