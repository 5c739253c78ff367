"""The table of export formats, and what reading it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from src.deploy import formats
from src.errors import UserError
from tests.helpers import processes


@pytest.mark.parametrize("name", formats.FORMATS)
def test_each_line_names_a_module_that_exports_or_reads(name):
    if name in formats.EXPORTED:
        assert callable(formats.FORMATS[name].export)
    assert (formats.FORMATS[name].load is None) == (name == "AIR")


def test_all_is_what_the_device_can_write():
    assert formats.select("ALL", "CPU", 1) == ["MINDIR", "ONNX", "OPENVINO"]
    assert formats.select("ALL", "Ascend", None) == ["MINDIR", "ONNX", "OPENVINO"]
    assert formats.select("ALL", "Ascend", 1) == ["MINDIR", "ONNX", "OPENVINO", "AIR"]
    assert formats.select("AIR", "Ascend", 1) == ["AIR"]


def test_air_needs_ascend_and_a_fixed_batch():
    with pytest.raises(UserError, match="AIR files can be written only on a host with Ascend .*device_target is GPU"):
        formats.select("AIR", "GPU", 1)
    with pytest.raises(UserError, match="AIR has no dynamic batch: give a number as --batch_size"):
        formats.select("AIR", "Ascend", None)


def test_air_reaches_mindspores_exporter(tmp_path, monkeypatch):
    """No Ascend is needed up to `ms.export`; what MindSpore does there is not shown."""
    import mindspore as ms

    calls = []
    monkeypatch.setattr(ms, "export", lambda *arguments, **options: calls.append((arguments, options)))
    network = object()
    formats.FORMATS["AIR"].export(network, (3, 32, 32), 4, tmp_path / "net.air")
    ((arguments, options),) = calls
    assert arguments[0] is network and arguments[1].shape == (4, 3, 32, 32)
    assert options == {"file_name": str(tmp_path / "net.air"), "file_format": "AIR"}


def test_files_are_those_of_the_model_and_its_weights():
    assert formats.FORMATS["ONNX"].files(Path("a.b/net.1.onnx")) == [Path("a.b/net.1.onnx")]
    assert formats.FORMATS["OPENVINO"].files(Path("a.b/net.1.xml")) == [Path("a.b/net.1.bin"), Path("a.b/net.1.xml")]


def test_the_table_and_an_onnx_or_openvino_file_need_no_mindspore():
    """A machine that only deploys has no MindSpore."""
    code = (
        "import sys; sys.modules['mindspore'] = sys.modules['mindcv'] = None\n"
        "from src.deploy import export_process, formats\n"
        "formats.select('ALL', 'CPU', 1), formats.FORMATS['ONNX'].load, "
        "formats.FORMATS['OPENVINO'].load"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=processes.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_export_finds_its_own_package_in_a_folder_with_another_src(tmp_path):
    """The folder from which a user exports may hold a `src` of theirs."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__init__.py").write_text("raise SystemExit('the wrong src')")
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    done = processes.run("export.py", "--checkpoint", "last.ckpt", "--file_format", "MINDIR", cwd=tmp_path)
    assert done.returncode == 2 and "wrong src" not in done.stderr
    assert "last.ckpt" in done.stderr
