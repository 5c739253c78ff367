"""Save, verify, load and migrate checkpoint files. Every file is written whole or not at all.

Format 1 is a MindSpore checkpoint: a protocol buffer (`Checkpoint` of mindspore/train/checkpoint.proto) of entries with
a name and a tensor or a text, followed by `crc_num` and the CRC-32 of all before it. `mindspore.load_checkpoint` reads
it. The entries, in this order:

| entry | what it holds |
| --- | --- |
| `fda_bnn_format` | text `1`. First, so that a file of ours that was cut anywhere is known as ours |
| `config` | JSON: the run's resolved config. Only the keys of `network_config` are used outside of the run itself |
| `preprocessing` | JSON: `Preprocessing`: image size, mean, std, names of the classes |
| `state` | JSON: the run's progress, which resuming needs; `null` if the file holds weights only |
| `contents` | SHA-256 of these texts and of names, types and shapes of all tensors, so that nothing can be missing |
| NAME | the network's parameters under their own names |
| NAME`@optimizer` | the optimizer's state |
| NAME`@state` | further arrays that resuming needs |

The markers are suffixes: `mindspore.load_param_into_net` fills a missing parameter from any entry whose name *ends* in
that parameter's name. Format 0 had them as prefixes (`optimizer.`, `state.`), the texts at the end, and no number;
`migration` brings it to today's names when it is read. `fda_bnn_format` and `contents` have no other use than to check
the file.

Weights alone, with config and preprocessing but without the state of a run, can also be a safetensors file: the texts
are its metadata. Programs without MindSpore read it. `src.convert` turns one kind into the other.

Files that are not ours hold weights only: the released ResNet-20 (MindSpore 1.3 called its slopes
`layer1.0.relu1.a`, MindSpore 2 by their attribute `layer1.0.relu1.w`: both load), and what other programs saved.

Nothing of a file is trusted: `read` checks types, shapes and lengths of all tensors before it makes an array, and every
field of the texts, without MindSpore's own loader, which ends the process on some damaged files.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn
from mindspore.train import checkpoint_pb2
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save_file

from .config import load_config
from .errors import UserError
from .files import write_atomically
from .migration import FORMAT, migrate_arrays, migrate_config, migrate_state, require_known_format
from .preprocessing import Preprocessing
from .pretrained import resolve
from .run_dir import LAST, epoch_checkpoints

SAFETENSORS = ".safetensors"
FORMAT_ENTRY = "fda_bnn_format"
OPTIMIZER, EXTRA = "@optimizer", "@state"
_CHECKSUM = b"crc_num"
_CHECKSUM_BYTES = len(_CHECKSUM) + 10
_DTYPES = {
    name: np.dtype(name.lower())
    for name in ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Bool")
} | {"Float16": np.dtype("<f2"), "Float32": np.dtype("<f4"), "Float64": np.dtype("<f8"), "BFloat16": np.dtype("<u2")}
_MAX_RANK = 32  # numpy's
_MAX_COUNT = 10_000_000  # epochs, steps, workers
_NOISE = re.compile(r"\.noise\.")
# A prefix with such a word names a moment or an average of the weights.
_COPY = re.compile(r"(^|[._])(w?avg|averaged?|ema|swa|shadow|moment(s|um)?|accum\w*|velocity|optim\w*)\d*[._]", re.I)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, under today's names.

    Attributes:
        format (int): the file's format number. None for files of other programs, whose config and preprocessing are
            None too.
        config (dict): the run's whole config, validated. `network_config` gives what others may take from it.
        state (dict): what resuming needs; None in a file of weights only.
        parameters, optimizer, extra: arrays by name: the network's, the optimizer's, the callbacks'.
    """

    path: str
    parameters: dict[str, np.ndarray]
    format: int | None = None
    config: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    state: dict[str, Any] | None = None
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)


class _State(BaseModel):
    """What must be in a stored state before anything is built from it; the trainer checks the rest."""

    model_config = ConfigDict(extra="allow", strict=True)

    epoch: int = Field(ge=0, le=_MAX_COUNT)
    step: int = Field(ge=0, le=_MAX_COUNT)
    steps_per_epoch: int = Field(ge=1, le=_MAX_COUNT)
    workers: int = Field(ge=1, le=_MAX_COUNT)
    scaler: list[float] | None = Field(default=None, min_length=2, max_length=2)  # of the loss: scale, good steps
    history: list[dict[str, float | int | str | bool | None]] = []


