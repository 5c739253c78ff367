"""Crop and flip of images in memory: the law of the draws, and what they may depend on."""

import numpy as np
import pytest

from src.data.arrays import ArrayImages, crop_and_flip
from src.data.source import Epoch
from src.preprocessing import PREPROCESSING

IMAGES = 162 * 100
VARIANTS = 9 * 9 * 2


def seen_variants(epoch: Epoch) -> np.ndarray:
    """The variant (dy, dx, flip), as one number, that each of many images became: read from its pixels.

    All images are the same one; its 162 variants differ."""
    image = np.random.default_rng(0).integers(1, 256, (1, 3, 32, 32), dtype=np.uint8)
    images = ArrayImages(np.broadcast_to(image, (IMAGES, 3, 32, 32)), np.zeros(IMAGES), PREPROCESSING["cifar10"], 4)
    dy, dx, flip = (values.ravel() for values in np.indices((9, 9, 2)))
    # The corner after the crop and its mirror image tell the variants apart.
    every = crop_and_flip(np.broadcast_to(image, (VARIANTS, 3, 32, 32)), 4, dy, dx, flip)
    keys = {middle(variant): number for number, variant in enumerate(PREPROCESSING["cifar10"].normalise(every))}
    assert len(keys) == VARIANTS
    found: list[int] = []
    for start in range(0, IMAGES, 1620):
        pixels, broken = images.read(np.arange(start, start + 1620), epoch)
        assert not broken
        found += [keys[middle(pixel)] for pixel in pixels]
    return np.array(found)


def middle(image: np.ndarray) -> bytes:
    return image[0, 14:18, 14:18].tobytes()


@pytest.fixture(scope="module")
def variants() -> np.ndarray:
    return np.stack([seen_variants(Epoch(seed, number)) for seed, number in ((0, 0), (0, 1), (1, 0))])


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_all_variants_appear_equally_often(variants):
    """Chi-square with 161 degrees of freedom: mean 161, deviation 18; above 251 once in 100,000."""
    for epoch in variants:
        counts = np.bincount(epoch, minlength=VARIANTS)
        assert counts.min() > 0
        assert chi_square(counts) < 251


def test_shifts_and_flip_are_independent(variants):
    """Correlations of 48,600 draws have a deviation of 0.0045; flip and dy had -0.86 in MindSpore's transforms."""
    dy, dx, flip = np.unravel_index(variants.ravel(), (9, 9, 2))
    correlations = np.corrcoef([dy, dx, flip])[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.02
    for shift in (dy, dx):  # beyond correlation: 9 x 2 cells, chi-square with 17 degrees of freedom
        assert chi_square(np.bincount(2 * shift + flip, minlength=18)) < 55
    assert chi_square(np.bincount(9 * dy + dx, minlength=81)) < 152


def test_images_are_drawn_independently(variants):
    """The draws of different images, and of one image in the next epoch or with another seed."""
    for first, second in ((variants[0], variants[1]), (variants[0], variants[2]), (variants[0][1:], variants[0][:-1])):
        assert abs((first == second).mean() - 1 / VARIANTS) < 0.004
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_the_law_is_violated_by_a_flip_that_hangs_on_the_crop():
    """The coupling of MindSpore's transforms: these tests would see it."""
    generator = np.random.default_rng(0)
    draw = generator.random(IMAGES)
    dy, dx, flip = (draw * 9).astype(int), generator.integers(0, 9, IMAGES), (draw < 0.5).astype(int)
    counts = np.bincount(np.ravel_multi_index((dy, dx, flip), (9, 9, 2)), minlength=VARIANTS)
    assert (counts == 0).sum() == 72 and chi_square(counts) > 10_000


def test_a_crop_is_a_window_of_the_padded_image():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    dy, dx, flip = np.random.default_rng(1).integers(0, (9, 9, 2), (200, 3)).T
    padded = np.pad(pixels, ((0, 0), (0, 0), (4, 4), (4, 4)))
    for image, source, y, x, mirrored in zip(crop_and_flip(pixels, 4, dy, dx, flip), padded, dy, dx, flip, strict=True):
        window = source[:, y : y + 32, x : x + 32]
        np.testing.assert_array_equal(image, window[..., ::-1] if mirrored else window)


def test_a_draw_does_not_depend_on_the_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    images = ArrayImages(pixels, np.zeros(50), PREPROCESSING["cifar10"], 4)
    together, _ = images.read(np.arange(50), Epoch(5, 2))
    for index in (49, 7, 0):
        np.testing.assert_array_equal(images.read(np.array([index]), Epoch(5, 2))[0][0], together[index])


def test_images_of_another_size_are_scaled():
    pixels = np.full((2, 3, 32, 32), 51, np.uint8)
    images = ArrayImages(pixels, np.zeros(2), PREPROCESSING["digits"].with_size(48))
    found, _ = images.read(np.arange(2))
    assert found.shape == (2, 3, 48, 48)
    np.testing.assert_allclose(found, (0.2 - 0.5) / 0.5, atol=1e-6)
