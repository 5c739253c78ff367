"""Common behaviour of all programs: help, spelling of flags, hints, exit codes, missing packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src import cli
from src.config import Config, explanations, leaf_keys
from tests.helpers.processes import ROOT

PROGRAMS = {
    "train.py": [str(ROOT / "train.py")],
    "eval.py": [str(ROOT / "eval.py")],
    "export.py": [str(ROOT / "export.py")],
    "src.launch": ["-m", "src.launch"],
    "src.paper": ["-m", "src.paper"],
    "src.paper.sine_module": ["-m", "src.paper.sine_module"],
    "src.summary": ["-m", "src.summary"],
}
# Refuses to import what the environment variable BLOCKED lists, as a Python that lacks it does.
BLOCKER = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ.get("BLOCKED", "").split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def blocking(tmp_path_factory):
    """Runs a program in an empty folder by a Python that cannot import some packages."""
    folder = tmp_path_factory.mktemp("blocking")
    (folder / "sitecustomize.py").write_text(BLOCKER)

    def run(program: str, *arguments: str, blocked: str, **changes: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(folder), str(ROOT)])
        return subprocess.run(
            [sys.executable, *PROGRAMS[program], *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "BLOCKED": blocked, **changes},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_no_mindspore(program, blocking):
    done = blocking(program, "--help", blocked="mindspore mindcv")
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout and not done.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py", "export.py", "src.launch", "src.paper"])
@pytest.mark.parametrize("package", ["pydantic", "yaml"])
def test_a_missing_package_is_a_sentence(program, package, blocking):
    done = blocking(program, "--help", blocked=package)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no package {package}: ")
    assert "pip install -r requirements.txt" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_mindspore_is_a_sentence(blocking):
    arguments = ("--config", str(ROOT / "configs/digits.yaml"))
    done = blocking("train.py", *arguments, blocked="mindspore")
    assert done.returncode == 2
    assert "has no package mindspore: " in done.stderr and done.stderr.count("\n") == 1


def test_windows_is_refused_in_a_sentence(blocking):
    done = blocking("train.py", "--help", blocked="fcntl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this system is not supported") and done.stderr.count("\n") == 1


def test_a_file_of_ours_that_is_missing_is_a_fault_and_not_a_sentence():
    def main(argv):
        import src.no_such_file  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        cli.run(main, [])


@pytest.fixture
def parser():
    parser = cli.Parser(prog="test")
    parser.add_argument("--dry-run", action="store_true")
    cli.add_config_flags(parser, {"--epochs": "train.epochs"}, ("train", "network", "amp.level"))
    return parser


def test_help_has_meaning_default_and_choices_of_every_key(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    parser = cli.Parser(prog="test")
    cli.add_config_flags(parser, {"--epochs": "train.epochs"})
    text = parser.format_help()
    lines = text.splitlines()
    for key in leaf_keys(Config):
        explanation = explanations()[key]
        shown = f"{explanation.meaning}; default: {explanation.default}"
        number = next(number for number, line in enumerate(lines) if f"--{key} " in line)
        assert shown in lines[number] or shown == lines[number + 1].strip()
    assert "--optimizer.name {momentum,adam}" in text
    assert "--epochs VALUE, --train.epochs VALUE" in text


def test_a_program_has_only_the_flags_of_its_keys(parser):
    text = parser.format_help()
    assert "--network.estimator " in text and "--amp.level" in text
    assert "--optimizer.lr" not in text and "--amp.loss_scale" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ["--dry_run", "--train.sink-size", "5", "--network.estimator-options.t-min=1"],
        ["--dry-run", "--train.sink_size=5", "--network.estimator_options.t_min", "1"],
    ],
)
def test_flags_take_hyphens_and_underscores(parser, argv):
    arguments, overrides = cli.parse_config_flags(parser, argv)
    assert arguments.dry_run
    assert overrides == {"train.sink_size": 5, "network.estimator_options.t_min": 1}


def test_values_keep_their_hyphens(parser):
    assert cli.parse_config_flags(parser, ["--network.name", "a-b"])[1] == {"network.name": "a-b"}
    assert cli.parse_config_flags(parser, ["--network.name=a-b"])[1] == {"network.name": "a-b"}


def test_a_percent_sign_in_an_explanation_is_shown(parser, monkeypatch):
    shown = {key: explanation for key, explanation in explanations().items()}
    shown["train.epochs"] = type(shown["train.epochs"])("50 % of them", "1")
    monkeypatch.setattr("src.config.explanations", lambda: shown)
    cli.add_config_flags(other := cli.Parser(prog="test"), {}, ("train.epochs",))
    assert "50 % of them" in other.format_help()


PRINTER = """
import sys
sys.path.insert(0, {root!r})
from src import cli
def main(argv):
    for number in range({lines}):
        print("line", number, "ä \\udcff")
    return 0
