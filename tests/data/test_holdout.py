"""Held-out training images: kept out of training, the same in every run, seen as evaluation sees images."""

import numpy as np
import pytest

from src.data import open_dataset
from src.data.digits import arrays
from src.errors import UserError
from tests.helpers.images import write_tree


def digits(**options):
    return open_dataset("digits", **{"batch_size": 50, **options})


def images_of(batches) -> list[bytes]:
    return [image.tobytes() for images, _ in batches for image in images.asnumpy()]


def test_held_out_images_are_not_trained_on_and_nothing_is_lost():
    data = digits(holdout=137, batch_size=100)
    held_out, trained = images_of(data.validation()), images_of(data.train(0))
    assert (len(held_out), len(trained)) == (137, 1300) == (data.validation_images(), data.train_images())
    assert data.train_steps() == 13 and data.validation_batches() == 2
    assert not set(held_out) & set(trained)
    assert sorted(held_out + trained) == sorted(images_of(digits(batch_size=1).train(0)))
    assert len(images_of(data.test())) == 360


def test_they_are_the_same_for_any_seed_worker_and_thread():
    expected = images_of(digits(holdout=100).validation())
    assert images_of(digits(holdout=100, seed=9, num_parallel_workers=2).validation()) == expected
    parts = [digits(holdout=100, seed=3, rank=rank, size=3) for rank in range(3)]
    assert sum((images_of(part.validation()) for part in parts), []) == expected
    assert set(expected) < set(images_of(digits(holdout=300).validation()))


def test_they_have_their_labels_and_the_transforms_of_evaluation(tmp_path):
    pixels, labels = arrays("train")
    data = digits(holdout=64)
    found = np.concatenate([label.asnumpy() for _, label in data.validation()])
    np.testing.assert_array_equal(found, labels[data.held_out])
    images = next(data.validation())[0].asnumpy()
    np.testing.assert_allclose(images, (pixels[data.held_out[:50]] / 255 - 0.5) / 0.5, atol=1e-6)
    tree = write_tree(tmp_path, train=12, test=4)
    folder = open_dataset("folder", path=str(tree), holdout=5, batch_size=3, image_size=32)
    assert images_of(folder.validation()) == images_of(folder.validation())
    assert len(images_of(folder.validation())) == 5 and folder.train_images() == 7


def test_no_holdout_is_no_image():
    assert list(digits().validation()) == [] and digits().validation_batches() == 0


@pytest.mark.parametrize("holdout", [1437, 5000])
def test_a_holdout_that_leaves_nothing_is_refused(holdout):
    with pytest.raises(
        UserError, match=f"data.holdout is {holdout}, but digits has 1437 training images: at most 1436"
    ):
        digits(holdout=holdout)


def test_a_holdout_that_leaves_no_batch_is_refused():
    with pytest.raises(UserError, match="batch_size is 50, but a worker has only 37 training images"):
        digits(holdout=1400).train_steps()


def test_held_out_image_files_are_checked_with_the_test_images(tmp_path):
    tree = write_tree(tmp_path, train=12, test=4, size=(40, 30))
    data = open_dataset("folder", path=str(tree), holdout=5, image_size=32)
    assert data.check(("test",)) == 4 + 5 and data.check() == 16
    with open(data.images["train"].paths[data.held_out[0]], "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match="1 of 9 images cannot be decoded"):
        data.check(("test",))


def test_the_order_of_the_images_has_a_checksum(tmp_path):
    found = digits().checksum
    assert found == digits(holdout=100, seed=3, rank=1, size=2).checksum and len(found) == 16
    data = digits()
    train = data.images["train"]
    train.pixels, train.labels = train.pixels[::-1], train.labels[::-1]
    assert data.checksum != found
    tree = write_tree(tmp_path, train=12, test=4)
    assert open_dataset("folder", path=str(tree), batch_size=3, image_size=32).checksum is None
