"""pip install: what it installs, under which name, and that it works where the repository is not."""

import importlib
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.processes import ROOT

FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "requirements.txt", "default_config.yaml")
USE = """
import importlib.util
import sys
from pathlib import Path

import fda_bnn

assert "mindspore" not in sys.modules, "the import of the package imports MindSpore"
assert importlib.util.find_spec("src") is None
package = Path(fda_bnn.__file__).parent
import fda_bnn.models  # registers with mindcv
import mindcv

registered = mindcv.create_model("fda_resnet20")

from fda_bnn import create_estimator, create_model
from fda_bnn.config import load_config

import mindspore as ms
import numpy as np
from mindspore import nn

images = ms.Tensor(np.zeros((2, 3, 32, 32), np.float32))
assert create_model("resnet20")(images).shape == (2, 10)
assert registered(images).shape == (2, 10)
assert create_model("resnet20", pretrained="resnet20_digits")(images).shape == (2, 10)
assert create_estimator("fda", n=9)(images).shape == images.shape
assert fda_bnn.Binarization().conv(3, 4, 3)(images).shape == (2, 4, 30, 30)
if sys.argv[1] == "wheel":
    for name in ("paper", "launch"):
        assert importlib.util.find_spec(f"fda_bnn.{name}") is None, f"{name} is part of the wheel"

from fda_bnn import checkpoints
from fda_bnn.deploy.export_process import run_export_job
from fda_bnn.preprocessing import PREPROCESSING

network = create_model("resnet20", num_classes=10)
config = load_config(overrides={"data.name": "digits"})
optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
checkpoints.save(Path("last.ckpt"), network, optimizer, config.model_dump(), PREPROCESSING["digits"], None, {})
request = {
    "checkpoint": "last.ckpt",
    "overrides": {},
    "num_classes": None,
    "file_format": "MINDIR",
    "batch_size": None,
    "output": "net",
}
assert run_export_job(request) == 0
assert Path("net.mindir").is_file()
print("used", package)
"""


def copy_of_repository(folder: Path) -> Path:
    """Copy what the package is built from, because building leaves files behind."""
    copy = folder / "repository"
    copy.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "pretrained", copy / "pretrained")
    return copy


def environment(folder: Path) -> Path:
    """Make a virtual environment that sees the installed requirements, but not the repository; its interpreter."""
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment/bin/python"
    command = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    packages = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "requirements.pth").write_text("\n".join(site.getsitepackages()))
    return python


def pip(*arguments, cwd: Path) -> None:
    done = subprocess.run([*map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def use(python: Path, folder: Path, how: str) -> str:
    """Run `USE` in a folder that holds another `src` and another `fda_bnn`."""
    for name in ("src", "fda_bnn"):
        (folder / "elsewhere" / name).mkdir(parents=True)
        (folder / "elsewhere" / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (folder / "use.py").write_text(USE)
    done = subprocess.run(
        [python, folder / "use.py", how],
        cwd=folder / "elsewhere",
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_imports_its_names_when_they_are_used():
    import src

    assert src.create_model is importlib.import_module("src.models").create_model
    assert src.Binarization is importlib.import_module("src.binary").Binarization
    assert set(src.__all__) <= set(dir(src))
    with pytest.raises(AttributeError, match="module 'src' has no attribute 'create_modell'"):
        src.create_modell  # noqa: B018


@pytest.mark.slow
def test_the_wheel_installs_as_a_library(tmp_path):
    """Built from the source archive, so that the archive is complete too."""
    copy = copy_of_repository(tmp_path)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    pip(sys.executable, "-c", build, tmp_path, cwd=copy)
    (archive,) = tmp_path.glob("fda?bnn-*.tar.gz")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    pip(sys.executable, "-m", "pip", "wheel", *offline, "-w", tmp_path, archive, cwd=tmp_path)
    (wheel,) = tmp_path.glob("fda_bnn-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = (content.read(name).decode() for name in names if name.endswith("/METADATA"))
    folders = {name.split("/")[0] for name in names}
    assert len(folders) == 2 and "fda_bnn" in folders, folders
    assert "fda_bnn/default_config.yaml" in names
    kernels = {f"fda_bnn/binary/native/{path.name}" for path in (ROOT / "src/binary/native").glob("*.*")}
    assert kernels <= set(names)
    assert not [name for name in names if name.startswith(("fda_bnn/paper", "fda_bnn/launch"))]
    assert "Requires-Dist: mindspore==2.10.0" in metadata and "Requires-Dist: numpy<2,>=1.24" in metadata
    assert "Requires-Python: <3.13,>=3.10" in metadata and "License-Expression: Apache-2.0" in metadata
    python = environment(tmp_path)
    pip(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel, cwd=tmp_path)
    assert str(tmp_path / "environment") in use(python, tmp_path, "wheel")


@pytest.mark.slow
def test_an_editable_install_uses_the_repository(tmp_path):
    copy = copy_of_repository(tmp_path)
    python = environment(tmp_path)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    pip(sys.executable, "-m", "pip", "--python", python, "install", *offline, "-e", copy, cwd=tmp_path)
    assert str(copy / "src") in use(python, tmp_path, "editable")
