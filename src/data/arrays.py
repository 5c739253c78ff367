"""Images that are all in memory: batches of them are cropped, flipped and normalised by numpy."""

import hashlib
from functools import lru_cache

import numpy as np
from PIL import Image

from ..preprocessing import Preprocessing
from .source import Epoch, Images


class ArrayImages(Images):
    """Images of one size, in memory.

    Args:
        pixels: uint8 (N, 3, H, W).
        labels: (N,).
        preprocessing: scales images to its size if they have another one, and normalises them.
        crop_padding: number of black pixels added on each side before the random crop of H x W. Augmentation also
            flips every second image on average horizontally. None: images are not augmented.
    """

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing, crop_padding: int | None = None
    ):
        self.pixels = pixels
        self.labels = labels.astype(np.int32)
        self.classes = preprocessing.classes
        self.preprocessing = preprocessing
        self.crop_padding = crop_padding

    def checksum(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()

    def read(self, indices: np.ndarray, augment: Epoch | None = None) -> tuple[np.ndarray, dict[int, str]]:
        pixels = self.pixels[indices]
        if augment and self.crop_padding is not None:
            draws = _draws(len(self), 2 * self.crop_padding + 1, augment)[indices]
            pixels = crop_and_flip(pixels, self.crop_padding, *draws.T)
        return self.preprocessing.normalise(_resized(pixels, self.preprocessing.size)), {}


@lru_cache(maxsize=2)
def _draws(images: int, offsets: int, epoch: Epoch) -> np.ndarray:
    """Draw rows (dy, dx, flip) of int64 for all images of an epoch: dy and dx in 0 .. offsets - 1, flip 0 or 1.

    Drawn for all images at once, so that a row does not depend on how the images are divided among batches, workers
    and threads.
    """
    return epoch.generator("augmentation").integers(0, (offsets, offsets, 2), (images, 3))


def crop_and_flip(pixels: np.ndarray, padding: int, dy: np.ndarray, dx: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Cut a window of H x W at (dy, dx) out of each image after zero padding, and mirror it where `flip` is not 0.

    Args:
        pixels: (B, 3, H, W); dy, dx in 0 .. 2 padding, flip: (B,).
    """
    padded = np.pad(pixels, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, pixels.shape[2:], axis=(2, 3))
    cropped = windows[np.arange(len(pixels)), :, dy, dx]
    mirrored = flip.astype(bool)
    cropped[mirrored] = cropped[mirrored][..., ::-1]
    return cropped


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    if pixels.shape[2:] == (size, size):
        return pixels
    scaled = [Image.fromarray(image).resize((size, size), Image.BILINEAR) for image in pixels.transpose(0, 2, 3, 1)]
    return np.stack([np.asarray(image) for image in scaled]).transpose(0, 3, 1, 2)
