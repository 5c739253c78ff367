"""What a data set provides: the place of its files, and the images of each split. `Dataset` makes batches of them.

A new data set is a `Source` in a file of its own and a line in `SOURCES` of dataset.py. Its `open` returns
`ArrayImages` (arrays.py) if all images fit into memory, or `FileImages` (folder.py) if each has a file. Its size, mean,
deviation and classes are a line of `PREPROCESSING`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..preprocessing import Preprocessing


class Epoch(NamedTuple):
    """What order and augmentation depend on, besides the image's number."""

    seed: int
    number: int

    def generator(self, purpose: str, image: int = 0) -> np.random.Generator:
        """Return a generator of random numbers for one purpose ("order" or "augmentation") of this epoch."""
        return np.random.default_rng([self.seed, self.number, ("order", "augmentation").index(purpose), image])


class Images(ABC):
    """The images of one split, numbered from 0.

    Attributes:
        labels: int32 (N,).
        classes: names of the classes, by label.
        paths: the file of each image; empty if a file holds many images, which `Source.open` then verified.
        folders: where `paths` are; if the time of one changes, images were added or removed.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    paths: Sequence[str] = ()
    folders: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self) -> str | None:
        """The SHA-256 of all pixels and labels, in hexadecimal; None if each image has a file."""
        return None

    @abstractmethod
    def read(self, indices: np.ndarray, augment: Epoch | None = None) -> tuple[np.ndarray, dict[int, str]]:
        """Return some images, normalised.

        Args:
            indices: the images' numbers, int (B,).
            augment: the epoch of training whose random transforms are applied; they depend on seed, epoch and the
                image's number only. None: the fixed transforms of evaluation.

        Returns:
            float32 (B, 3, size, size), and by position in it the reason for each image that cannot be decoded.
        """


class Source(ABC):
    """A data set with the splits "train" and "test".

    Attributes:
        preprocessing: how its images become a network's input, at their usual size.
    """

    preprocessing: Preprocessing

    @abstractmethod
    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        """Return the folder at or under `path` that holds the splits; UserError names what is missing there."""

    @abstractmethod
    def open(self, root: str, split: str, preprocessing: Preprocessing, threads: int) -> Images:
        """Return the images of a split in the folder that `find` returned.

        Args:
            preprocessing: the one to apply; its size may differ from the usual one.
            threads: number of threads that read, if each image has a file.

        Raises:
            UserError: names a file that is truncated or damaged, or a folder without images.
        """
