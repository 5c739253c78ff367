"""Write checkpoint files entry by entry: in today's format, in format 0, foreign, and damaged in seeded ways."""

import itertools
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train.checkpoint_pb2 import Checkpoint

from src import checkpoints

TYPES = ("Int8", "UInt8", "Int16", "Int32", "Int64", "Float16", "Float32", "Float64", "Bool", "BFloat16", "str", "Int4")
DIMENSIONS = (-1, 0, 1, 2, 7, 2**31, 2**62, -(2**63))
NO_VALUES = (None, [], [[1]], {"x": [1]}, "", "x", -1, 1e999, True, 10**400)


@dataclass(frozen=True)
class Entry:
    """One entry of the protocol buffer."""

    name: str
    kind: str
    dims: tuple[int, ...]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-32-le", "replace")


def text_entry(name: str, text: str) -> Entry:
    return Entry(name, "str", (0,), text.encode("utf-32-le"))


def parse(content: bytes) -> list[Entry]:
    """The entries of a file, whether or not it ends in a checksum."""
    message = Checkpoint()
    message.ParseFromString(content[:-17] if content[-17:-10] == b"crc_num" else content)
    return [
        Entry(value.tag, value.tensor.tensor_type, tuple(value.tensor.dims), value.tensor.tensor_content)
        for value in message.value
    ]


def serialize(entries: list[Entry], checksum: bool = True) -> bytes:
    """The file, as MindSpore writes it."""
    message = Checkpoint()
    for entry in entries:
        value = message.value.add()
        value.tag = entry.name
        value.tensor.tensor_type = entry.kind
        value.tensor.dims.extend(entry.dims)
        value.tensor.tensor_content = entry.content
    content = message.SerializeToString()
    return content + b"crc_num" + zlib.crc32(content).to_bytes(10, "big") if checksum else content


