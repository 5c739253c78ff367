"""MindSpore Lite, for real: in an environment of its own with an old Python, if one runs and the package is there."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn
from PIL import Image

from src import checkpoints, cli, pretrained
from src.config import load_config
from src.deploy import load_model
from src.deploy.description import Input
from src.deploy.exported_model import ExportedModel, Trace
from src.deploy.freeze import freeze
from src.deploy.lite import LiteError, LiteModel, convert
from src.deploy.lite_process import outputs_of
from src.deploy.onnx import layers_that_take_signs
from src.deploy.verification import compare
from src.errors import UserError
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.networks import create, lively_network
from tests.helpers.onnx_graph import describe, model_files

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


def converted_by_script(python: str, source: Path, target: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), str(source), str(target)],
        env={**os.environ, **environment, "PYTHON_LITE": python},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mindir", ".ms"])
@pytest.mark.parametrize("name", ["resnet20", "small"])
def test_a_converted_network_gives_the_same_logits(python, networks, name, suffix, tmp_path, monkeypatch, capsys):
    converted = tmp_path / f"ä {name}{suffix}"
    done = converted_by_script(python, networks[name], converted)
    assert done.returncode == 0, done.stderr
    assert f"{IMAGES} images compared" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [converted.name, f"{converted.name}.json"]
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
    monkeypatch.setenv("PYTHON_LITE", python)
    np.testing.assert_array_equal(load_model(converted).logits(images[:30]), found[:30])
    accuracies = []
    for file in (converted, networks[name]):
        assert cli.run(importlib.import_module("eval").main, ["--model", str(file)]) == 0
        accuracies.append(json.loads(capsys.readouterr().out.splitlines()[-1])["Top1-Acc"])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1.5 / 360)  # a sign may flip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "small"])
def test_its_layers_agree_given_the_same_signs(python, networks, name, tmp_path):
    """The values before the signs and the sums become outputs of the ONNX file before it is converted."""
    model = onnx.load(str(networks[name]))
    layers = layers_that_take_signs(model)
    shown = sorted({value for names in layers.values() for value in names} - {"images", "logits"})
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in shown)
    onnx.save(model, str(tmp_path / "traced.onnx"))
    done = converted_by_script(python, tmp_path / "traced.onnx", tmp_path / "traced.mindir")
    assert done.returncode == 0, done.stderr
    plain, traced = tmp_path / "plain.mindir", outputs_of(tmp_path / "traced.mindir", python)
    assert converted_by_script(python, networks[name], plain).returncode == 0
    logits = outputs_of(plain, python)

    def trace(images: np.ndarray) -> Trace:
        found = dict(zip(["logits", *shown], traced(images), strict=True))
        values = {layer: found[value] for layer, (value, _) in layers.items()}
        sums = {layer: found[sums] for layer, (_, sums) in layers.items()}
        for layer, array in sums.items():  # its fast convolutions are not exact: 1.3e-4 was seen
            assert np.abs(array - np.round(array)).max() < 1e-3, layer
        return Trace(found["logits"], values, {layer: np.round(array) for layer, array in sums.items()})

    network = create(name)
    trained = pretrained.weights("resnet20_digits") if name == "resnet20" else networks[name].with_suffix(".ckpt")
    checkpoints.load_network(network, trained)
    images = np.random.default_rng(8).normal(size=(IMAGES, 3, 32, 32)).astype(np.float32)
    result = compare(freeze(network), ExportedModel(lambda batch: logits(batch)[0], trace), images, 1)
    assert result.images == IMAGES and result.layers == len(layers) and result.replayed >= 20


# Stands in for MindSpore Lite: its "offline models" are ONNX files, run by onnxruntime.
FAKE = """
import sys
import onnxruntime

class ModelType: MINDIR, MINDIR_LITE = ".mindir", ".ms"
class FmkType: MINDIR, ONNX = ".mindir", ".onnx"
class Context: cpu = ascend = type("Device", (), {})()

class Converter:
    def convert(self, fmk_type, model_file, output_file):
        with open(model_file, "rb") as source, open(output_file + self.save_type, "wb") as target:
            target.write(source.read())

class Value:
    def __init__(self, shape=None, array=None): self.shape, self.array = shape, array
    def set_data_from_numpy(self, array): self.array = array
    def get_data_to_numpy(self): return self.array

class Model:
    def build_from_file(self, path, kind, context):
        print("a runtime may print anything")
        self.session = onnxruntime.InferenceSession(path)
    def get_inputs(self): return [Value(self.session.get_inputs()[0].shape)]
    def predict(self, inputs):
        (array,) = [value.array for value in inputs]
        CHANGE
        return [Value(array=found) for found in self.session.run(None, {"images": array})]
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write the stand-in, with a line of code at CHANGE, where this Python finds it; net.onnx lies in `work`."""
    folder = tmp_path / "work"
    folder.mkdir()
    model_files(folder)
    model = onnx.load(str(folder / "net.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(folder / "net.onnx"))
    describe(folder / "net.onnx", "ONNX", input=Input(batch_size=2, shape=(3, 8, 8)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("PYTHON_LITE", sys.executable)

    def write(change: str = "") -> None:
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages/mindspore_lite.py").write_text(FAKE.replace("CHANGE", change or "pass"))

    return write


def run_script(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True)


def test_a_lite_model_runs_in_a_process_of_its_own(fake, capsys):
    fake()
    done = run_script("net.onnx", "net_lite.mindir")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"net_lite\.mindir: \d+ KiB; 500 images compared, .*\(random\)\n", done.stdout)
    model = load_model("net_lite.mindir")
    images = np.random.default_rng(1).normal(size=(5, *model.description.input.shape)).astype(np.float32)
    np.testing.assert_array_equal(model.logits(images), load_model("net.onnx").logits(images))
    np.testing.assert_array_equal(model.logits(images[::-1]), load_model("net.onnx").logits(images[::-1]))
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save("photo.png")
    capsys.readouterr()
    lines = []
    for file in ("net_lite.mindir", "net.onnx"):
        assert cli.run(importlib.import_module("predict").main, ["--model", file, "photo.png"]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] and lines[0].startswith("photo.png: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("array = array + 1", "net_lite.ms does not agree with net.onnx and is not kept: "),
        ("array = array[:0]", "MindSpore Lite cannot run the model: "),
        ("print('gone', file=sys.stderr); sys.exit(3)", "ended with 3 while it had .*: gone"),
    ],
)
def test_a_file_that_does_not_agree_is_not_kept(fake, change, message):
    fake(change)
    before = sorted(path.name for path in Path().iterdir())
    done = run_script("net.onnx", "net_lite.ms")
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_model_for_another_device_is_not_compared(fake):
    fake("sys.exit(1)")
    done = run_script("net.onnx", "net_lite.mindir", "--device", "ascend")
    assert done.returncode == 0, done.stderr
    assert "not compared: compare its accuracy on the device" in done.stdout


def test_a_python_that_is_not_there_is_named(fake, monkeypatch):
    fake()
    assert run_script("net.onnx", "net_lite.ms").returncode == 0
    monkeypatch.setenv("PYTHON_LITE", "/nowhere/python")
    done = run_script("net.onnx", "other.ms")
    assert done.returncode == 2 and "PYTHON_LITE is '/nowhere/python', which cannot be started" in done.stderr
    with pytest.raises(UserError, match="cannot be read as LITE: PYTHON_LITE is '/nowhere/python'"):
        load_model("net_lite.ms")


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
