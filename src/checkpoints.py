"""Checkpoint files: written whole or not at all, read with every parameter accounted for.

Ours hold, beside the network's parameters under their own names, the optimizer's under `optimizer.`, and three texts
of JSON: `config` (what rebuilds the network), `preprocessing` (what becomes of an image, and the classes' names) and
`state` (what resuming needs). The released ResNet-20 holds the network alone; MindSpore 1.3 called its slopes
`layer1.0.relu1.a`, MindSpore 2 by their attribute `layer1.0.relu1.w`: both load.
"""

import contextlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from .errors import UserError
from .files import write_atomically
from .preprocessing import Preprocessing
from .run_dir import LAST, epoch_checkpoints

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
        WriteError: the file cannot be written; an earlier one at `path` is untouched.
    """
    entries = [{"name": parameter.name, "data": parameter} for parameter in network.get_parameters()]
    entries += [
        {"name": OPTIMIZER_PREFIX + parameter.name, "data": parameter} for parameter in optimizer_state(optimizer)
    ]
    entries += [{"name": EXTRA_PREFIX + name, "data": Tensor(value)} for name, value in extra.items()]
    texts = {"config": config, "preprocessing": preprocessing.to_dict(), "state": state}

    def write(partial: Path) -> None:
        try:
            with _quiet():
                ms.save_checkpoint(
                    entries,
                    str(partial),
                    crc_check=True,
                    append_dict={name: json.dumps(value) for name, value in texts.items()},
                )
        finally:
            with contextlib.suppress(OSError):
                partial.with_suffix(".tmp").unlink(missing_ok=True)  # what MindSpore writes first

    write_atomically(Path(path), write, suffix=".ckpt")


def read(path: str | Path) -> Checkpoint:
    """The content of a checkpoint file.

    Raises:
        UserError: no such file, a directory, no permission, empty, truncated, damaged, or no checkpoint.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"the checkpoint {path} does not exist")
        if not path.is_file():
            raise UserError(f"the checkpoint {path} is no file")
        if path.stat().st_size == 0:
            raise UserError(f"the checkpoint {path} is empty")
        if path.suffix != ".ckpt":
            raise UserError(f"the checkpoint {path} has a name that does not end in .ckpt, as MindSpore wants it")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        with _quiet():
            content = ms.load_checkpoint(str(path), crc_check=True)  # files without a checksum pass
    except Exception as error:  # MindSpore raises many kinds here, bare ones included
        raise UserError(f"{path} is no MindSpore checkpoint, or it is truncated or damaged") from error
    texts = {name: content.pop(name) for name in ("config", "preprocessing", "state") if name in content}
    if "config" in texts and not _ends_with_checksum(path):  # cut between two parameters, which reads well
        raise UserError(f"{path} is a truncated checkpoint: it does not end with its checksum")
    try:
        described = {name: json.loads(text) if isinstance(text, str) else None for name, text in texts.items()}
        if not all(isinstance(value, dict) for value in described.values() if value is not None):
            raise TypeError
        if described.get("preprocessing") is not None:
            described["preprocessing"] = Preprocessing.from_dict(described["preprocessing"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, or no checkpoint of this project: its {', '.join(texts)} cannot be read"
        ) from error
    arrays = {name: value.asnumpy() for name, value in content.items() if isinstance(value, Tensor)}
    parts: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "optimizer": {}, "extra": {}}
    for name, value in arrays.items():
        if name.startswith(OPTIMIZER_PREFIX):
            parts["optimizer"][name.removeprefix(OPTIMIZER_PREFIX)] = value
        elif name.startswith(EXTRA_PREFIX):
            parts["extra"][name.removeprefix(EXTRA_PREFIX)] = value
        else:
            parts["parameters"][name] = value
    return Checkpoint(str(path), **described, **parts)


@contextlib.contextmanager
def _quiet():
    """MindSpore logs, in words of its own, the errors that it raises as well."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _ends_with_checksum(path: Path) -> bool:
    """Whether MindSpore's mark and the ten bytes of the checksum end the file, as `save` leaves it."""
    with path.open("rb") as file:
        file.seek(-17, os.SEEK_END)
        return file.read(7) == b"crc_num"


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
    for parameter in optimizer_state(optimizer):
        value = checkpoint.optimizer.get(parameter.name)
        if value is None or value.shape != tuple(parameter.shape):
            raise UserError(
                f"{checkpoint.path} cannot be resumed with this optimizer: it holds no {parameter.name} of "
                f"shape {tuple(parameter.shape)}; use --init_checkpoint to take its weights alone"
            )
        parameter.set_data(Tensor(value, parameter.dtype))


def optimizer_state(optimizer: nn.Cell) -> list[Parameter]:
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


def newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint to go on from: last.ckpt, or if it is missing or damaged that of the latest epoch that is whole;
    and a sentence for each that was passed over.

    Raises:
        UserError: there is none, or none that is whole; or one may be whole, but the disk does not let it be read.
    """
    problems = []
    for path in (folder / LAST, *reversed(epoch_checkpoints(folder).values())):
        try:
            return read_resumable(path), problems
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            problems.append(str(error))
    raise UserError(f"no checkpoint in {folder} can be resumed: {'; '.join(problems)}")


def read_resumable(path: Path) -> Checkpoint:
    """As `read`; UserError for a file without what resuming needs."""
    checkpoint = read(path)
    if checkpoint.state is None or checkpoint.config is None:
        raise UserError(f"{path} holds weights alone, use --init_checkpoint to start from them")
    return checkpoint
