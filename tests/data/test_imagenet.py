"""Pictures in ImageNet's layout: pixels against PIL, broken ones, folders that are not as they must be."""

import shutil

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.data import imagenet, open_dataset
from src.errors import UserError
from tests.helpers.images import write_tree

MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
STD = np.array([0.229, 0.224, 0.225])[:, None, None]


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory):
    """Read only: 13 training pictures and 9 test pictures of 4 classes; a grey one and one of four channels too."""
    root = write_tree(tmp_path_factory.mktemp("imagenet"), train=13, test=9)
    generator = np.random.default_rng(1)
    Image.fromarray(generator.integers(0, 256, (300, 400), dtype=np.uint8)).save(root / "val/class0/grey.JPEG")
    cmyk = Image.fromarray(generator.integers(0, 256, (260, 230, 4), dtype=np.uint8), mode="CMYK")
    cmyk.save(root / "val/class3/cmyk.JPEG")
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path, train=12, test=8)


def dataset(path, **options):
    return open_dataset("imagenet", path=str(path), **{"batch_size": 4, **options})


def break_picture(file, how: str = "truncated") -> None:
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no picture"}[how])


def expected_pixels(file, shorter_side: int = 256, size: int = 224) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    width, height = image.size
    if width < height:
        image = image.resize((shorter_side, shorter_side * height // width), Image.BILINEAR)
    else:
        image = image.resize((shorter_side * width // height, shorter_side), Image.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def identities(data, epoch: int = 0, **bounds) -> list[bytes]:
    return [image.tobytes() for images, _ in data.train(epoch, **bounds) for image in images.asnumpy()]


@pytest.mark.parametrize(("image_size", "shorter_side"), [(None, 256), (112, 128)])
def test_test_images_are_those_that_pil_makes_of_them(shared_tree, image_size, shorter_side):
    batches = list(dataset(shared_tree, image_size=image_size, workers=2).test())
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    images = np.concatenate([images.asnumpy() for images, _ in batches])
    labels = np.concatenate([labels.asnumpy() for _, labels in batches])
    files = sorted((shared_tree / "val").glob("*/*"))
    assert labels.tolist() == [int(file.parent.name[-1]) for file in files]
    for image, file in zip(images, files, strict=True):
        pixels = expected_pixels(file, shorter_side, image_size or 224)
        np.testing.assert_allclose(image, (pixels / 255 - MEAN) / STD, atol=1e-5)


def test_classes_are_the_folders_names(shared_tree):
    data = dataset(shared_tree)
    assert data.preprocessing.classes == ("class0", "class1", "class2", "class3")
    assert (data.num_classes, data.preprocessing.size, data.preprocessing.shorter_side) == (4, 224, 256)
    assert dataset(shared_tree, splits=("test",)).num_classes == 4


def test_training_crops_at_random_by_seed_and_epoch(shared_tree):
    data = dataset(shared_tree, workers=2)
    assert data.train_steps() == 3
    images, labels = next(iter(data.train(0)))
    assert images.shape == (4, 3, 224, 224) and labels.dtype == ms.int32
    first = identities(data)
    assert len(first) == len(set(first)) == 12
    assert identities(data) == first
    assert identities(data, skip=1) == first[4:]
    assert identities(data, skip=1, stop=2) == first[4:8]
    assert len(set(identities(data, 1)) & set(first)) < 4
    assert data.replaced == 0


def test_without_augmentation_training_sees_the_centre(shared_tree):
    data = dataset(shared_tree, augment=False, batch_size=13)
    files = sorted((shared_tree / "train").glob("*/*"))
    images = np.concatenate([images.asnumpy() for images, _ in data.train(0)])
    wanted = np.stack([(expected_pixels(file) / 255 - MEAN) / STD for file in files])
    distance = np.abs(images[:, None, :, ::50, ::50] - wanted[None, :, :, ::50, ::50]).max((2, 3, 4))
    assert distance.min(1).max() < 1e-5 and sorted(distance.argmin(1)) == list(range(13))


def test_shards_are_disjoint(shared_tree):
    seen = [
        identity
        for rank in (0, 1)
        for identity in identities(dataset(shared_tree, rank=rank, size=2, batch_size=3, augment=False))
    ]
    assert len(seen) == len(set(seen)) == 12


@pytest.fixture
def broken_tree(tmp_path):
    """40 training pictures, five of them broken; none is merely truncated, of which a crop may still be there."""
    root = write_tree(tmp_path, train=40, test=4, size=(40, 30))
    for number, how in ((1, "text"), (6, "empty"), (18, "text"), (19, "text"), (33, "empty")):
        break_picture(root / f"train/class{number % 4}/{number:04d}.JPEG", how)
    return root


def passed(data, broken=frozenset({1, 6, 18, 19, 33})) -> int:
    """How many of the broken pictures stand before the last good one that the epoch gave."""
    numbers = [int(path[-9:-5]) for path in data.source.pictures(data.root, ("train",))]
    order = [numbers[index] for index in data.requested]
    last = max(order.index(numbers[index]) for index in data.delivered)
    return sum(number in broken for number in order[:last])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 13], ids=["no remainder", "a remainder of one"])
def test_broken_training_pictures_are_replaced_and_counted(broken_tree, workers, batch_size):
    """With a remainder the replacements may be among what is dropped."""
    data = dataset(broken_tree, workers=workers, batch_size=batch_size)
    for epoch in range(5):
        course = [(images.asnumpy().tobytes(), labels.asnumpy().tolist()) for images, labels in data.train(epoch)]
        assert len(course) == data.train_steps() == 40 // batch_size
        assert data.replaced == (5 if batch_size == 4 else passed(data)) and data.replaced >= 4
        again = [(images.asnumpy().tobytes(), labels.asnumpy().tolist()) for images, labels in data.train(epoch)]
        assert again == course
        count = data.replaced
        list(data.test())
        assert data.replaced == count


def test_broken_pictures_of_a_part_of_an_epoch_are_those_that_were_passed(broken_tree):
    """And a resumed part counts what the first part had passed too."""
    data = dataset(broken_tree, batch_size=4)
    counts = []
    for stop in range(1, 11):
        list(data.train(0, stop=stop))
        counts.append(data.replaced)
        assert counts[-1] == (passed(data) if stop < 10 else 5)
        list(data.train(0, skip=stop - 1, stop=stop))
        assert data.replaced == counts[-1]
    assert counts[0] <= 2


def test_a_picture_that_cannot_be_read_any_more_is_replaced(tree, monkeypatch):
    data = dataset(tree)
    read = imagenet.read_bytes
    monkeypatch.setattr(imagenet, "read_bytes", lambda path: read(path if "0003" not in path else f"{path}.gone"))
    assert sum(len(labels) for _, labels in data.train(0)) == 12
    assert data.replaced == 1


def test_hidden_files_folders_and_links_to_nothing_are_no_pictures(tree):
    (tree / "train/class0/._0000.JPEG").write_bytes(b"of a Mac")
    (tree / "train/class0/folder.jpg").mkdir()
    (tree / "train/class0/gone.jpg").symlink_to("nowhere")
    data = dataset(tree)
    assert data.check() == 20
    assert sum(len(labels) for _, labels in data.train(0)) == 12


def test_a_broken_test_picture_is_named(tree):
    break_picture(tree / "val/class1/0005.JPEG")
    with pytest.raises(UserError, match="1 of 8 pictures cannot be decoded, first .*val/class1/0005.JPEG.*truncated"):
        list(dataset(tree).test())


def test_a_broken_test_picture_is_an_error_after_training_too(tree):
    data = dataset(tree)
    list(data.train(0))
    break_picture(tree / "val/class1/0005.JPEG", "empty")
    with pytest.raises(UserError, match="val/class1/0005.JPEG"):
        list(data.test())


def test_check_finds_every_broken_picture(tree):
    data = dataset(tree)
    assert data.check() == 20
    for number, how in ((0, "truncated"), (4, "empty"), (8, "text")):
        break_picture(tree / f"train/class0/{number:04d}.JPEG", how)
    with pytest.raises(UserError, match="3 of 20.*class0/0000.JPEG .*, then .*0004.JPEG.*0008.JPEG: fetch") as refusal:
        data.check()
    assert "\n" not in str(refusal.value)


def empty_class(tree) -> None:
    for file in (tree / "train/class2").iterdir():
        file.unlink()
    (tree / "train/class2/readme.txt").write_text("none")


def without(folder: str):
    return lambda tree: shutil.rmtree(tree / folder)


def flat(tree) -> None:
    for folder in sorted((tree / "val").iterdir()):
        for file in folder.iterdir():
            file.rename(tree / "val" / f"{folder.name}_{file.name}")
        folder.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("val"), "val is no folder; give --data_path the folder that holds train and val"),
        (without("train"), "train is no folder; give --data_path"),
        (empty_class, "class folder .*train/class2 is empty: no file in it ends in .jpeg, .jpg, .png"),
        (without("val/class1"), "the classes of .*train and .*val differ: class1 is in one alone"),
        (flat, "val holds no class folders: pictures are expected in .*val/CLASS/"),
    ],
    ids=["no val", "no train", "empty class", "another class", "flat"],
)
def test_a_wrong_tree_is_named_before_anything_is_read(tree, change, message):
    change(tree)
    with pytest.raises(UserError, match=message) as refusal:
        dataset(tree)
    assert "\n" not in str(refusal.value)


def test_imagenet_is_not_downloaded(tree):
    with pytest.raises(UserError, match="cannot be downloaded without its licence"):
        dataset(tree, download=True)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_pipeline_for_a_device_gives_the_batches_of_training_but_no_count(tree, skip):
    break_picture(sorted((tree / "train").glob("*/*"))[0])
    data = dataset(tree, augment=False)
    expected = [images.asnumpy() for images, _ in data.train(0, skip, 3)]
    assert data.replaced == 1
    rows = list(data.train_pipeline(0, skip, 3).create_tuple_iterator(num_epochs=1))
    assert [len(row) for row in rows] == [2] * (3 - skip)
    for (images, _), wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(images.asnumpy(), wanted)
    assert data.replaced is None
