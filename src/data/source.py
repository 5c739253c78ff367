"""What a data set has to say for itself: `Dataset` makes batches of any `Source`."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from mindspore.dataset import vision

from ..preprocessing import Preprocessing


class Source:
    """A data set of images with a "train" and a "test" split.

    Attributes:
        preprocessing (Preprocessing): how its pixels become a network's input.
        indexed (bool): whether its rows carry a third column, the image's index in the split, and come from a source
            that keeps the indices as they are `requested`: then images that were replaced can be counted.
    """

    preprocessing: Preprocessing
    indexed = False

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        """The folder at or under `path` that holds the splits; UserError names what is missing or damaged there."""
        raise NotImplementedError

    def open(self, folder: str, split: str, shuffle: bool, shards: int, shard: int, workers: int):
        """A MindSpore dataset of a split's rows (image, label[, index]), or of one of `shards` disjoint parts of it."""
        raise NotImplementedError

    def classes(self, folder: str, split: str) -> tuple[str, ...]:
        """Their names, by label; every split that `find` looked at has the same."""
        return self.preprocessing.classes

    def augmentation(self) -> list:
        """Random transforms from a row's image to uint8 (H, W, C)."""
        return []

    def plain(self, size: int) -> list:
        """Transforms from a row's image to uint8 (size, size, C) without chance, as evaluation has them."""
        return [] if size == self.preprocessing.size else [vision.Resize((size, size))]

    def pictures(self, folder: str, splits: tuple[str, ...]) -> Iterable[str]:
        """The files that hold one picture each, which `broken_picture` can look at; none where `find` verified all."""
        return ()

    def files(self, folder: str, splits: tuple[str, ...]) -> Iterable[str]:
        """The files, or the folders of files, whose size and time tell whether the set has changed."""
        return ()

    def described(self, folder: str, split: str) -> Preprocessing:
        """`preprocessing` with the classes of this folder."""
        return replace(self.preprocessing, classes=self.classes(folder, split))


def broken_picture(path: str) -> str | None:
    """Why a picture cannot be decoded; None if it can."""
    try:
        vision.Decode(to_pil=True)(np.fromfile(path, np.uint8))
    except (OSError, ValueError, SyntaxError, RuntimeError) as error:  # PIL and MindSpore raise all of these
        return str(error).strip().split("\n")[0].split(" <")[0] or type(error).__name__
    return None
