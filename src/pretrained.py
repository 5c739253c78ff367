"""The trained weights that come with this project: pretrained/manifest.yaml and the files next to it.

A name with the prefix `pretrained:` stands for one of them wherever a checkpoint is wanted. Nothing is downloaded.
Imports no MindSpore.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import read_yaml
from .errors import UserError

PREFIX = "pretrained:"
MANIFEST = "manifest.yaml"
# In the repository, or in the installed package.
FOLDERS = (Path(__file__).resolve().parents[1] / "pretrained", Path(__file__).resolve().parent / "pretrained")
FILE_NAME = r"^[\w.-]+$"


class Entry(BaseModel):
    """A line of the manifest; its name there is `network`_`dataset`.

    Attributes:
        file: weights with their config, as safetensors; `sha256` is its checksum.
        openvino: the same network as an OpenVINO file, which describes itself; None: there is none.
        config: the recipe.
        accuracy: top-1 on the test set, in [0, 1]; `command` prints it.
        licence: of the weights.
        default: whether `pretrained=True` means this entry for its network.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    network: str
    dataset: str
    file: str = Field(pattern=FILE_NAME)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    openvino: str | None = Field(default=None, pattern=FILE_NAME)
    config: str
    accuracy: float = Field(ge=0, le=1)
    command: str
    licence: str
    default: bool = False


def read_manifest(folder: Path | None = None) -> dict[str, Entry]:
    """The entries by name.

    Args:
        folder: None: the project's own.

    Raises:
        UserError: the manifest is missing or wrong.
    """
    path = (folder or own_folder()) / MANIFEST
    entries = {}
    for name, values in read_yaml(path).items():
        try:
            entry = entries[name] = Entry.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, (name, *problem["loc"])))
            raise UserError(f"{path} is not a manifest: {where}: {problem['msg']}") from error
        if name != f"{entry.network}_{entry.dataset}":
            raise UserError(f"{path} is not a manifest: {name} must be called {entry.network}_{entry.dataset}")
    for network in {entry.network for entry in entries.values()}:
        defaults = [name for name, entry in entries.items() if entry.network == network and entry.default]
        if len(defaults) > 1:
            raise UserError(f"{path} is not a manifest: {' and '.join(defaults)} are both the default of {network}")
    return entries


def own_folder() -> Path:
    """The folder of the weights. UserError: this installation has none."""
    for folder in FOLDERS:
        if (folder / MANIFEST).is_file():
            return folder
    raise UserError(f"there are no pretrained weights here: no {MANIFEST} in {' or '.join(map(str, FOLDERS))}")


def find(name: str, folder: Path | None = None) -> tuple[str, Entry]:
    """The entry of that name, or the default entry of the network of that name; with its name.

    Raises:
        UserError: there is none; the sentence lists those that exist.
    """
    entries = read_manifest(folder)
    if name in entries:
        return name, entries[name]
    own = [other for other, entry in entries.items() if entry.network == name]
    for other in own:
        if entries[other].default:
            return other, entries[other]
    if own:
        raise UserError(f"no weights are the default of {name}: give a name, {' or '.join(own)}")
    raise UserError(f"there are no pretrained weights {name!r}: there are {', '.join(entries) or 'none'}")


def weights(name: str, folder: Path | None = None) -> Path:
    """The path of the weights called `name`, whose checksum is right. UserError: there are none, or they are others."""
    name, entry = find(name, folder)
    path = (folder or own_folder()) / entry.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the pretrained weights {path}: {error.strerror}") from error
    if found != entry.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is {found}, but {MANIFEST} has {entry.sha256}; check it out again"
        )
    return path


def resolve(text: str | Path) -> Path:
    """The path that `text` names: `pretrained:NAME` stands for the path of those weights."""
    return weights(str(text).removeprefix(PREFIX)) if str(text).startswith(PREFIX) else Path(text)


def resolve_model(text: str | Path) -> Path:
    """As `resolve`, but the OpenVINO file of the weights if there is one."""
    if not str(text).startswith(PREFIX):
        return Path(text)
    name, entry = find(str(text).removeprefix(PREFIX))
    return own_folder() / entry.openvino if entry.openvino else weights(name)