class _Damaged(ValueError):
    """What is wrong with a file's content."""


def save(
    path: str | Path,
    network: nn.Cell,
    optimizer: nn.Cell,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    state: dict[str, Any] | None,
    extra: dict[str, np.ndarray],
) -> None:
    """Write a checkpoint next to `path` and rename it, so that `path` is at every moment a whole file.

    Args:
        network, optimizer: their parameters are saved; the optimizer's table of learning rates is not.
        config, state: plain data that JSON can hold.
        preprocessing: of the data that the network was trained on.
        extra: further arrays that resuming needs.

    Raises:
        WriteError: the file cannot be written; an earlier one at `path` is untouched.
    """
    tensors = {parameter.name: parameter for parameter in network.get_parameters()}
    tensors |= {parameter.name + OPTIMIZER: parameter for parameter in optimizer_state(optimizer)}
    arrays = {name + EXTRA: ms.Tensor(value) for name, value in extra.items() if value.size}  # it writes no empty ones
    tensors |= {name: Parameter(value, name) for name, value in arrays.items()}
    _write(path, _texts(config, preprocessing, state), tensors)


def save_weights(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's weights, config and preprocessing, without the state of its run.

    Args:
        path: ends in .safetensors, or in .ckpt for MindSpore's format.

    Raises:
        WriteError: the file cannot be written; an earlier one at `path` is untouched.
    """
    path, texts = Path(path), {}
    if checkpoint.config is not None:
        texts = _texts(_without_paths(checkpoint.config), checkpoint.preprocessing, None)
    arrays = {_slope_name(name): np.ascontiguousarray(value) for name, value in checkpoint.parameters.items()}
    if path.suffix == SAFETENSORS:
        write_atomically(path, lambda partial: save_file(arrays, partial, texts))
        path.chmod(0o644)  # safetensors makes it readable only by its owner
    else:
        _write(path, texts, {name: Parameter(ms.Tensor(value), name) for name, value in arrays.items()})


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config with default paths: those of the machine that trained say nothing to others."""
    default = load_config().model_dump()
    data = config["data"] | {"path": default["data"]["path"]}
    return config | {"data": data} | {key: default[key] for key in ("output_dir", "init_checkpoint")}


def _texts(config: dict[str, Any], preprocessing: Preprocessing, state: dict[str, Any] | None) -> dict[str, str]:
    return {
        FORMAT_ENTRY: str(FORMAT),
        "config": json.dumps(config),
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "state": json.dumps(state),
    }


def _write(path: str | Path, texts: dict[str, str], tensors: dict[str, Parameter]) -> None:
    """Write a file in MindSpore's format; without texts it is one as other programs write."""
    shapes = [(name, str(value.dtype), value.shape) for name, value in tensors.items()]
    contents = {"contents": contents_hash(texts, shapes)} if texts else {}
    entries = {**texts, **contents, **tensors}

    def write(partial: Path) -> None:
        try:
            with _quiet():
                ms.save_checkpoint(entries, str(partial), crc_check=True)
        finally:
            with contextlib.suppress(OSError):
                partial.with_suffix(".tmp").unlink(missing_ok=True)  # what MindSpore writes first

    write_atomically(Path(path), write, suffix=".ckpt")


def read(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint file, a safetensors file, or what `pretrained:NAME` stands for. Earlier formats are
    migrated.

    Raises:
        UserError: no such file, a directory, no permission, empty, truncated, damaged, no checkpoint, or of a newer
            format.
    """
    path = resolve(path)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    content, has_checksum = _read_verified(path)
    if not has_checksum and FORMAT_ENTRY.encode() in content[:64]:
        raise _truncated(path)
    try:
        message = checkpoint_pb2.Checkpoint()
        message.ParseFromString(content)
        entries = _entries(message)
    except MemoryError:
        raise
    except _Damaged as error:
        raise UserError(f"{path} is damaged, or no checkpoint: {error}") from error
    except Exception as error:  # protobuf raises many kinds, by its implementation; upb a DecodeError if memory is low
        np.empty(3 * len(content), np.uint8)  # as much as upb may need: MemoryError if there is less
        raise UserError(f"{path} is not a MindSpore checkpoint, or it is truncated or damaged") from error
    names = [name for name, _, _ in entries]
    number = 0 if "config" in names else None
    if FORMAT_ENTRY in names:
        number = require_known_format(_parse(path, FORMAT_ENTRY, entries[0][2]), str(path))
    elif number is None and any(name.startswith(("optimizer.", "state.")) for name in names):
        has_checksum, number = False, 0  # the rest of a file of format 0, whose texts came last
    if number is not None and not has_checksum:  # protocol buffers have no end: what is before a cut reads well
        raise _truncated(path)
    texts = {name: value for name, _, value in entries if isinstance(value, str)}
    arrays = {name: value for name, _, value in entries if isinstance(value, np.ndarray)}
    if number is None:
        return Checkpoint(str(path), arrays)
    if number > 0:
        shapes = [(name, kind, value.shape) for name, kind, value in entries if name in arrays]
        if texts.pop("contents", None) != contents_hash(texts, shapes):
            raise UserError(f"{path} is damaged: its texts and tensors are not those that it was saved with")
    try:
        described = _described(path, number, texts)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its texts are nested too deeply") from error
    parts = _sorted(number, arrays)
    for part in ("parameters", "optimizer"):
        parts[part] = migrate_arrays(described["config"], parts[part], number)
    return Checkpoint(str(path), format=number, **described, **parts)


def _read_safetensors(path: Path) -> Checkpoint:
    content, _ = _read_verified(path)
    try:
        arrays = load(content)
        with safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a type that numpy does not have
        raise UserError(f"{path} is not a safetensors file, or it is truncated or damaged: {error}") from error
    if FORMAT_ENTRY not in texts:
        return Checkpoint(str(path), arrays)
    number = require_known_format(_parse(path, FORMAT_ENTRY, texts[FORMAT_ENTRY]), str(path))
    described = _described(path, number, {"state": "null"} | texts)
    return Checkpoint(str(path), migrate_arrays(described["config"], arrays, number), format=number, **described)


def _truncated(path: Path) -> UserError:
    return UserError(f"{path} is a truncated checkpoint: it does not end with its checksum")


def _read_verified(path: Path) -> tuple[bytes, bool]:
    """Return the content without its verified checksum, and whether the file has one. MindSpore writes one only on
    request."""
    try:
        if not path.exists():
            raise UserError(f"the checkpoint {path} does not exist")
        if not path.is_file():
            raise UserError(f"the checkpoint {path} is not a file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not content:
        raise UserError(f"the checkpoint {path} is empty")
    body, end = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if not end.startswith(_CHECKSUM):
        return content, False
    if zlib.crc32(body) != int.from_bytes(end[len(_CHECKSUM) :], "big"):
        raise UserError(f"{path} is truncated or damaged: its checksum does not fit its content")
    return body, True


def _entries(message: checkpoint_pb2.Checkpoint) -> list[tuple[str, str, str | np.ndarray]]:
    """Name, type and value of every entry, in order. Neighbours of one name are slices of one tensor.

    Raises:
        _Damaged: an unknown type, a shape that does not fit the number of bytes, a name that comes twice.
    """
    entries: dict[str, tuple[str, str, str | np.ndarray]] = {}
    for name, slices in itertools.groupby(message.value, lambda value: value.tag):
        tensors = [value.tensor for value in slices if value.HasField("tensor")]
        if not tensors:
            raise _Damaged(f"{name!r} holds no tensor")
        kind, dims = tensors[0].tensor_type, tuple(tensors[0].dims)
        if any((other.tensor_type, tuple(other.dims)) != (kind, dims) for other in tensors):
            raise _Damaged(f"the slices of {name!r} differ in type or shape")
        if name in entries:
            raise _Damaged(f"{name!r} comes twice")
        content = b"".join(other.tensor_content for other in tensors)
        value = content.decode("utf-32-le") if kind == "str" else _array(name, kind, dims, content)
        entries[name] = (name, kind, value)
    if FORMAT_ENTRY in entries and next(iter(entries)) != FORMAT_ENTRY:
        raise _Damaged(f"{FORMAT_ENTRY!r} is not its first entry")
    return list(entries.values())


def _array(name: str, kind: str, dims: tuple[int, ...], content: bytes) -> np.ndarray:
    """The tensor with these bytes, BFloat16 as float32. _Damaged unless type, shape and number of bytes agree."""
    if kind not in _DTYPES:
        raise _Damaged(f"{name!r} is of the type {kind!r}, which is not supported")
    shape = () if dims == (0,) else dims  # how MindSpore 1 writes a scalar
    dtype = _DTYPES[kind]
    if len(shape) > _MAX_RANK or min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize != len(content):
        raise _Damaged(
            f"{name!r} has {len(content)} bytes, which its type {kind} and shape {_short(shape)} do not take"
        )
    value = np.frombuffer(content, dtype).reshape(shape)
    return (value.astype(np.uint32) << 16).view(np.float32) if kind == "BFloat16" else value


def contents_hash(texts: dict[str, str], shapes: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """SHA-256, in hexadecimal, of the texts by name and of the tensors' names, types and shapes, all in order."""
    table = [*texts.items(), *((name, kind, list(shape)) for name, kind, shape in shapes)]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _parse(path: Path, name: str, text: Any) -> Any:
    """Parse the JSON of a text; UserError if it is missing or is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        what = "is missing" if text is None else "is not JSON"
        raise UserError(f"{path} is damaged, or not a checkpoint of this project: its {name} {what}") from error


def _described(path: Path, number: int, texts: dict[str, str]) -> dict[str, Any]:
    """config, preprocessing and state from the texts, each field checked."""
    config = _parse(path, "config", texts.get("config"))
    try:
        for name in ("network", "noise", "data", "amp"):  # required in the file: a default could be wrong
            if not isinstance(config, dict) or not isinstance(config.get(name), dict):
                raise UserError(f"it lacks the section {name!r}")
        for section in ("network", "data"):
            if "name" not in config[section]:
                raise UserError(f"it lacks the key '{section}.name'")
        config = load_config(migrate_config(config, number)).model_dump()
    except ValueError as error:  # a UserError, or pydantic's for what is nested too deeply
        raise UserError(f"{path} is damaged, or not a checkpoint of this project: its config: {error}") from error
    try:
        preprocessing = Preprocessing.from_json(texts.get("preprocessing", ""))
    except ValueError as error:
        raise UserError(f"{path} is damaged: its preprocessing: {error}") from error
    state = _parse(path, "state", texts.get("state"))
    if state is not None:
        try:
            state = migrate_state(_State.model_validate(state).model_dump(), number)
        except ValueError as error:
            raise UserError(f"{path} is damaged: its state: {_first_problem(error)}") from error
    return {"config": config, "preprocessing": preprocessing, "state": state}


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _sorted(number: int, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays by what they belong to, under their own names."""
    parts: dict[str, dict[str, np.ndarray]] = {"parameters": {}, "optimizer": {}, "extra": {}}
    for name, value in arrays.items():
        part, own = _owner(number, name)
        parts[part][own] = value
    return parts


def _owner(number: int, name: str) -> tuple[str, str]:
    if number == 0:
        for part, prefix in (("optimizer", "optimizer."), ("extra", "state.")):
            if name.startswith(prefix):
                return part, name.removeprefix(prefix)
        return "parameters", name
    for part, suffix in (("optimizer", OPTIMIZER), ("extra", EXTRA)):
        if name.endswith(suffix):
            return part, name.removesuffix(suffix)
    return "parameters", name


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} dimensions"


@contextlib.contextmanager
def _quiet():
    """Silence MindSpore's log, which repeats the errors that it raises."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def network_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a stored config decides outside of its own run: the network, its precision, and the data set by name.

    Paths, downloads and the device come only from the user; the classes and the normalisation are in `preprocessing`.
    {} if the file is not ours.
    """
    if checkpoint.config is None:
        return {}
    config = checkpoint.config
    noise = config["noise"] | {"enabled": config["noise"]["enabled"] and config["schedules"]["alpha"]["start"] > 0}
    return {
        "network": config["network"],
        "noise": noise,
        "amp": {"level": config["amp"]["level"]},
        "data": {key: config["data"][key] for key in ("name", "image_size") if key in config["data"]},
    }


def load_network(network: nn.Cell, file: str | Path | Checkpoint, new_classes: bool = False) -> list[str]:
    """Put a checkpoint's weights and moving statistics into a network, all or none.

    Noise modules may be missing from the file as a whole (they start fresh) or from the network. In files of other
    programs a prefix that all names share is removed, and copies of the weights and optimizer state are ignored.

    Args:
        network: any Cell.
        file: a path, or what `read` returned.
        new_classes: the last linear layer keeps its own values if the file has none for it, or for another number of
            classes.

    Returns:
        Messages for the user about what was changed or ignored; usually none.

    Raises:
        UserError: names the parameters that are missing, unknown, not finite, or of another shape or type; or as
            `read` does.
    """
    checkpoint = file if isinstance(file, Checkpoint) else read(file)
    wanted = {parameter.name: parameter for parameter in network.get_parameters()}
    head = _last_layer(network) if new_classes else []
    found, notes = _names_of(network, checkpoint, [name for name in wanted if name not in head])
    if head and _has_other_classes(head, wanted, found):
        notes.append(_starts_fresh(head, wanted, found, checkpoint))
        for name in head:
            found.pop(name, None)
            wanted.pop(name)
    fresh_noise = not any(_NOISE.search(name) and name in wanted for name in found)
    missing = [name for name in wanted if name not in found and not (fresh_noise and _NOISE.search(name))]
    ignored_noise = not any(_NOISE.search(name) for name in wanted)
    unknown = [name for name in found if name not in wanted and not (ignored_noise and _NOISE.search(name))]
    pairs = {name: (found[name], wanted[name]) for name in wanted if name in found}
    shapes = [
        f"{name} {value.shape} (the network has {tuple(parameter.shape)})"
        for name, (value, parameter) in pairs.items()
        if value.shape != tuple(parameter.shape)
    ]
    types = [
        f"{name} {value.dtype} (the network has {str(parameter.dtype).lower()})"
        for name, (value, parameter) in pairs.items()
        if value.dtype.kind != _kind(parameter)
    ]
    infinite = [name for name, (value, parameter) in pairs.items() if not _is_finite(value, parameter)]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", shapes),
            ("of another type", types),
            ("with values that are not finite (NaN or infinity)", infinite),
        )
        if names
    ]
    if problems:
        raise UserError(f"the checkpoint {checkpoint.path} does not fit this network; parameters {'; '.join(problems)}")
    for value, parameter in pairs.values():
        _set(parameter, value)
    return notes


