"""Which part of src may import which, what must start without MindSpore, and what an import may do.

All of it is read from the source, late imports inside functions included:

    binary <- models <- experiment <- training, deploy <- paper, launch <- entry points
"""

import ast
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT

SRC = ROOT / "src"
FOLDERS = sorted(path.parent.name for path in SRC.glob("*/__init__.py"))
PROGRAMS = {"summary", "convert", "card"}  # python -m src.NAME
BELOW_EXPERIMENT = {"plain", "binary", "native_build", "models", "data"}
# What each part may import besides itself. `plain`: the other files at the top of src.
MAY_IMPORT = {
    "native_build": set(),
    "plain": set(),
    "binary": {"native_build"},
    "models": {"plain", "binary"},
    "data": {"plain"},
    "experiment": BELOW_EXPERIMENT,
    "programs": {*BELOW_EXPERIMENT, "experiment", "training", "deploy"},
    "training": {*BELOW_EXPERIMENT, "experiment"},
    "deploy": {*BELOW_EXPERIMENT, "experiment"},
    "paper": {*BELOW_EXPERIMENT, "experiment", "training", "deploy"},
    "launch": {*BELOW_EXPERIMENT, "experiment", "training", "deploy"},
}
NO_MINDSPORE = [
    "",
    "card",
    "cli",
    "config",
    "convert",
    "deploy",
    "deploy.description",
    "deploy.export_process",
    "deploy.exported_model",
    "deploy.formats",
    "deploy.lite",
    "deploy.lite_process",
    "deploy.onnx",
    "deploy.openvino",
    "deploy.openvino_graph",
    "deploy.prediction",
    "deploy.predictor",
    "errors",
    "files",
    "heartbeat",
    "image_files",
    "native_build",
    *(".".join(path.relative_to(SRC).with_suffix("").parts) for path in sorted(SRC.glob("launch/*.py"))),
    "paper.__main__",
    "paper.check",
    "paper.estimates",
    "paper.paired",
    "paper.plots",
    "paper.report",
    "paper.runs",
    "paper.sine_module",
    "paper.studies",
    "preprocessing",
    "pretrained",
    "run_dir",
    "runtime",
    "summary",
    "training.arguments",
]


def modules() -> dict[str, Path]:
    """All modules of src by dotted name without `src`; a package by the name of its folder, src itself by ''."""
    named = {".".join(path.relative_to(SRC).with_suffix("").parts): path for path in sorted(SRC.rglob("*.py"))}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in named.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part(module: str) -> str:
    """The part of src that a module belongs to: a key of `MAY_IMPORT`, or '' for src/__init__.py."""
    top = module.split(".")[0]
    if top in FOLDERS or top in ("", "experiment", "native_build"):
        return top
    return "programs" if top in PROGRAMS else "plain"


