"""Image folders: pixels against PIL, broken images, folders that are not as they must be."""

import os
import shutil

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.data import open_dataset
from src.data.folder import Buffers
from src.errors import UserError
from tests.helpers.images import write_tree

MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
STD = np.array([0.229, 0.224, 0.225])[:, None, None]


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory):
    """Read only: 13 training images and 9 test images of 4 classes; a grey one and one of four channels too."""
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


def damage(file, how: str = "truncated") -> None:
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no image"}[how])


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
    batches = list(dataset(shared_tree, image_size=image_size, num_parallel_workers=2).test())
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
    data = dataset(shared_tree, num_parallel_workers=2)
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


@pytest.mark.parametrize(("size", "threads"), [(1, 2), (2, 1), (3, 2)])
def test_augmented_images_of_a_step_do_not_depend_on_threads_or_workers(shared_tree, size, threads):
    def steps(size: int, threads: int) -> list[list[bytes]]:
        parts = [
            dataset(shared_tree, batch_size=6 // size, num_parallel_workers=threads, rank=rank, size=size, seed=5)
            for rank in range(size)
        ]
        batches = zip(*(part.train(1) for part in parts), strict=True)
        return [sorted(image.tobytes() for images, _ in step for image in images.asnumpy()) for step in batches]

    assert steps(size, threads) == steps(1, 1)


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


BROKEN = {1, 6, 18, 19, 33}


@pytest.fixture
def broken_tree(tmp_path):
    """40 training images, five of them broken."""
    root = write_tree(tmp_path, train=40, test=4, size=(40, 30))
    for number, how in ((1, "text"), (6, "empty"), (18, "truncated"), (19, "text"), (33, "empty")):
        damage(root / f"train/class{number % 4}/{number:04d}.JPEG", how)
    return root


def test_broken_training_images_are_replaced_and_counted(broken_tree):
    data = dataset(broken_tree, num_parallel_workers=2, image_size=32)
    for epoch in range(3):
        course = [(images.asnumpy().tobytes(), labels.asnumpy().tolist()) for images, labels in data.train(epoch)]
        assert len(course) == data.train_steps() == 10
        assert data.replaced == 5
        again = dataset(broken_tree, image_size=32).train(epoch)
        assert [(images.asnumpy().tobytes(), labels.asnumpy().tolist()) for images, labels in again] == course
        list(data.test())
        assert data.replaced == 5


def test_a_replacement_is_the_next_image_of_the_order_with_its_label(broken_tree):
    data = dataset(broken_tree, image_size=32, batch_size=40, augment=False)
    images, labels = next(iter(data.train(0)))
    order = np.random.default_rng([0, 0, 0, 0]).permutation(40)
    numbers = [int(path[-9:-5]) for path in data.images["train"].paths]
    place = next(place for place in range(39) if numbers[order[place]] in BROKEN)
    following = next(index for index in order[place:] if numbers[index] not in BROKEN)
    assert labels.asnumpy()[place] == data.images["train"].labels[following]
    wanted, _ = data.images["train"].read(np.array([following]))
    np.testing.assert_array_equal(images.asnumpy()[place], wanted[0])


def test_broken_images_of_parts_of_an_epoch_add_up(broken_tree):
    data = dataset(broken_tree, image_size=32)
    counts = []
    for step in range(10):
        list(data.train(0, skip=step, stop=step + 1))
        counts.append(data.replaced)
    assert sum(counts) == 5
    batches = data.train(0)
    for step in range(1, 11):
        next(batches)
        assert data.replaced == sum(counts[:step])


def test_training_on_images_none_of_which_can_be_decoded_names_one(tree):
    for file in (tree / "train").glob("*/*"):
        damage(file, "text")
    with pytest.raises(UserError, match=r"train/class\d/00\d\d.JPEG cannot be decoded .*; --check_data finds"):
        list(dataset(tree).train(0))


def test_a_file_that_cannot_be_read_any_more_is_replaced(tree, monkeypatch):
    data = dataset(tree)
    (tree / "train/class3/0003.JPEG").write_bytes(b"")
    assert sum(len(labels) for _, labels in data.train(0)) == 12
    assert data.replaced == 1


def test_what_is_not_read_is_counted_in_one_warning(tree, capsys):
    shutil.copy(tree / "train/class0/0000.JPEG", tree / "train/outside.jpg")
    (tree / "train/class0/._0000.JPEG").write_bytes(b"of a Mac")
    (tree / "train/class0/deeper.jpg").mkdir()
    (tree / "train/class0/gone.jpg").symlink_to("nowhere")
    (tree / "train/class1/gone.jpg").symlink_to("nowhere")
    (tree / "train/class1/notes.txt").write_text("notes")
    os.mkfifo(tree / "train/class2/pipe.jpg")
    shutil.copy(tree / "train/class2/0002.JPEG", tree / "train/class3/.x.jpg")
    (tree / "train/class3/.DS_Store").write_bytes(b"of a Mac")
    data = dataset(tree)
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"warning: left out in {tree}/train: ") and "\n" not in said
    for part in (
        f"1 files or links outside class folders (first {tree}/train/outside.jpg)",
        f"1 nested folders (first {tree}/train/class0/deeper.jpg)",
        f"2 broken links (first {tree}/train/class0/gone.jpg)",
        f"1 files with other suffixes (first {tree}/train/class1/notes.txt)",
        f"1 special files (first {tree}/train/class2/pipe.jpg)",
        f"2 hidden images (first {tree}/train/class0/._0000.JPEG)",
    ):
        assert part in said
    assert data.check() == 20
    assert sum(len(labels) for _, labels in data.train(0)) == 12