def _kind(parameter: Parameter) -> str:
    """numpy's letter for the kind of its type: "f", "i"; bfloat16 is "f", which numpy does not have."""
    return "f" if parameter.dtype.is_floating_point else np.dtype(ms.dtype_to_nptype(parameter.dtype)).kind


def _is_finite(value: np.ndarray, parameter: Parameter) -> bool:
    """Whether all values are finite, also in the parameter's type: 1e300 is infinite as float32."""
    if value.dtype.kind != "f":
        return True
    dtype = np.float32 if parameter.dtype == ms.bfloat16 else ms.dtype_to_nptype(parameter.dtype)  # the same range
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(value.astype(dtype, copy=False)).all())


def _set(parameter: Parameter, value: np.ndarray) -> None:
    parameter.set_data(ms.Tensor(value.copy(), parameter.dtype))


def _names_of(network: nn.Cell, checkpoint: Checkpoint, required: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the file's arrays by the network's names, and a sentence about what was removed and ignored.

    If no required name is in the file as it is, remove a common prefix: the one that matches most required names; of
    these one that does not look like a copy's, since a whole copy has as many names as the weights; of these the
    shortest. Ignore entries whose names are a prefix and the network's names for at least half of its trainable
    parameters (moments, averages), and scalars and tables without a dot in the name (counters, learning rates).
    """
    arrays = {_slope_name(name): value for name, value in checkpoint.parameters.items()}
    if checkpoint.format is not None:
        return arrays, []
    required = [name for name in required if not _NOISE.search(name)]
    prefix = ""
    if not any(name in arrays for name in required):
        prefixes = Counter(
            other.removesuffix(name) for other in arrays for name in required if other.endswith(f".{name}")
        )
        prefix = min(
            prefixes,
            key=lambda prefix: (-prefixes[prefix], _COPY.search(prefix) is not None, len(prefix)),
            default="",
        )
    known = {parameter.name for parameter in network.get_parameters()}
    found = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    others = {name: value for name, value in arrays.items() if not name.startswith(prefix)}
    others |= {name: found.pop(name) for name in list(found) if name not in known}
    trained = {parameter.name for parameter in network.trainable_params() if not _NOISE.search(parameter.name)}
    enough = (len(trained) + 1) // 2
    trained |= {prefix + name for name in trained}
    copies = Counter(
        other[: -len(name)] for other in others for name in trained if other.endswith((f".{name}", f"_{name}"))
    )
    ignored = {
        name
        for name, value in others.items()
        if name.endswith((OPTIMIZER, EXTRA))
        or ("." not in name and value.ndim <= 1)
        or name.startswith(tuple(start for start in copies if copies[start] >= enough))
    }
    found |= {name: value for name, value in others.items() if name not in ignored}
    notes = []
    if prefix:
        notes.append(f"the prefix {prefix!r} was removed from its parameters' names")
    if ignored:
        starts = dict.fromkeys(name.split(".")[0] for name in sorted(ignored))
        notes.append(f"{len(ignored)} entries (optimizer state or copies) were ignored: {_some(list(starts))}")
    return found, [f"{checkpoint.path}: {', and '.join(notes)}"] if notes else []


def _last_layer(network: nn.Cell) -> list[str]:
    """Names of the parameters of the network's last linear layer."""
    layers = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.Dense)]
    return [parameter.name for parameter in layers[-1].get_parameters()] if layers else []


