"""A model file together with the preparation of its images: from pixels to logits and probabilities.

This module imports neither MindSpore nor a runtime; `load_model` imports the one that the file needs.
"""

import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import runtime
from ..errors import UserError
from ..image_files import centre
from ..preprocessing import Preprocessing
from ..pretrained import CHECKPOINT_SUFFIXES, resolve_model
from . import description
from .description import Description
from .exported_model import ExportedModel, in_batches
from .formats import FORMATS

MAX_MESSAGE = 300  # characters of a runtime's message


class Model:
    """A model file in its runtime, and what its images and outputs mean.

    Attributes:
        path: the file.
        preprocessing: how an image becomes an input.
        classes: names of the outputs; "0", "1", ... if they have none.
        description: all that is known about an exported file; None for a checkpoint.
    """

    def __init__(
        self,
        path: Path,
        model: ExportedModel,
        preprocessing: Preprocessing,
        num_classes: int,
        described: Description | None = None,
    ):
        self.path = path
        self.preprocessing = preprocessing
        named = preprocessing.classes
        self.classes = (*named, *(str(number) for number in range(len(named), num_classes)))
        self.description = described
        self._model = model

    @property
    def batch_size(self) -> int | None:
        """Images per call if the file fixes it; `logits` takes any number all the same."""
        return self.description and self.description.input.batch_size

    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """An RGB image, or its pixels uint8 (height, width, 3), as an input, float32 (3, size, size).

        It is scaled and cropped as in the evaluation of image folders: see `image_files.centre`.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UserError(
                    f"an image of {image.dtype} {image.shape} was given, but pixels are uint8 (height, width, 3)"
                )
            image = Image.fromarray(image)
        return self.preprocessing.normalise(centre(image, self.preprocessing).transpose(2, 0, 1))

    def logits(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Logits, float32 (N, K).

        Args:
            images: uint8 (N, height, width, 3), or a list of uint8 (height, width, 3) of any sizes, which are prepared;
                or a prepared batch, float32 (N, 3, size, size).

        Raises:
            UserError: the images have another type or shape, or the runtime fails.
        """
        if not (isinstance(images, np.ndarray) and images.dtype == np.float32):
            images = np.stack([self.prepare(image) for image in images]) if len(images) else np.empty(0)
        size = self.preprocessing.size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
            raise UserError(
                f"a batch of shape {images.shape} was given, but {self.path} takes (N, 3, {size}, {size}), N at least 1"
            )
        found = _in_a_sentence(
            lambda: in_batches(self._model.logits, images, self.batch_size or len(images)), f"{self.path} cannot be run"
        )
        if found.shape != (len(images), len(self.classes)):
            raise UserError(
                f"{self.path} gives logits {found.shape}, but its description names {len(self.classes)} classes: "
                "export it again"
            )
        if not np.isfinite(found).all():
            raise UserError(f"{self.path} gives logits that are not finite (NaN or infinity): train or export it again")
        return found

    def probabilities(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Softmax of the logits, float64 (N, K). `images` are those of `logits`."""
        logits = self.logits(images).astype(np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)


def load_model(file: str | Path, device_target: str = "CPU", num_classes: int | None = None) -> Model:
    """Load a model file into its runtime: a checkpoint or what export.py writes, told by the suffix.

    Args:
        file: path of the file, or `pretrained:NAME`. Next to an exported one lies its JSON, which says how images are
            prepared.
        device_target: CPU, GPU or Ascend, for those that MindSpore runs.
        num_classes: of a checkpoint that does not hold it.

    Raises:
        UserError: the file is missing, damaged, of an unknown kind or not the described one.
    """
    path = resolve_model(file)
    suffix = path.suffix
    _require_file(path)
    if suffix in CHECKPOINT_SUFFIXES:
        runtime.prepare_environment()
        from . import checkpoint

        return Model(path, *checkpoint.load(path, device_target, num_classes))
    names = _formats_of(suffix, path)
    described = description.read(path)
    name = described.format
    if name not in names:
        raise UserError(f"{description.path_of(path)} describes a model of the format {name}, not {' or '.join(names)}")
    if FORMATS[name].needs_mindspore:
        runtime.prepare_environment()
        runtime.start(device_target)
    options = {"device": device_target.lower()} if FORMATS[name].takes_device else {}
    model = _in_a_sentence(lambda: FORMATS[name].load(path, **options), f"{path} cannot be read as {name}")
    return Model(path, model, described.image_preprocessing, described.output.classes, described)


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"the model {path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read the model {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"the model {path} is a folder: give a file, such as a .ckpt, .onnx or .xml")
    if not stat.S_ISREG(mode):
        raise UserError(f"the model {path} is not a file")


def _formats_of(suffix: str, path: Path) -> list[str]:
    """The names of the formats whose files have this suffix and can be read here."""
    found = [name for name, one in FORMATS.items() if suffix in (one.suffix, one.other_suffix)]
    readable = [name for name in found if FORMATS[name].device is None]
    if readable:
        return readable
    if found:
        raise UserError(f"no runtime here reads {found[0]} files: give an ONNX or OpenVINO file, or a checkpoint")
    for one in FORMATS.values():
        if one.weights_suffix == suffix:
            raise UserError(f"{path} holds the weights of a model: give {path.with_suffix(one.suffix)}")
    known = ", ".join([*CHECKPOINT_SUFFIXES, *(one.suffix for one in FORMATS.values() if one.device is None)])
    raise UserError(f"{path} is not a model by its name, which ends in {suffix or 'nothing'}: known are {known}")


def _in_a_sentence(function: Callable, what: str):
    """Call `function`; a runtime's exceptions, whose messages have many lines, become one sentence."""
    try:
        return function()
    except (UserError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(line for line in lines if line and not line.startswith("Exception from "))
        raise UserError(f"{what}: {reason[:MAX_MESSAGE] or type(error).__name__}") from error
