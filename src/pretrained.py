"""The trained weights that come with this project: pretrained/manifest.yaml and the files next to it.

A name with the prefix `pretrained:` stands for one of them wherever a checkpoint is wanted. Nothing is downloaded.
Imports no MindSpore.
"""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import read_yaml
from .errors import UserError

PREFIX = "pretrained:"
MANIFEST = "manifest.yaml"
CHECKPOINT_SUFFIXES = (".ckpt", ".safetensors")  # of files with weights that MindSpore runs
# In the repository, or in the installed package.
FOLDERS = (Path(__file__).resolve().parents[1] / "pretrained", Path(__file__).resolve().parent / "pretrained")
FILE_NAME = r"^[\w.-]+$"
# Share of the test images that may be called otherwise elsewhere: another processor or runtime rounds differently, and
# a sign may flip.
ALLOWED = 5e-4


class Entry(BaseModel):
    """A line of the manifest; its name there is `network`_`dataset`, with _fp32 if it is not binary.

    Attributes:
        binary: false: the full-precision baseline.
        file: weights with their config, as safetensors.
        openvino: the same network as an OpenVINO file; None: there is none.
        sha256: checksum of each file by name: of `file`, and of all files of the OpenVINO model.
        config: the recipe.
        accuracy: top-1 on the test set, in [0, 1]; `command` prints it.
        licence: of the weights.
        default: whether `pretrained=True` means this entry for its network, binary or in full precision.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    network: str
    dataset: str
    binary: bool = True
    file: str = Field(pattern=FILE_NAME)
    openvino: str | None = Field(default=None, pattern=FILE_NAME)
    sha256: dict[Annotated[str, Field(pattern=FILE_NAME)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    config: str
    accuracy: float = Field(ge=0, le=1)
    command: str
    licence: str
    default: bool = False

    @property
    def kind(self) -> str:
        """The network and its precision, for messages and to tell defaults apart."""
        return self.network if self.binary else f"{self.network} in full precision"


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
        wanted = {entry.file, *(_openvino_files(entry.openvino) if entry.openvino else ())}
        if entry.sha256.keys() != wanted:
            raise UserError(f"{path} is not a manifest: {name}.sha256 must name {', '.join(sorted(wanted))}")
        own_name = f"{entry.network}_{entry.dataset}" + ("" if entry.binary else "_fp32")
        if name != own_name:
            raise UserError(f"{path} is not a manifest: {name} must be called {own_name}")
    for kind in {entry.kind for entry in entries.values()}:
        defaults = [name for name, entry in entries.items() if entry.kind == kind and entry.default]
        if len(defaults) > 1:
            raise UserError(f"{path} is not a manifest: {' and '.join(defaults)} are both the default of {kind}")
    return entries


def own_folder() -> Path:
    """The folder of the weights. UserError: this installation has none."""
    for folder in FOLDERS:
        if (folder / MANIFEST).is_file():
            return folder
    raise UserError(f"there are no pretrained weights here: no {MANIFEST} in {' or '.join(map(str, FOLDERS))}")


def find(name: str, folder: Path | None = None, binary: bool = True) -> tuple[str, Entry]:
    """The entry of that name, or the default entry of the network of that name; with its name.

    Args:
        binary: which of a network's two defaults.

    Raises:
        UserError: there is none; the sentence lists those that exist.
    """
    entries = read_manifest(folder)
    if name in entries:
        return name, entries[name]
    own = {other: entry for other, entry in entries.items() if entry.network == name}
    alike = {other: entry for other, entry in own.items() if entry.binary == binary}
    for other, entry in alike.items():
        if entry.default:
            return other, entry
    if alike:
        kind = next(iter(alike.values())).kind
        raise UserError(f"no weights are the default of {kind}: give a name, {' or '.join(alike)}")
    wanted = f"{name!r}" + (f" {'with binary layers' if binary else 'in full precision'}" if own else "")
    raise UserError(f"there are no pretrained weights {wanted}: there are {', '.join(entries) or 'none'}")


def weights(name: str, folder: Path | None = None, binary: bool = True) -> Path:
    """The path of the weights called `name`, whose checksum is right. UserError: there are none, or they are others."""
    entry = find(name, folder, binary)[1]
    return _verified(entry, [entry.file], folder)


def resolve(text: str | Path) -> Path:
    """The path that `text` names: `pretrained:NAME` stands for the path of those weights, and with a network's name for
    its binary default."""
    return weights(str(text).removeprefix(PREFIX)) if str(text).startswith(PREFIX) else Path(text)


def resolve_model(text: str | Path) -> Path:
    """As `resolve`, but the OpenVINO file of the weights if there is one."""
    if not str(text).startswith(PREFIX):
        return Path(text)
    entry = find(str(text).removeprefix(PREFIX))[1]
    return _verified(entry, _openvino_files(entry.openvino) if entry.openvino else [entry.file])


def _openvino_files(name: str) -> list[str]:
    return [name, f"{name.removesuffix('.xml')}.bin", f"{name}.json"]


def _verified(entry: Entry, names: list[str], folder: Path | None = None) -> Path:
    """The path of the first of the entry's files, after all have been compared with their checksums."""
    folder = folder or own_folder()
    for name in names:
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the pretrained {folder / name}: {error.strerror}") from error
        if found != entry.sha256[name]:
            raise UserError(
                f"{folder / name} is damaged: its SHA-256 is {found}, but {MANIFEST} has {entry.sha256[name]}; check "
                "it out again"
            )
    return folder / names[0]
