"""CIFAR-100 batches from generated files of the official format: the fine label counts."""

import numpy as np
import pytest

from src.data import open_dataset
from src.data.cifar import CIFAR100
from src.errors import UserError

MEAN = np.array([0.5071, 0.4865, 0.4409])[:, None, None]
STD = np.array([0.2673, 0.2564, 0.2762])[:, None, None]
RECORD = 3074  # coarse label, fine label, pixels
TRAIN, TEST = 1000, 500  # the official files have 50,000 and 10,000


@pytest.fixture(scope="module", autouse=True)
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR100, "records", {"train": TRAIN, "test": TEST})
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the files, and the records of the test file."""
    root = tmp_path_factory.mktemp("cifar100")
    folder = root / "cifar-100-binary"
    folder.mkdir()
    test = np.random.default_rng(0).integers(0, 256, (TEST, RECORD), dtype=np.uint8)
    test[:, 0], test[:, 1] = np.arange(TEST) % 20, np.arange(TEST) % 100
    test.tofile(folder / "test.bin")
    train = np.random.default_rng(1).integers(0, 256, (TRAIN, RECORD), dtype=np.uint8)
    train[:, 1] = train[:, 2] = np.arange(TRAIN) % 100  # the first red pixel holds the label too
    train.tofile(folder / "train.bin")
    return root, test


def dataset(root, **options):
    return open_dataset("cifar100", path=str(root), **{"batch_size": 100, **options})


def test_test_images_have_their_fine_labels(written):
    root, records = written
    data = dataset(root, splits=("test",))
    images, labels = next(iter(data.test()))
    np.testing.assert_array_equal(labels.asnumpy(), records[:100, 1])
    pixels = records[:100, 2:].reshape(100, 3, 32, 32)
    np.testing.assert_allclose(images.asnumpy(), (pixels / 255 - MEAN) / STD, atol=1e-5)
    assert (data.num_classes, data.preprocessing.classes[0], data.preprocessing.classes[-1]) == (100, "apple", "worm")


def test_training_images_keep_their_labels_when_shuffled(written):
    data = dataset(written[0], augment=False)
    assert data.train_steps() == 10
    images, labels = next(iter(data.train(0)))
    red = np.rint((images.asnumpy()[:, 0, 0, 0] * STD[0, 0, 0] + MEAN[0, 0, 0]) * 255)
    np.testing.assert_array_equal(red, labels.asnumpy())
    assert len(set(labels.asnumpy().tolist())) > 30


def test_training_images_are_cropped_and_flipped_by_seed_and_epoch(written):
    def images(epoch: int, **options) -> list[bytes]:
        data = dataset(written[0], **options)
        return [image.tobytes() for batch, _ in data.train(epoch, stop=2) for image in batch.asnumpy()]

    first = images(0)
    assert images(0, num_parallel_workers=2) == first
    assert len(set(first) & set(images(0, augment=False))) < 20 and len(set(first) & set(images(1))) < 20


def test_augmented_images_of_a_step_are_those_of_one_worker_with_the_same_global_batch(written):
    def steps(size: int) -> list[list[bytes]]:
        parts = [dataset(written[0], batch_size=12 // size, rank=rank, size=size, seed=1) for rank in range(size)]
        batches = zip(*(part.train(3, stop=4) for part in parts), strict=True)
        return [sorted(image.tobytes() for images, _ in step for image in images.asnumpy()) for step in batches]

    assert len(steps(1)) == 4 and steps(2) == steps(1)


def test_a_wrong_label_or_size_is_named(written, tmp_path):
    records = written[1]
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    damaged = records.copy()
    damaged[3, 1] = 100
    damaged.tofile(folder / "test.bin")
    with pytest.raises(UserError, match="test.bin is damaged: record 3 has label 100, but labels are 0 to 99"):
        dataset(tmp_path, splits=("test",))
    records[:-1].tofile(folder / "test.bin")
    with pytest.raises(UserError, match="test.bin is truncated or not a CIFAR-100 file.*must have 1537000"):
        dataset(tmp_path, splits=("test",))
    with pytest.raises(UserError, match="CIFAR-100 is not complete at .*: train.bin not found.*cifar-100-binary"):
        dataset(tmp_path)