def imported(module: str, node: ast.stmt) -> list[str]:
    """What an import statement of a module names: `.files` and the like without `src`, others as `/numpy`."""
    if isinstance(node, ast.Import):
        return [f"/{alias.name}" for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level == 0:
        return [f"/{node.module}"]
    path = modules()[module]
    package = path.parent.relative_to(SRC).parts
    base = [*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
    return [name if (name := ".".join([*base, alias.name])) in modules() else ".".join(base) for alias in node.names]


def all_imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree(modules()[module])):
        yield from imported(module, node)


def imports_when_imported(statements: list[ast.stmt], module: str) -> Iterator[str]:
    """The imports that run when a module is imported: not those inside functions or for type checkers."""
    for node in statements:
        yield from imported(module, node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from imports_when_imported([*node.body, *node.orelse], module)
        if isinstance(node, ast.With):
            yield from imports_when_imported(node.body, module)
        if isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from imports_when_imported([*node.body, *handlers, *node.orelse, *node.finalbody], module)


def reached(module: str, seen: set[str] | None = None) -> set[str]:
    """All modules that importing a module imports, packages above them included; foreign ones as `/mindspore`."""
    seen = set() if seen is None else seen
    parts = module.split(".") if module else []
    for name in [".".join(parts[:length]) for length in range(len(parts) + 1)]:
        if name in seen:
            continue
        seen.add(name)
        for other in imports_when_imported(tree(modules()[name]).body, name):
            if other.startswith("/"):
                seen.add("/" + other[1:].split(".")[0])
            else:
                reached(other, seen)
    return seen


def statements_that_act(statements: list[ast.stmt], own_classes: set[str]) -> Iterator[ast.stmt]:
    """Calls outside functions with an unused result, such as `set_seed(0)`.

    Not the main guard, and not calls that complete a class of the module, such as `Loader.add_constructor(...)`.
    """
    for node in statements:
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            if ast.unparse(node.value).split(".")[0] not in own_classes:
                yield node
        elif isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
                yield from statements_that_act(node.body, own_classes)


def test_the_graph_has_edges():
    """The tests below cannot pass because the reading of imports is broken."""
    assert {"binary", "files", "/numpy"} <= set(all_imports("training.callbacks"))
    assert "paper.runs" in reached("paper.__main__")
    assert "/mindspore" in reached("models.resnet20") and "binary.layers" in reached("models.resnet20")
    assert part("binary.fourier") == "binary" and part("run_dir") == "plain" and part("summary") == "programs"


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    if module == "":
        assert not [name for name in all_imports(module) if not name.startswith("/")]
        return
    own = part(module)
    targets = {name for name in all_imports(module) if not name.startswith("/")}
    wrong = [name for name in sorted(targets) if part(name) not in {own, *MAY_IMPORT[own]}]
    assert not wrong, f"src/{module.replace('.', '/')} is in {own!r} and must not import {', '.join(wrong)}"


def test_imports_inside_src_are_relative():
    absolute = {
        module: [name for name in all_imports(module) if name.split(".")[0] in ("/src", "/fda_bnn")]
        for module in modules()
    }
    assert not {module: names for module, names in absolute.items() if names}


@pytest.mark.parametrize("module", NO_MINDSPORE)
def test_starts_without_mindspore(module):
    """Help and bad input are answered at once, and a machine that only deploys has no MindSpore."""
    name = module.removesuffix(".__init__")
    assert not {"/mindspore", "/mindcv"} & reached(name)


def test_nothing_acts_at_import():
    acting = {}
    for module, path in modules().items():
        body = tree(path).body
        own_classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
        acting[module] = [ast.unparse(node) for node in statements_that_act(body, own_classes)]
    assert not {module: statements for module, statements in acting.items() if statements}


def test_a_call_at_import_is_found():
    module = ast.parse("import logging\nif True:\n    logging.basicConfig()\nif __name__ == '__main__':\n    main()\n")
    assert [ast.unparse(node) for node in statements_that_act(module.body, set())] == ["logging.basicConfig()"]


def test_the_wheel_has_every_folder_but_paper_and_launch(tmp_path):
    packages = runpy.run_path(str(ROOT / "setup.py"))["packages"]
    own = [f"fda_bnn.{name}" for name in FOLDERS if name not in ("launch", "paper")]
    kernels = ["fda_bnn.binary.native"] if (SRC / "binary/native/__init__.py").is_file() else []
    assert packages(SRC) == ["fda_bnn", *sorted([*own, *kernels])]
    for folder in ("", "binary", "paper"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "binary/native/__pycache__").mkdir(parents=True)
    assert packages(tmp_path) == ["fda_bnn", "fda_bnn.binary"]


def test_what_runs_in_mindspore_lites_python_is_old_python_with_numpy():
    """deploy/lite.py runs where there may be only Python 3.7, numpy and MindSpore Lite."""
    source = (SRC / "deploy/lite.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    names = {name.removeprefix("/").split(".")[0] for name in all_imports("deploy.lite")}
    assert "mindspore_lite" in names
    assert names <= {*sys.stdlib_module_names, "numpy", "mindspore_lite"}, names
