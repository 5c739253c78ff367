"""scikit-learn's 1,797 handwritten digits (8x8, UCI's optical recognition test set), each pixel repeated to 32x32 RGB.

It comes with the package, so that anybody sees the method learn in minutes without a download. A fixed split: 360 test
images, the classes in proportion, the rest for training. Without augmentation: a shifted or mirrored digit of 8x8 is
easily another.
"""

import numpy as np
from mindspore.dataset import NumpySlicesDataset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..preprocessing import PREPROCESSING
from .source import Source

TEST_IMAGES = 360


class Digits(Source):
    """`digits`."""

    preprocessing = PREPROCESSING["digits"]

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        """Nothing to find: the set is in the package."""
        return ""

    def open(self, folder: str, split: str, shuffle: bool, shards: int, shard: int, workers: int):
        images, labels = arrays(split)
        return NumpySlicesDataset(
            (images, labels), ["image", "label"], shuffle=shuffle, num_shards=shards, shard_id=shard
        )


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, 32, 32, 3), labels int32 (N,)) of "train" or "test"."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(images[..., None], 3, axis=3)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target.astype(np.int32), test_size=TEST_IMAGES, random_state=0, stratify=digits.target
    )
    return (train_images, train_labels) if split == "train" else (test_images, test_labels)
