"""MindSpore Lite, for real: in an environment of its own with an old Python, if one runs and the package is there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mindspore import nn

from src import checkpoints
from src.config import load_config
from src.deploy.lite import LiteError, LiteModel, convert
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.networks import lively_network

LITE = processes.ROOT / "src/deploy/lite.py"
SCRIPT = processes.ROOT / "scripts/run_convert_lite.sh"
REQUIREMENT = "mindspore-lite==2.0.0"
IMAGES = 500


def python37() -> str | None:
    """A Python 3.7 that runs; one on the path may be a shim of a version manager that does not."""
    managed = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.7*/bin/python"))
    for candidate in ("python3.7", *map(str, managed)):
        path = shutil.which(candidate)
        if path is None:
            continue
        done = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == "(3, 7)":
            return path
    return None


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """A Python that has MindSpore Lite."""
    base = python37()
    if base is None:
        pytest.skip("no Python 3.7 runs here, which this MindSpore Lite needs")
    folder = tmp_path_factory.mktemp("lite") / "environment"
    subprocess.run([base, "-m", "venv", folder], check=True)
    python = str(folder / "bin/python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", REQUIREMENT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{REQUIREMENT} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """The digits ResNet-20, and a small network, as ONNX files with batch 1, which the converter takes."""
    folder = tmp_path_factory.mktemp("networks")
    small = lively_network("small")
    config = load_config(overrides={"data.name": "digits", "network.name": "small"}).model_dump()
    optimizer = nn.Momentum(small.trainable_params(), 0.1, 0.9)
    checkpoints.save(folder / "small.ckpt", small, optimizer, config, PREPROCESSING["digits"], None, {})
    programs = {
        "resnet20": ("export.py", "--checkpoint", "pretrained:resnet20_digits"),
        "small": ("tests/helpers/small_network.py", "export.py", "--checkpoint", "small.ckpt"),
    }
    for name, program in programs.items():
        words = (*program, "--file_format", "ONNX", "--batch_size", "1", "--output", name)
        done = processes.run(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return {name: folder / f"{name}.onnx" for name in programs}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mindir", ".ms"])
@pytest.mark.parametrize("name", ["resnet20", "small"])
def test_a_converted_network_gives_the_same_logits(python, networks, name, suffix, tmp_path):
    converted = tmp_path / f"ä {name}{suffix}"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(networks[name]), str(converted)],
        env={**os.environ, "PYTHON_LITE": python},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(f"{converted}.json").read_text())["format"] == "LITE"
    images = np.random.default_rng(7).normal(size=(IMAGES, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    words = [python, str(LITE), "run", str(converted), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(networks[name]), providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in images])
    found = np.load(tmp_path / "logits.npy")
    assert found.shape == expected.shape
    errors = np.abs(found - expected).max(1) / np.sqrt(np.mean(expected**2))
    assert np.median(errors) < 1e-6
    assert (errors > 1e-4).mean() < 0.05  # a sign within rounding of 0 flips


@pytest.mark.slow
def test_what_the_converter_refuses_is_one_sentence_and_leaves_nothing(python, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model" * 99)
    for source, target in (("net.onnx", "net.ms"), ("net.onnx", "net.tflite"), ("net.onnx", "nowhere/net.ms")):
        done = subprocess.run(
            ["bash", str(SCRIPT), source, target],
            cwd=tmp_path,
            env={**os.environ, "PYTHON_LITE": python},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("call", [lambda path: LiteModel(path), lambda path: convert(str(path), "net.ms")])
def test_without_mindspore_lite_a_sentence_says_where_to_get_it(call, tmp_path):
    (tmp_path / "net.mindir").write_bytes(b"")
    with pytest.raises(LiteError, match="has no MindSpore Lite: docs/ascend.md says where to get it"):
        call(tmp_path / "net.mindir")


def test_the_script_refuses_without_mindspore_lite(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    done = subprocess.run(
        ["bash", str(SCRIPT), "net.onnx", "net.mindir"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON_LITE": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "has no MindSpore Lite" in done.stderr
