"""Checkpoint files: written whole or not at all, read with every parameter accounted for.

Ours hold, beside the network's parameters under their own names, the optimizer's under `optimizer.`, and three texts
of JSON: `config` (what rebuilds the network), `preprocessing` (what becomes of an image, and the classes' names) and
`state` (what resuming needs). The released ResNet-20 holds the network alone; MindSpore 1.3 called its slopes
`layer1.0.relu1.a`, MindSpore 2 by their attribute `layer1.0.relu1.w`: both load.
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.errors import UserError
from src.preprocessing import Preprocessing

OPTIMIZER_PREFIX = "optimizer."
EXTRA_PREFIX = "state."
_NOISE = re.compile(r"\.noise\.")
# What MindSpore's own optimizers and loss scaling add to a file that they save.
_FOREIGN_OPTIMIZER_STATE = re.compile(
    r"^(moments?[12]?|accum|stat|velocity)\.|^(global_step|learning_rate|momentum"
    r"|beta[12]_power|scale_sense|current_iterator_step|last_overflow_iterator_step"
    r"|epoch_num|step_num)$"
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file. `config`, `preprocessing` and `state` are None in files that are not ours."""

    path: str
    parameters: dict[str, np.ndarray]
    config: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    state: dict[str, Any] | None = None
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)


def save(
    path: str | Path,
    network: nn.Cell,
    optimizer: nn.Cell,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    state: dict[str, Any],
    extra: dict[str, np.ndarray],
) -> None:
    """Writes a checkpoint beside `path` and renames it, so that `path` is at every moment a whole file.

    Args:
        network, optimizer: their parameters are saved; the optimizer's table of learning rates is not.
        config, state: plain data that JSON can hold.
        preprocessing: of the data that the network was trained on.
        extra: further arrays that resuming needs.

    Raises:
        UserError: the file cannot be written; an earlier one at `path` is untouched.
    """
    entries = [{"name": parameter.name, "data": parameter} for parameter in network.get_parameters()]
    entries += [
        {"name": OPTIMIZER_PREFIX + parameter.name, "data": parameter} for parameter in _optimizer_state(optimizer)
    ]
    entries += [{"name": EXTRA_PREFIX + name, "data": Tensor(value)} for name, value in extra.items()]
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial.ckpt")
    try:
        ms.save_checkpoint(
            entries,
            str(partial),
            crc_check=True,
            append_dict={
                "config": json.dumps(config),
                "preprocessing": json.dumps(preprocessing.to_dict()),
                "state": json.dumps(state),
            },
        )
        os.replace(partial, path)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot write the checkpoint {path}: {_first_line(error)}") from error
    finally:
        for leftover in (partial, partial.with_suffix(".tmp")):  # the second is what MindSpore writes first
            with contextlib.suppress(OSError):
                leftover.unlink()


def read(path: str | Path) -> Checkpoint:
    """The content of a checkpoint file.

    Raises:
        UserError: no such file, a directory, empty, truncated, damaged, or no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist")
    if not path.is_file():
        raise UserError(f"the checkpoint {path} is no file")
    if path.stat().st_size == 0:
        raise UserError(f"the checkpoint {path} is empty")
    if path.suffix != ".ckpt":
        raise UserError(f"the checkpoint {path} has a name that does not end in .ckpt, as MindSpore wants it")
    try:
        content = ms.load_checkpoint(str(path), crc_check=True)  # files without a checksum pass
    except Exception as error:  # MindSpore raises many kinds here, bare ones included
        raise UserError(f"{path} is no MindSpore checkpoint, or it is truncated or damaged") from error
    try:
        texts = {
            name: json.loads(content.pop(name)) if isinstance(content.get(name), str) else None
            for name in ("config", "preprocessing", "state")
        }
        if texts["preprocessing"] is not None:
            texts["preprocessing"] = Preprocessing.from_dict(texts["preprocessing"])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the texts beside the weights in {path} are not those of this project") from error
    arrays = {name: value.asnumpy() for name, value in content.items() if isinstance(value, Tensor)}
    parts: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "optimizer": {}, "extra": {}}
    for name, value in arrays.items():
        if name.startswith(OPTIMIZER_PREFIX):
            parts["optimizer"][name.removeprefix(OPTIMIZER_PREFIX)] = value
        elif name.startswith(EXTRA_PREFIX):
            parts["extra"][name.removeprefix(EXTRA_PREFIX)] = value
        else:
            parts["parameters"][name] = value
    return Checkpoint(str(path), **texts, **parts)


def load_network(network: nn.Cell, file: str | Path | Checkpoint) -> None:
    """Puts a checkpoint's weights and moving statistics into a network, all or none.

    Noise modules may be missing from the file (they start fresh) or from the network; optimizer state is passed over.

    Args:
        network: any Cell.
        file: a path, or what `read` returned.

    Raises:
        UserError: names the parameters that are missing, unknown or of another shape; or as `read` does.
    """
    checkpoint = file if isinstance(file, Checkpoint) else read(file)
    found = {
        _slope_name(name): value
        for name, value in checkpoint.parameters.items()
        if not _FOREIGN_OPTIMIZER_STATE.search(name)
    }
    wanted = {parameter.name: parameter for parameter in network.get_parameters()}
    missing = [name for name in wanted if name not in found and not _NOISE.search(name)]
    unknown = [name for name in found if name not in wanted and not _NOISE.search(name)]
    shapes = [
        f"{name} {found[name].shape} (the network has {tuple(wanted[name].shape)})"
        for name in wanted
        if name in found and found[name].shape != tuple(wanted[name].shape)
    ]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(f"the checkpoint {checkpoint.path} does not fit this network; parameters {'; '.join(problems)}")
    for name, parameter in wanted.items():
        if name in found:
            parameter.set_data(Tensor(found[name], parameter.dtype))


def load_optimizer(optimizer: nn.Cell, checkpoint: Checkpoint) -> None:
    """Restores the optimizer's state, its step counter included, from one of our own checkpoints.

    Raises:
        UserError: the file lacks a value, or has one of another shape.
    """
    for parameter in _optimizer_state(optimizer):
        value = checkpoint.optimizer.get(parameter.name)
        if value is None or value.shape != tuple(parameter.shape):
            raise UserError(
                f"{checkpoint.path} cannot be resumed with this optimizer: it holds no {parameter.name} of "
                f"shape {tuple(parameter.shape)}; use --init_checkpoint to take its weights alone"
            )
        parameter.set_data(Tensor(value, parameter.dtype))


def _optimizer_state(optimizer: nn.Cell) -> list[Parameter]:
    """Its own parameters: not the network's, which it holds too, and not the tables that the config determines."""
    networks = {id(parameter) for parameter in optimizer.parameters}
    return [
        parameter
        for parameter in optimizer.get_parameters()
        if id(parameter) not in networks and not parameter.name.endswith("learning_rate")
    ]


def _slope_name(name: str) -> str:
    """The slopes of the released network, in MindSpore 2's spelling, by the name that this project gives them."""
    return re.sub(r"(\.relu[12])\.w$", r"\1.a", name)


def _some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().split("\n")[0]
