"""Size, normalisation and class names of each data set, as plain data for training and deployment alike."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from .errors import UserError

MAX_STORED_SIZE = 10_000  # pixels; more in a file is damage


@dataclass(frozen=True)
class Preprocessing:
    """An image becomes a network's input as (pixel / 255 - mean) / std per channel, RGB, laid out N, C, H, W.

    Images of any size are scaled so that their shorter side has `shorter_side` pixels, and the size x size centre is
    taken. `shorter_side` None: images are square, and scaled to `size` if they have another one. `classes` is empty if
    folder names define them.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    shorter_side: int | None = None
    layout: str = "NCHW"
    color: str = "RGB"

    def with_size(self, size: int) -> "Preprocessing":
        """The same for another image size; `shorter_side` grows or shrinks in proportion."""
        shorter_side = self.shorter_side and round(size * self.shorter_side / self.size)
        return replace(self, size=size, shorter_side=shorter_side)

    def normalise(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return (pixel / 255 - mean) / std as float32, of uint8 (..., 3, H, W); written to `out` if it is given."""
        out = np.divide(pixels, np.float32(255), out=out, dtype=np.float32)
        out -= np.array(self.mean, np.float32)[:, None, None]
        out /= np.array(self.std, np.float32)[:, None, None]
        return out

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The inverse of `json.dumps(preprocessing.to_dict())`, for a text from anywhere.

        Raises:
            ValueError: names the first field that is missing, unknown, or of another type or range.
        """
        try:
            found = TypeAdapter(cls).validate_json(text, strict=True)
            unknown = TypeAdapter(dict).validate_json(text).keys() - cls.__dataclass_fields__
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
        allowed = {
            "size": 1 <= found.size <= MAX_STORED_SIZE,
            "mean": all(math.isfinite(value) for value in found.mean),
            "std": all(math.isfinite(value) and value > 0 for value in found.std),
            "classes": all(name.strip() for name in found.classes),
            "shorter_side": found.shorter_side is None or found.size <= found.shorter_side <= MAX_STORED_SIZE,
            "layout": found.layout == cls.layout,
            "color": found.color == cls.color,
        }
        wrong = [*sorted(unknown), *(name for name, right in allowed.items() if not right)]
        if wrong:
            raise ValueError(f"{wrong[0]}: not an allowed field or value")
        return found


CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""

_FOLDER = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (), shorter_side=256)

PREPROCESSING = {
    # The release normalises CIFAR-10 with these numbers, which are ImageNet's.
    "cifar10": Preprocessing(
        32,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Preprocessing(
        32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), tuple(CIFAR100_CLASSES.split())
    ),  # mean and deviation of its training pixels
    "digits": Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tuple("0123456789")),
    "imagenet": _FOLDER,
    "folder": _FOLDER,  # any image folder
}


def find_preprocessing(name: str, size: int | None = None) -> Preprocessing:
    """Preprocessing of the named data set, for images of `size` (None: the data set's own). `classes` is empty if
    folder names define them.

    Raises:
        UserError: there is no such data set.
    """
    if name not in PREPROCESSING:
        raise UserError(f"unknown data set {name!r}; allowed are {', '.join(PREPROCESSING)}")
    found = PREPROCESSING[name]
    return found.with_size(size) if size else found
