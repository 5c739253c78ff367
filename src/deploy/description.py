"""What the user of an exported model must know, in a JSON file next to it. Imports no MindSpore."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError
from ..files import write_text
from ..preprocessing import Preprocessing
from .formats import FORMATS

MAX_BYTES = 10_000_000  # of a JSON file; the longest class names do not need more
MAX_BATCH = 1024  # images per call; an exported file is tried with one such batch
MAX_CLASSES = 100_000  # as in create_model


class Part(BaseModel):
    """A part of the JSON. A value that its reader does not implement is refused, as is an unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Input(Part):
    """The batch that a model takes, float32 (N, C, height, width); `batch_size` None: any N."""

    name: Literal["images"] = "images"
    dtype: Literal["float32"] = "float32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"  # of the batch; `shape` is (C, height, width) in either case
    batch_size: int | None = Field(ge=1, le=MAX_BATCH)
    shape: tuple[int, int, int] = Field(strict=False)  # (C, height, width)


class Output(Part):
    """Logits (N, classes)."""

    name: Literal["logits"] = "logits"
    dtype: Literal["float32"] = "float32"
    classes: int = Field(ge=1, le=MAX_CLASSES)


class Resize(Part):
    """How an image becomes height x width: scaled until its shorter side has `shorter_side` pixels, then its centre."""

    filter: Literal["Pillow bilinear"] = "Pillow bilinear"
    shorter_side: int = Field(ge=1)
    crop: Literal["centre"] = "centre"


class Description(Part):
    """All about an exported model.

    Attributes:
        format: a name in `FORMATS`.
        network: name of the network.
        binary: False: the full-precision baseline.
        dataset: name of the data set that it was trained on.
        resize, divisor, preprocessing: how an image becomes an input: resized, divided, (value - mean) / std.
        sha256: of each file, by suffix, so that files can be renamed together.
        versions: of the packages that wrote it.
    """

    version: Literal[1] = 1  # of this layout
    format: str
    network: str
    binary: bool
    dataset: str
    input: Input
    output: Output
    resize: Resize
    divisor: Literal[255] = 255
    preprocessing: dict[str, Any]
    sha256: dict[Annotated[str, Field(pattern=r"^\.[a-z]+$")], str]
    versions: dict[str, str]

    def write(self, model: Path) -> None:
        """Write the JSON file of the model at the path."""
        write_text(path_of(model), self.model_dump_json(indent=2) + "\n")

    @property
    def image_preprocessing(self) -> Preprocessing:
        """Size, mean, standard deviation and class names. ValueError: a field is wrong."""
        return Preprocessing.from_json(json.dumps(self.preprocessing))


def path_of(model: Path) -> Path:
    """The JSON file of a model file."""
    return model.with_name(f"{model.name}.json")


def read(model: Path) -> Description:
    """Read the description of the model file, and check that its files are the described ones.

    Raises:
        UserError: the JSON is missing or wrong, or a file is missing or another one.
    """
    path = path_of(model)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        found = Description.model_validate_json(content)
        preprocessing = found.image_preprocessing
        if found.input.shape != (3, preprocessing.size, preprocessing.size):
            raise ValueError(f"input.shape: {found.input.shape}, but images are {preprocessing.size} pixels wide")
        if found.resize.shorter_side != (preprocessing.shorter_side or preprocessing.size):
            raise ValueError(
                f"resize.shorter_side: {found.resize.shorter_side}, but preprocessing has {preprocessing.shorter_side}"
            )
        if preprocessing.classes and len(preprocessing.classes) > found.output.classes:
            raise ValueError(f"output.classes: {found.output.classes}, but {len(preprocessing.classes)} are named")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: export.py writes it next to a model, and it says how images are prepared; copy it to "
            f"{model}, or export the model again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise UserError(f"{path} does not describe a model: {where}{problem['msg']}; export it again") from error
    except ValueError as error:
        raise UserError(f"{path} does not describe a model: {error}; export it again") from error
    if found.format not in FORMATS:
        raise UserError(f"{path} does not describe a model: format: {found.format} is unknown; export it again")
    wanted = {file.suffix for file in FORMATS[found.format].files(model)}
    if found.sha256.keys() != wanted:
        raise UserError(
            f"{path} does not describe this model: it has a SHA-256 for {', '.join(found.sha256) or 'no file'}, but "
            f"{found.format} has {', '.join(sorted(wanted))}"
        )
    for suffix, expected in found.sha256.items():
        file = model.with_suffix(suffix)
        if sha256(file) != expected:
            raise UserError(f"{file} is not the file that {path} describes (SHA-256): copy all files of one export")
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. UserError: it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {path}: it is not a file")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
