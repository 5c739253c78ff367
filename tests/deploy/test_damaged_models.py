"""Damaged model files: a sentence, also when their description says that they are right."""

import subprocess
import sys

import numpy as np
import pytest

from src.binary import Binarization
from src.deploy import load_model
from src.deploy.description import Input, Resize
from src.deploy.formats import FORMATS
from src.deploy.freeze import freeze
from src.errors import UserError
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.networks import small
from tests.helpers.onnx_graph import describe, model_files

PLACES = 20
LOAD_ALL = """
import sys
import numpy as np
from src.deploy import load_model
from src.errors import UserError

for path in sys.argv[1:]:
    try:
        load_model(path).logits(np.zeros((1, 3, 8, 8), np.float32))
    except UserError as error:
        print(str(error).replace("\\n", "NEWLINE"))
    else:
        print("loaded")
"""


@pytest.mark.parametrize("file", ["net.onnx", "net.xml", "net.bin"])
@pytest.mark.parametrize("described", [False, True], ids=["old hash", "own hash"])
def test_a_truncated_file_is_refused(file, described, tmp_path):
    """In a process of its own: a runtime that trusts a file may crash."""
    models = []
    for place in range(PLACES):
        folder = tmp_path / str(place)
        folder.mkdir()
        onnx, openvino = model_files(folder)
        path = folder / file
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * place // PLACES])
        model, name = (onnx, "ONNX") if file == "net.onnx" else (openvino, "OPENVINO")
        if described:
            describe(model, name)
        models.append(model)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *map(str, models)], cwd=processes.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == PLACES and "NEWLINE" not in done.stdout
    said = "cannot be" if described else "is not the file that"
    assert all(said in line and len(line) < 1000 for line in lines), done.stdout


def test_sound_files_load(tmp_path):
    for path in model_files(tmp_path):
        assert load_model(path).logits(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4)
    (tmp_path / "net.xml").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "net.xml")


def test_a_truncated_mindir_file_is_refused(tmp_path):
    """With a description that says it is right; MindSpore reads it."""
    FORMATS["MINDIR"].export(freeze(small(4, 3, Binarization())), (3, 32, 32), None, tmp_path / "net.mindir")
    content = (tmp_path / "net.mindir").read_bytes()
    models = []
    for place in range(PLACES):
        folder = tmp_path / str(place)
        folder.mkdir()
        models.append(folder / "net.mindir")
        models[-1].write_bytes(content[: len(content) * place // PLACES])
        described = {"preprocessing": PREPROCESSING["digits"].to_dict() | {"classes": []}}
        describe(
            models[-1],
            "MINDIR",
            input=Input(batch_size=None, shape=(3, 32, 32)),
            resize=Resize(shorter_side=32),
            **described,
        )
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL.replace("8, 8", "32, 32"), *map(str, models)],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if "net.mindir" in line]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines) == PLACES and all("cannot be" in line and len(line) < 1000 for line in lines), done.stdout