sys.exit(cli.run(main))
"""


def run_printer(lines: int, shell: str, **changes: str) -> subprocess.CompletedProcess:
    program = PRINTER.format(root=str(ROOT), lines=lines)
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$PYTHON" -c "$PROGRAM" {shell}'],
        env={**os.environ, "PYTHON": sys.executable, "PROGRAM": program, **changes},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("lines", [20, 100_000])
def test_output_that_nobody_reads_ends_the_program_quietly(lines):
    done = run_printer(lines, "| (exec <&-; sleep 0.5)" if lines == 20 else "| head -n 1")
    assert done.stderr == ""
    assert done.returncode in (0, 141)
    assert lines == 20 or done.returncode == 141


def test_help_that_nobody_reads_ends_quietly():
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" "{ROOT}/train.py" --help | head -n 1'], capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.startswith("usage: train.py")


def test_a_full_disk_under_the_output_is_a_sentence():
    done = run_printer(10, "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == "error: cannot use a file: No space left on device\n"


def test_characters_that_the_terminal_lacks_are_escaped():
    done = run_printer(1, "", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "line 0 \\xe4 \\udcff\n"


@pytest.mark.parametrize("flag", ["--config", "--resume"])
def test_a_tilde_in_a_flag_is_the_home_folder(flag, monkeypatch, capsys):
    from src.training import arguments

    monkeypatch.setenv("HOME", "/home/somebody")
    assert cli.run(lambda argv: arguments.parse(argv), [f"{flag}=~/x"]) == 2
    assert "/home/somebody/x" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["eval", "export"])
def test_a_tilde_in_the_checkpoints_name_is_the_home_folder(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    main = __import__(program).main
    assert cli.run(main, ["--checkpoint=~/x.ckpt"]) == 2
    assert f"the checkpoint {tmp_path}/x.ckpt does not exist" in capsys.readouterr().err
    (tmp_path / "best.ckpt").touch()
    assert cli.run(main, ["--checkpoint=~"]) == 2
    assert f"is a folder: give a file in it, such as {tmp_path}/best.ckpt" in capsys.readouterr().err


def find_python(folder: Path, **changes: str) -> subprocess.CompletedProcess:
    """The choice of scripts/environment.sh in a copy of the project."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VIRTUAL_ENV")}
    variables = {key: value for key, value in variables.items() if not key.startswith("CONDA")}
    return subprocess.run(
        ["bash", "-c", f'source "{folder}/scripts/environment.sh" && echo "$PYTHON"'],
        env={**variables, **changes},
        capture_output=True,
        text=True,
    )


def fake_python(folder: Path, has_mindspore: bool) -> Path:
    folder.mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / name).write_text(f"#!/bin/sh\nexit {0 if has_mindspore else 1}\n")
        (folder / name).chmod(0o755)
    return folder / "python"


@pytest.mark.parametrize("variables", [{"CONDA_DEFAULT_ENV": "other"}, {"VIRTUAL_ENV": "/some/where"}, {}])
def test_the_scripts_pass_over_a_python_without_mindspore(variables, tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    without = fake_python(tmp_path / "active", has_mindspore=False)
    path = {"PATH": f"{without.parent}:{os.environ['PATH']}"}
    own = fake_python(tmp_path / ".venv/bin", has_mindspore=True)
    assert find_python(tmp_path, **variables, **path).stdout == f"{own}\n"


def test_the_scripts_take_the_active_environment_if_it_has_mindspore(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    active = fake_python(tmp_path / "active", has_mindspore=True)
    fake_python(tmp_path / ".venv/bin", has_mindspore=True)
    path = {"PATH": f"{active.parent}:{os.environ['PATH']}", "CONDA_DEFAULT_ENV": "other"}
    assert find_python(tmp_path, **path).stdout == f"{active}3\n"
