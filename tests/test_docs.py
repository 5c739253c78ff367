"""The pages under docs/: their code runs unchanged, and does what the page describes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.binary import Binarization, create_estimator, schedules
from src.binary.estimators import ESTIMATORS
from src.models import create_model
from tests.helpers import processes

DOCS = processes.ROOT / "docs"


def code(page: str) -> list[str]:
    """The page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def gaussian(tmp_path, monkeypatch):
    """The page's class and its line, as if they were at the end of estimators.py; gives the registered name."""
    source = (processes.ROOT / "src/binary/estimators.py").read_text(encoding="utf-8")
    imports = "\n".join(line for line in source.splitlines() if re.match(r"(from|import) ", line))
    imports = imports.replace("from . import", "from src.binary import").replace("from .", "from src.binary.")
    names = "from src.binary.estimators import ESTIMATORS, Surrogate, _positive\n"
    (tmp_path / "page.py").write_text("\n\n".join([imports, names, *code("adding_an_estimator.md")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(ESTIMATORS)
    __import__("page")
    yield "gaussian"
    ESTIMATORS.clear()
    ESTIMATORS.update(before)
    sys.modules.pop("page")


def test_an_estimator_is_one_class_and_one_line(gaussian, mode):
    t = np.array([-65504, -2, -0.1, 0, 0.3, 1, 65504], np.float32)
    got = ms.grad(create_estimator(gaussian))(Tensor(t)).asnumpy()
    np.testing.assert_allclose(got, np.sqrt(2 / np.pi) * np.exp(-0.5 * t.astype(np.float64) ** 2), atol=1e-6)
    with pytest.raises(ValueError, match="unknown option 'smax'.*did you mean 's_max'"):
        create_estimator(gaussian, smax=2)
    network = create_model("resnet20", binarization=Binarization(estimator=gaussian, noise_adaptation=False))
    step = ms.Parameter(Tensor([0], ms.int32))
    followed = schedules.attach(network, {}, step, steps=3)
    np.testing.assert_allclose(followed["s"], [1, np.sqrt(0.2), 0.2], rtol=1e-6)


def run_program(folder: Path, *blocks: str) -> str:
    """The output of the blocks, run as one program in `folder` with the repository on the path."""
    program = folder / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(processes.ROOT)},
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_on_binarizing_a_network_runs_unchanged(tmp_path):
    facts = """
from src.models import create_model
print("classes", create_model("small_net", 7).head.out_channels)
from src.deploy import openvino
openvino.export(frozen, (3, 32, 32), None, Path("small_net.xml"))
print("openvino:", compare(frozen, openvino.load(Path("small_net.xml")), images, batch_size=len(images)))
"""
    out = run_program(tmp_path, *code("binarizing_a_network.md"), facts)
    assert float(re.search(r"test accuracy ([\d.]+)%", out).group(1)) > 70, out
    assert re.search(r"\d+ images compared, 0 ", out)
    assert Path(tmp_path / "small_net.mindir").stat().st_size > 1000
    assert "classes 7" in out
    assert re.search(r"^openvino: \d+ images .*the sums of all 3 binary layers are equal", out, re.MULTILINE), out
    # The convolution of two groups is two.
    assert (tmp_path / "small_net.xml").read_text().count('type="BinaryConvolution"') == 4


@pytest.mark.slow
def test_the_network_of_the_page_trains_by_train_py(tmp_path):
    """Put into src/models, as the page describes: its class and its registration, and an import."""
    copy = tmp_path / "project"
    for name in ("src", "configs"):
        shutil.copytree(processes.ROOT / name, copy / name)
    for name in ("train.py", "default_config.yaml"):
        shutil.copy(processes.ROOT / name, copy / name)
    blocks = code("binarizing_a_network.md")
    network = next(block for block in blocks if "class SmallNet" in block)
    network = network[network.index("import mindspore") : network.index("ms.set_seed")]
    registration = next(block for block in blocks if "@register" in block)
    (copy / "src/models/small_net.py").write_text(network + registration)
    with (copy / "src/models/__init__.py").open("a") as file:
        file.write("from . import small_net  # noqa\n")
    options = ("--network.name", "small_net", "--epochs", "1", "--train.steps_per_epoch", "3", "--output_dir", "run")
    done = subprocess.run(
        [sys.executable, "train.py", "--config", "configs/digits.yaml", *options],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert (copy / "run/last.ckpt").exists()


@pytest.mark.slow
def test_the_page_on_python_runs_unchanged(tmp_path):
    """All three ways of training learn, and their schedules are at the end of their tables."""
    state = """
for trained in (network, trained_by_mindcv, trained_by_loop):
    print("n", float(trained[2].activation_quantizer.estimator.state()))
"""
    out = run_program(tmp_path, *code("python_api.md"), state)
    assert "16, 32, kernel_size=3, stride=2, padding=1, groups=1, input: sign by clipped_ste, weight: dorefa" in out
    accuracies = re.findall(r"(\w+): test accuracy ([\d.]+)%", out)
    assert [name for name, _ in accuracies] == ["Model", "mindcv", "loop"]
    assert all(float(accuracy) > 60 for _, accuracy in accuracies), out
    assert re.findall(r"^n (.*)$", out, re.MULTILINE) == ["18.0"] * 3


def test_the_lines_that_were_not_run_without_a_device_are_in_their_files():
    page = (DOCS / "clusters.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+\.py)` \| `([^`]+)` \|", page, re.MULTILINE)
    assert len(listed) > 10
    for file, line in listed:
        assert line in (processes.ROOT / file).read_text(encoding="utf-8"), (file, line)
