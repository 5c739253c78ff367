"""The embedded digits: a fixed split and the right values."""

import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from src.data import digits, open_dataset


def test_split_is_1437_and_360_and_fixed():
    for split, count in (("train", 1437), ("test", 360)):
        images, labels = digits.arrays(split)
        assert images.shape == (count, 3, 32, 32)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        again, labels_again = digits.arrays(split)
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)


def test_the_splits_together_are_the_whole_set_once():
    """Distinct images are as many as in the set itself; so are their counts."""
    images = np.concatenate([digits.arrays(split)[0] for split in ("train", "test")])[:, 0, ::4, ::4]
    originals = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in originals)


def test_the_classes_are_in_proportion():
    for split in ("train", "test"):
        _, labels = digits.arrays(split)
        shares = np.bincount(labels, minlength=10) / len(labels)
        np.testing.assert_allclose(shares, np.bincount(load_digits().target) / 1797, atol=0.003)


def test_batches_span_minus_1_to_1_on_every_channel():
    data = open_dataset("digits", batch_size=100)
    batches = [(images.asnumpy(), labels.asnumpy()) for images, labels in data.test()]
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    images = np.concatenate([images for images, _ in batches])
    expected, labels = digits.arrays("test")
    np.testing.assert_allclose(images, (expected / 255 - 0.5) / 0.5, atol=1e-6)
    assert (images.min(), images.max()) == (-1, 1)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), labels)


def test_training_batches_are_shuffled_by_seed_and_epoch():
    def labels(seed: int, epoch: int, skip: int = 0) -> np.ndarray:
        data = open_dataset("digits", batch_size=32, seed=seed)
        return np.concatenate([batch.asnumpy() for _, batch in data.train(epoch, skip)])

    assert open_dataset("digits", batch_size=32).train_steps() == 44
    np.testing.assert_array_equal(labels(0, 0), labels(0, 0))
    assert (labels(0, 0) != labels(0, 1)).any()
    assert (labels(0, 0) != labels(1, 0)).any()
    np.testing.assert_array_equal(labels(0, 0, skip=40), labels(0, 0)[40 * 32 :])


@pytest.mark.parametrize("size", [2, 3])
def test_shards_are_disjoint(size):
    """Over the steps of an epoch. 1,437 images are 3 whole shards; with 2 one image is left over."""
    seen = []
    for rank in range(size):
        shard = open_dataset("digits", batch_size=1, rank=rank, size=size, seed=1)
        seen += [images.asnumpy().tobytes() for images, _ in itertools.islice(shard.train(0), shard.train_steps())]
    assert len(seen) == len(set(seen)) == 1437 - 1437 % size


@pytest.mark.parametrize("skip", [0, 2])
def test_the_pipeline_for_a_device_gives_the_batches_of_training(skip):
    data = open_dataset("digits", batch_size=32)
    pipeline = data.train_pipeline(3, skip, 5)
    assert pipeline.get_dataset_size() == 5 - skip
    batches = pipeline.create_tuple_iterator(num_epochs=1)
    for got, expected in zip(batches, data.train(3, skip, 5), strict=True):
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())