def write_foreign(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Only parameters, as MindSpore's own save_checkpoint writes them."""
    ms.save_checkpoint([{"name": name, "data": Tensor(value)} for name, value in arrays.items()], str(path))
    return path


def write_format_0(
    path: Path,
    network: nn.Cell,
    optimizer: nn.Cell,
    config: dict[str, Any],
    preprocessing: dict[str, Any],
    state: dict[str, Any],
    extra: dict[str, np.ndarray],
) -> Path:
    """A file as this project wrote it before formats had a number, with `config` and `state` in the old names.

    The network's parameters, then the optimizer's as `optimizer.NAME`, then `state.NAME`, then three texts of JSON.
    """
    entries = [{"name": parameter.name, "data": parameter} for parameter in network.get_parameters()]
    entries += [
        {"name": f"optimizer.{parameter.name}", "data": parameter}
        for parameter in checkpoints.optimizer_state(optimizer)
    ]
    entries += [{"name": f"state.{name}", "data": Tensor(value)} for name, value in extra.items()]
    texts = {"config": config, "preprocessing": preprocessing, "state": state}
    ms.save_checkpoint(
        entries, str(path), crc_check=True, append_dict={name: json.dumps(value) for name, value in texts.items()}
    )
    return path


def with_new_hash(entries: list[Entry]) -> list[Entry]:
    """The entries with a `contents` that fits them, as only someone who knows the format would write it."""
    texts = {entry.name: entry.text for entry in entries if entry.kind == "str" and entry.name != "contents"}
    shapes = [(entry.name, entry.kind, entry.dims) for entry in entries if entry.kind != "str"]
    value = checkpoints.contents_hash(texts, shapes)
    return [text_entry("contents", value) if entry.name == "contents" else entry for entry in entries]


def mutants(content: bytes, seed: int, count: int) -> Iterator[tuple[str, bool, bytes]]:
    """Damaged forms of a file: what was done, whether the hash in `contents` was made to fit, and the bytes.

    Most have another structure and a checksum that fits, or none; some have bytes changed, cut or added.
    """
    yield from itertools.islice(_endless_mutants(content, random.Random(seed)), count)


def _endless_mutants(content: bytes, chance: random.Random) -> Iterator[tuple[str, bool, bytes]]:
    entries = parse(content)
    while True:
        kind = chance.choice((*_OF_ENTRIES, *_OF_ENTRIES, *_OF_BYTES))
        if kind in _OF_BYTES:
            yield kind, False, _OF_BYTES[kind](content, chance)
            continue
        try:
            changed = _OF_ENTRIES[kind](list(entries), chance)
        except (ValueError, UnicodeError, OverflowError):  # no such thing to change, or protobuf cannot write it
            continue
        rehashed = chance.random() < 0.3
        if rehashed:
            changed = with_new_hash(changed)
        yield kind, rehashed, serialize(changed, checksum=chance.random() < 0.8)


def _at(entries: list[Entry], chance: random.Random, text: bool | None = None) -> int:
    places = [number for number, entry in enumerate(entries) if text is None or (entry.kind == "str") == text]
    if not places:
        raise ValueError
    return chance.choice(places)


def _dims(entries, chance):
    place = _at(entries, chance)
    dims = list(entries[place].dims)
    change = chance.randrange(5)
    if change == 0 or not dims:
        dims.insert(chance.randrange(len(dims) + 1), chance.choice(DIMENSIONS))
    elif change == 1:
        dims.pop(chance.randrange(len(dims)))
    elif change == 2:
        dims[chance.randrange(len(dims))] = chance.choice(DIMENSIONS)
    elif change == 3:
        dims[chance.randrange(len(dims))] += chance.choice((-1, 1))
    else:
        dims = [1] * chance.choice((9, 33, 400)) + dims
    entries[place] = replace(entries[place], dims=tuple(dims))
    return entries


def _type(entries, chance):
    place = _at(entries, chance)
    other = [kind for kind in (*TYPES, "", "float32") if kind != entries[place].kind]
    entries[place] = replace(entries[place], kind=chance.choice(other))
    return entries


def _length(entries, chance):
    place = _at(entries, chance)
    content = entries[place].content
    size = chance.choice(
        (0, 1, len(content) // 2, len(content) - 1, len(content) + 1, 2 * len(content), 10 * len(content))
    )
    entries[place] = replace(entries[place], content=(content * 10 + b"\0")[:size])
    return entries


def _drop(entries, chance):
    entries.pop(_at(entries, chance))
    return entries


def _drop_rest(entries, chance):
    return entries[: chance.randrange(1, len(entries))]


def _repeat(entries, chance):
    place = _at(entries, chance)
    entries.insert(chance.choice((place, chance.randrange(len(entries)))), entries[place])
    return entries


def _rename(entries, chance):
    place = _at(entries, chance)
    name = chance.choice(("", "x", "x.y", "ä", entries[place].name + "2", chance.choice(entries).name))
    entries[place] = replace(entries[place], name=name)
    return entries


def _move(entries, chance):
    entries.insert(chance.randrange(len(entries)), entries.pop(_at(entries, chance)))
    return entries


def _slice(entries, chance):
    """In two slices, as MindSpore writes large tensors; the file stays good."""
    place = _at(entries, chance, text=False)
    entry, cut = entries[place], chance.randrange(len(entries[place].content) + 1)
    entries[place : place + 1] = [
        replace(entry, content=entry.content[:cut]),
        replace(entry, content=entry.content[cut:]),
    ]
    return entries


def _field(entries, chance):
    """Another value, or none, somewhere in a text of JSON."""
    place = _at(entries, chance, text=True)
    value = json.loads(entries[place].text)
    holder = inner = value
    while isinstance(inner, (dict, list)) and inner and (inner is value or chance.random() < 0.8):
        holder, key = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        inner = inner[key]
    if holder is inner:
        value = chance.choice(NO_VALUES)
    elif chance.random() < 0.3:
        holder.pop(key)
    elif isinstance(holder, dict) and chance.random() < 0.2:
        holder["x"] = chance.choice(NO_VALUES)
    else:
        holder[key] = chance.choice(NO_VALUES)
    entries[place] = text_entry(entries[place].name, json.dumps(value))
    return entries


def _text(entries, chance):
    place = _at(entries, chance, text=True)
    text = chance.choice(
        ("", "x", "{}", "[]", "null", "NaN", "2", "0", "99" * 5000, "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900)
    )
    entries[place] = text_entry(entries[place].name, text)
    return entries


_OF_ENTRIES = {
    "dimensions": _dims,
    "type": _type,
    "length": _length,
    "drop": _drop,
    "cut between entries": _drop_rest,
    "repeat": _repeat,
    "rename": _rename,
    "move": _move,
    "slice": _slice,
    "field of a text": _field,
    "text": _text,
}


def _flip(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _noise(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) - 17)
    body = content[:place] + chance.randbytes(chance.randrange(1, 40)) + content[place + chance.randrange(40) : -17]
    return body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big")


_OF_BYTES = {
    "flip": _flip,
    "cut": lambda content, chance: content[: chance.randrange(len(content))],
    "longer": lambda content, chance: content + chance.randbytes(chance.randrange(1, 30)),
    "structure of bytes": _noise,
}
