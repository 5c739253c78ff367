"""scikit-learn's 1,797 handwritten digits (8x8, UCI's optical recognition test set), each pixel repeated to 32x32 RGB.

The data come with scikit-learn, so anybody can see the method learn in minutes without a download. The split is fixed:
360 test images, the classes in proportion, and the rest for training. There is no augmentation: a shifted or mirrored
digit of 8x8 easily looks like another one.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..preprocessing import PREPROCESSING, Preprocessing
from .arrays import ArrayImages
from .source import Source

TEST_IMAGES = 360


class Digits(Source):
    """`digits`."""

    preprocessing = PREPROCESSING["digits"]

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        """Nothing to find: the set is in the package."""
        return ""

    def open(self, root: str, split: str, preprocessing: Preprocessing, threads: int) -> ArrayImages:
        return ArrayImages(*arrays(split), preprocessing)


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (pixels uint8 (N, 3, 32, 32), labels (N,)) of "train" or "test"."""
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, digits.target, test_size=TEST_IMAGES, random_state=0, stratify=digits.target
    )
    return (train_pixels, train_labels) if split == "train" else (test_pixels, test_labels)
