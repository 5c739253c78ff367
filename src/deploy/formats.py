"""The formats of model files, one line each. Importing this table imports neither MindSpore nor a runtime; using a
line does."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import UserError

ALL = "ALL"  # every format that can be written here


@dataclass(frozen=True)
class Format:
    """One format.

    `module`, in this folder, has `export(network, input_shape, batch_size, path)`, which may return a remark, unless
    another program writes the format, and, if a runtime here can read the file back, `load(path)`, which returns an
    `ExportedModel`; `load(path, device)` if `takes_device`.
    """

    module: str
    suffix: str
    other_suffix: str | None = None  # that its files may have, too
    weights_suffix: str | None = None  # of a second file with the weights; None: there is one file
    device: str | None = None  # the only device target on which MindSpore writes it; None: any
    fixed_batch: bool = False  # whether it needs a batch size
    needs_mindspore: bool = False  # whether MindSpore reads it back, on the device that it was started for
    takes_device: bool = False  # whether another runtime reads it back and is told the device, "cpu" or "ascend"
    exported: bool = True  # False: scripts/run_convert_lite.sh writes it

    def files(self, path: Path) -> list[Path]:
        """The files of a model at `path`, the one that is opened last."""
        return [*([path.with_suffix(self.weights_suffix)] if self.weights_suffix else []), path]

    @property
    def export(self) -> Callable:
        """The function that writes a file."""
        return self._imported.export

    @property
    def load(self) -> Callable | None:
        """The function that reads a file back; None if nothing here can."""
        return getattr(self._imported, "load", None)

    @property
    def _imported(self) -> ModuleType:
        return importlib.import_module(f".{self.module}", __package__)


FORMATS = {
    "MINDIR": Format("mindir", ".mindir", needs_mindspore=True),
    "ONNX": Format("onnx", ".onnx"),
    "OPENVINO": Format("openvino", ".xml", weights_suffix=".bin"),
    "AIR": Format("air", ".air", device="Ascend", fixed_batch=True),
    "LITE": Format("lite_process", ".ms", other_suffix=".mindir", takes_device=True, exported=False),
}
EXPORTED = tuple(name for name, one in FORMATS.items() if one.exported)


def select(name: str, device_target: str, batch_size: int | None) -> list[str]:
    """Return `[name]`, or for `ALL` every format that can be written.

    Args:
        name: a name in `EXPORTED`, or `ALL`.
        device_target: CPU, GPU or Ascend.
        batch_size: None: dynamic.

    Raises:
        UserError: the named format cannot be written on that device or with that batch size.
    """
    if name == ALL:
        return [name for name in EXPORTED if _obstacle(name, device_target, batch_size) is None]
    obstacle = _obstacle(name, device_target, batch_size)
    if obstacle is not None:
        raise UserError(obstacle)
    return [name]


def _obstacle(name: str, device_target: str, batch_size: int | None) -> str | None:
    """Return why a format cannot be written, or None."""
    wanted = FORMATS[name]
    if wanted.device not in (None, device_target):
        return (
            f"{name} files can be written only on a host with {wanted.device} (--device_target {wanted.device}), and "
            f"runtime.device_target is {device_target}: export MINDIR here and convert it there"
        )
    if wanted.fixed_batch and batch_size is None:
        return f"{name} has no dynamic batch: give a number as --batch_size"
    return None