def test_a_whole_folder_is_read_without_a_warning(tree, capsys):
    dataset(tree)
    assert capsys.readouterr().err == ""


def test_more_threads_than_cores_are_said(tree, capsys, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    dataset(tree, num_parallel_workers=8)
    assert "num_parallel_workers is 8, but this machine has 2 cores: 2 threads read" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "tif", "tiff", "webp", "gif"])
def test_every_suffix_is_read(tree, suffix):
    Image.new("RGB", (50, 40), (10, 200, 30)).save(tree / f"val/class0/zz.{suffix}")
    data = dataset(tree, batch_size=9, image_size=32)
    images, labels = next(data.test())
    assert len(labels) == 9
    pixel = (images.asnumpy()[2, :, 16, 16] * STD.ravel() + MEAN.ravel()) * 255
    assert np.abs(pixel - [10, 200, 30]).max() < 3


def test_the_folder_data_set_takes_any_size_and_notes_it(tree):
    data = open_dataset("folder", path=str(tree), batch_size=4, image_size=64)
    assert (data.preprocessing.size, data.preprocessing.shorter_side) == (64, 73)
    for batches in (data.train(0), data.test()):
        assert next(batches)[0].shape == (4, 3, 64, 64)
    native, named = open_dataset("folder", path=str(tree)).preprocessing, dataset(tree).preprocessing
    assert native == named and native.size == 224


def test_a_broken_test_image_is_named(tree):
    damage(tree / "val/class1/0005.JPEG")
    with pytest.raises(UserError, match="val/class1/0005.JPEG cannot be decoded .*truncated"):
        list(dataset(tree).test())


def test_a_broken_test_image_is_an_error_after_training_too(tree):
    data = dataset(tree)
    list(data.train(0))
    damage(tree / "val/class1/0005.JPEG", "empty")
    with pytest.raises(UserError, match="val/class1/0005.JPEG"):
        list(data.test())


def test_check_finds_every_broken_image(tree):
    data = dataset(tree)
    assert data.check() == 20
    for number, how in ((0, "truncated"), (4, "empty"), (8, "text")):
        damage(tree / f"train/class0/{number:04d}.JPEG", how)
    with pytest.raises(
        UserError, match="3 of 20.*class0/0000.JPEG .*, then .*0004.JPEG.*0008.JPEG: replace"
    ) as refusal:
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


def renamed(name: str):
    return lambda tree: (tree / "train/class1").rename(tree / "train" / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("caf\udce9"), r"train/caf\\udce9' has a name that is blank or not UTF-8: rename it"),
        (renamed(" "), "train/ ' has a name that is blank or not UTF-8: rename it"),
        (without("val"), "val is not a folder; give --data_path the folder that holds train and val"),
        (without("train"), "train is not a folder; give --data_path"),
        (empty_class, "class folder .*train/class2 is empty: no file in it ends in .jpg, .jpeg, .png, .bmp"),
        (without("val/class1"), "the splits in .* have different classes: class1 is in only one of them"),
        (flat, "val holds no class folders: images are expected in .*val/CLASS/"),
    ],
    ids=["no UTF-8", "blank", "no val", "no train", "empty class", "another class", "flat"],
)
def test_a_wrong_tree_is_named_before_anything_is_read(tree, change, message):
    change(tree)
    with pytest.raises(UserError, match=message) as refusal:
        dataset(tree)
    assert "\n" not in str(refusal.value)


def test_imagenet_is_not_downloaded(tree):
    with pytest.raises(UserError, match="ImageNet cannot be downloaded: get it from image-net.org"):
        dataset(tree, download=True)


@pytest.mark.parametrize("skip", [0, 1])
def test_the_pipeline_for_a_device_gives_the_batches_of_training_but_no_count(tree, skip):
    damage(sorted((tree / "train").glob("*/*"))[0])
    data = dataset(tree, augment=False)
    expected = [images.asnumpy() for images, _ in data.train(0, skip, 3)]
    assert data.replaced <= 1
    rows = list(data.train_pipeline(0, skip, 3).create_tuple_iterator(num_epochs=1))
    assert [len(row) for row in rows] == [2] * (3 - skip)
    for (images, _), wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(images.asnumpy(), wanted)
    assert data.replaced is None


def test_the_memory_of_a_batch_is_used_again_once_no_view_of_it_is_left():
    buffers = Buffers()
    first = buffers.take((2, 3))
    first[:] = 1
    view = first[1]
    del first
    second = buffers.take((2, 3))
    second[:] = 2
    np.testing.assert_array_equal(view, np.ones(3))
    place = second.ctypes.data
    del second
    assert buffers.take((3, 2)).ctypes.data == place