def _has_other_classes(head: list[str], wanted: dict[str, Parameter], found: dict[str, np.ndarray]) -> bool:
    """Whether the file has no last layer, or one that differs in the number of its outputs only."""
    if not any(name in found for name in head):
        return True
    return all(
        name in found
        and found[name].ndim == wanted[name].ndim
        and found[name].shape[0] != wanted[name].shape[0]
        and found[name].shape[1:] == tuple(wanted[name].shape)[1:]
        for name in head
    )


def _starts_fresh(
    head: list[str], wanted: dict[str, Parameter], found: dict[str, np.ndarray], checkpoint: Checkpoint
) -> str:
    classes = wanted[head[0]].shape[0]
    has = f"has it for {found[head[0]].shape[0]} classes" if head[0] in found else "does not have it"
    return f"the last layer ({', '.join(head)}) starts fresh for {classes} classes: {checkpoint.path} {has}"


def load_optimizer(optimizer: nn.Cell, checkpoint: Checkpoint) -> None:
    """Restore the optimizer's state, its step counter included, from one of our own checkpoints.

    Raises:
        UserError: the file lacks a value, or has one of another shape or type, or one that is not finite.
    """
    pairs = []
    for parameter in optimizer_state(optimizer):
        value = checkpoint.optimizer.get(parameter.name)
        if value is None or value.shape != tuple(parameter.shape) or value.dtype.kind != _kind(parameter):
            raise UserError(
                f"{checkpoint.path} cannot be resumed with this optimizer: it holds no {parameter.name} of "
                f"shape {tuple(parameter.shape)}; use --init_checkpoint to take only its weights"
            )
        if not _is_finite(value, parameter):
            raise UserError(
                f"{checkpoint.path} cannot be resumed: the optimizer's {parameter.name} is not finite (NaN or "
                "infinity); use --init_checkpoint to take only its weights"
            )
        pairs.append((parameter, value))
    for parameter, value in pairs:
        _set(parameter, value)


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
    """Return the checkpoint to continue from: last.ckpt, or if it is missing or damaged, the intact one of the latest
    epoch; and a sentence about each one that was ignored.

    Raises:
        UserError: there is none, or none that is intact, or a file may be intact but cannot be read.
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
        raise UserError(f"{path} holds only weights, use --init_checkpoint to start from them")
    return checkpoint
