"""CIFAR-10 batches from generated files of the official format, damaged files, and the download without a network."""

import hashlib
import http.client
import io
import itertools
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from src.data import open_dataset
from src.data.cifar import CIFAR10
from src.errors import UserError

MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
STD = np.array([0.229, 0.224, 0.225])[:, None, None]
PER_FILE = 400  # the official files have 10,000
RECORD = 3073


def records(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 (N, 3, 32, 32), labels (N,)) of file `number`, 0 being the test batch. The first three pixels spell
    the file and the index, so that no two images are alike."""
    generator = np.random.default_rng(number)
    pixels = np.frombuffer(generator.bytes(PER_FILE * (RECORD - 1)), np.uint8).reshape(PER_FILE, 3, 32, 32).copy()
    index = np.arange(PER_FILE)
    pixels[:, 0, 0, :3] = np.stack([np.full(PER_FILE, number), index // 256, index % 256], axis=1)
    return pixels, generator.integers(0, 10, PER_FILE).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "records", {"train": PER_FILE, "test": PER_FILE})
        yield


@pytest.fixture(scope="module")
def written() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {number: records(number) for number in range(6)}


@pytest.fixture(scope="module")
def root(tmp_path_factory, written):
    """A folder that holds cifar-10-batches-bin. Read only."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number, (pixels, labels) in written.items():
        name = f"data_batch_{number}.bin" if number else "test_batch.bin"
        (folder / name).write_bytes(np.hstack([labels[:, None], pixels.reshape(PER_FILE, -1)]).tobytes())
    yield root
    shutil.rmtree(root)


@pytest.fixture
def folder(tmp_path, root) -> Path:
    """A folder of links, to be replaced by damaged files."""
    copy = tmp_path / "cifar-10-batches-bin"
    copy.mkdir()
    for file in (root / copy.name).iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def damage(file: Path, change) -> None:
    """Replaces a link by a changed copy of its file."""
    content = change(file.read_bytes())
    file.unlink()
    file.write_bytes(content)


def dataset(path: Path, **options):
    return open_dataset("cifar10", path=str(path), **{"augment": False, **options})


def collect(batches, count: int | None = None) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Images, labels and sizes of all or the first batches."""
    pairs = [(images.asnumpy(), labels.asnumpy()) for images, labels in itertools.islice(batches, count)]
    return (
        np.concatenate([images for images, _ in pairs]),
        np.concatenate([labels for _, labels in pairs]),
        [len(labels) for _, labels in pairs],
    )


def normalised(pixels: np.ndarray) -> np.ndarray:
    return (pixels / 255 - MEAN) / STD


def identities(images: np.ndarray) -> list[tuple[int, int]]:
    """File and index of each image, as `records` wrote them into its first pixels."""
    first = np.rint((images[:, 0, 0, :3] * STD[0, 0, 0] + MEAN[0, 0, 0]) * 255).astype(int)
    return [(number, 256 * high + low) for number, high, low in first.tolist()]


def test_all_test_images_in_order_with_the_last_partial_batch(root, written):
    pixels, labels = written[0]
    images, got_labels, sizes = collect(dataset(root, batch_size=120).test())
    assert sizes == [120, 120, 120, 40]
    assert images.dtype == np.float32
    assert got_labels.dtype == np.int32
    np.testing.assert_array_equal(got_labels, labels)
    np.testing.assert_allclose(images[::10], normalised(pixels[::10]), atol=1e-5)
    np.testing.assert_allclose(images[-5:], normalised(pixels[-5:]), atol=1e-5)
    assert identities(images) == [(0, index) for index in range(PER_FILE)]


def test_training_images_and_their_labels(root, written):
    images, labels, sizes = collect(dataset(root, batch_size=50).train(0), 4)
    assert sizes == [50] * 4
    for image, label, (number, index) in zip(images, labels, identities(images), strict=True):
        np.testing.assert_allclose(image, normalised(written[number][0][index]), atol=1e-5)
        assert label == written[number][1][index]


def test_the_last_partial_training_batch_is_dropped(root):
    assert dataset(root, batch_size=128).train_steps() == 15
    assert dataset(root, batch_size=128, size=3).train_steps() == 5
    assert dataset(root, batch_size=2000).train_steps() == 1
    assert len(list(dataset(root, batch_size=600).train(0))) == 3
    with pytest.raises(UserError, match="batch_size is 2001.*only 2000 training images"):
        dataset(root, batch_size=2001).train_steps()
    with pytest.raises(UserError, match="batch_size is 1500.*only 1000 training images"):
        dataset(root, batch_size=1500, size=2).train_steps()


def test_seed_and_epoch_fix_the_order(root):
    def order(seed: int, epoch: int):
        return tuple(identities(collect(dataset(root, batch_size=100, seed=seed).train(epoch), 1)[0]))

    assert order(0, 0) == order(0, 0)
    orders = {order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(orders) == 4
    assert list(order(0, 0)) != sorted(order(0, 0))


def test_skip_gives_exactly_the_rest_with_augmentation(root):
    """So a run that resumes in the middle of an epoch, on other threads too, sees what the first would have."""
    options = {"batch_size": 25, "augment": True, "seed": 3}
    images, labels, _ = collect(dataset(root, **options).train(2), 8)
    rest_images, rest_labels, _ = collect(dataset(root, num_parallel_workers=2, **options).train(2, skip=3), 5)
    np.testing.assert_array_equal(rest_images, images[75:])
    np.testing.assert_array_equal(rest_labels, labels[75:])


def test_skip_and_stop_bound_the_epoch(root):
    """Batches skip .. stop - 1 of the five."""
    data = dataset(root, batch_size=400)
    assert len(list(data.train(0, skip=3))) == 2
    assert len(list(data.train(0, skip=1, stop=3))) == 2


def test_augmentation_is_a_shifted_or_mirrored_crop(root, written):
    """Every image is a 32x32 window of the original with 4 black pixels on each side, mirrored or not."""
    order = identities(collect(dataset(root, batch_size=60).train(0), 1)[0])
    images, _, _ = collect(dataset(root, batch_size=60, augment=True).train(0), 1)
    pixels = np.rint((images * STD + MEAN) * 255)
    shifts, mirrored = set(), 0
    for image, (number, index) in zip(pixels, order, strict=True):
        padded = np.pad(written[number][0][index], ((0, 0), (4, 4), (4, 4))).astype(float)
        found = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (1, -1)
            if np.abs(padded[:, top : top + 32, left : left + 32][:, :, ::flip] - image).max() <= 1
        ]
        assert len(found) == 1
        top, left, flip = found[0]
        shifts.add((top, left))
        mirrored += flip == -1
    assert len(shifts) > 20
    assert 10 < mirrored < 50


@pytest.mark.parametrize("size", [2, 4])
def test_the_workers_shares_are_disjoint_and_complete(root, size):
    shares = [
        identities(collect(dataset(root, batch_size=100, rank=rank, size=size).train(5))[0]) for rank in range(size)
    ]
    assert [len(share) for share in shares] == [5 * PER_FILE // size] * size
    assert len(set().union(*shares)) == 5 * PER_FILE


def test_each_worker_trains_on_its_own_shard(root):
    first, second = (
        identities(collect(dataset(root, batch_size=200, rank=rank, size=2).train(1), 2)[0]) for rank in (0, 1)
    )
    assert not set(first) & set(second)


@pytest.mark.parametrize("size", [1, 3])
def test_the_workers_parts_of_the_test_images_follow_each_other(root, size):
    parts = [dataset(root, rank=rank, size=size, batch_size=60) for rank in range(size)]
    collected = [collect(part.test()) for part in parts]
    assert max(len(sizes) for _, _, sizes in collected) == parts[0].test_batches()
    images = np.concatenate([images for images, _, _ in collected])
    assert identities(images) == [(0, index) for index in range(PER_FILE)]


def test_a_worker_without_test_images_gets_none(root, monkeypatch):
    some = dataset(root, rank=0, size=3)
    monkeypatch.setattr(some, "test_images", lambda: 2)
    assert list(some.test()) == [] and some.test_batches() == 1


@pytest.mark.parametrize(("size", "batch_size"), [(2, 6), (3, 4)])
def test_augmented_images_of_a_step_are_those_of_one_worker_with_the_same_global_batch(root, size, batch_size):
    options = {"augment": True, "seed": 1}
    single = dataset(root, batch_size=12, **options)
    parts = [dataset(root, batch_size=batch_size, rank=rank, size=size, **options) for rank in range(size)]
    assert {part.train_steps() for part in parts} == {single.train_steps()}
    steps = zip(single.train(3, stop=4), *(part.train(3, stop=4) for part in parts), strict=True)
    for (images, _), *shares in steps:
        together = [image.tobytes() for share, _ in shares for image in share.asnumpy()]
        assert sorted(together) == sorted(image.tobytes() for image in images.asnumpy())


def test_files_may_be_deleted_after_loading(folder):
    data = dataset(folder.parent, batch_size=100)
    expected, _, _ = collect(data.train(0))
    (folder / "data_batch_2.bin").unlink()
    np.testing.assert_array_equal(collect(data.train(0))[0], expected)


def test_the_released_folder_is_enough_for_evaluation(tmp_path, root):
    released = tmp_path / "cifar-10-verify-bin"
    released.mkdir()
    (released / "test_batch.bin").symlink_to(root / "cifar-10-batches-bin" / "test_batch.bin")
    for path in (tmp_path, released):
        assert collect(dataset(path, splits=("test",), batch_size=8).test(), 1)[2] == [8]
    with pytest.raises(UserError, match="data_batch_1.bin"):
        dataset(tmp_path)


def test_the_folder_itself_may_be_named(root):
    assert dataset(root / "cifar-10-batches-bin").train_steps() == 15


def test_a_missing_file_is_named(folder):
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match="data_batch_4.bin not found in .*cifar-10-batches-bin.*--download"):
        dataset(folder.parent)
    dataset(folder.parent, splits=("test",))


def test_an_empty_folder_names_where_files_belong(tmp_path):
    with pytest.raises(UserError, match="data_batch_1.bin.*test_batch.bin not found.*--data_path.*cifar-10-"):
        dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("data_batch_3.bin", lambda content: content[:-1]),
        ("data_batch_3.bin", lambda content: content[:-RECORD]),
        ("test_batch.bin", lambda content: content[:1000]),
        ("test_batch.bin", lambda content: b""),
        ("test_batch.bin", lambda content: content + content[:RECORD]),
    ],
    ids=["one byte", "one record", "start", "empty", "longer"],
)
def test_a_truncated_file_is_named(folder, name, change):
    damage(folder / name, change)
    with pytest.raises(UserError, match=f"{name} is truncated.*must have 1229200"):
        dataset(folder.parent)


def test_a_wrong_label_is_named(folder):
    damage(folder / "data_batch_2.bin", lambda content: content[: 7 * RECORD] + b"\n" + content[7 * RECORD + 1 :])
    with pytest.raises(UserError, match="data_batch_2.bin is damaged: record 7 has label 10.*0 to 9"):
        dataset(folder.parent)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(
        UserError, match="unknown data set 'cifar'.*allowed are cifar10, cifar100, digits, imagenet, folder"
    ):
        open_dataset("cifar")


@pytest.mark.parametrize("step", range(5))
def test_a_file_that_shrinks_while_it_is_read_is_truncated(folder, monkeypatch, step):
    """With a memory map this was a bus error."""
    target = folder / "data_batch_2.bin"
    damage(target, lambda content: content)
    opened = Path.open

    def shrinking(path, *arguments):
        stream = opened(path, *arguments)
        if path == target:
            os.truncate(path, step * RECORD * PER_FILE // 5)
        return stream

    monkeypatch.setattr(Path, "open", shrinking)
    with pytest.raises(UserError, match="data_batch_2.bin is truncated"):
        dataset(folder.parent)


def test_a_file_without_permission_is_named(folder, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot read .*data_batch_1.bin: Permission denied"):
        dataset(folder.parent)


@pytest.fixture(scope="module")
def archive(root) -> bytes:
    """A tar file like the official one, with only the test batch."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=0) as tar:
        tar.add(root / "cifar-10-batches-bin" / "test_batch.bin", "cifar-10-batches-bin/test_batch.bin")
    return stream.getvalue()


def serve(monkeypatch, answer) -> None:
    """Lets urlopen return `answer` as a response, or raise it."""

    def urlopen(url, timeout):
        assert url == CIFAR10.url
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_download_unpacks_the_right_archive(tmp_path, monkeypatch, archive):
    serve(monkeypatch, archive)
    monkeypatch.setattr(CIFAR10, "md5", hashlib.md5(archive).hexdigest())
    data = dataset(tmp_path / "new" / "place", splits=("test",), download=True)
    assert collect(data.test(), 1)[2] == [128]
    assert [file.name for file in (tmp_path / "new" / "place").iterdir()] == ["cifar-10-batches-bin"]


def test_download_refuses_a_wrong_checksum_and_leaves_nothing(tmp_path, monkeypatch, archive):
    serve(monkeypatch, archive)
    with pytest.raises(UserError, match="checksum .* but c32a1d4ab5d03f1284b67883e8d87530 is expected"):
        dataset(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped.bin", "/tmp/escaped.bin", "cifar-10-batches-bin/../../escaped.bin"])
def test_an_archive_writes_nowhere_but_into_its_own_folder(tmp_path, monkeypatch, name):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    serve(monkeypatch, stream.getvalue())
    monkeypatch.setattr(CIFAR10, "md5", hashlib.md5(stream.getvalue()).hexdigest())
    with pytest.raises(UserError, match="cannot be unpacked|cannot write"):
        dataset(tmp_path / "place", splits=("test",), download=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["place"]
    assert not Path("/tmp/escaped.bin").exists()


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        ConnectionResetError("connection reset"),
        http.client.IncompleteRead(b""),
        urllib.error.HTTPError(CIFAR10.url, 404, "Not Found", {}, None),
    ],
    ids=["no network", "timeout", "reset", "cut off", "404"],
)
def test_download_without_a_network_names_where_the_files_belong(tmp_path, monkeypatch, failure):
    serve(monkeypatch, failure)
    with pytest.raises(UserError) as refusal:
        dataset(tmp_path, download=True)
    message = str(refusal.value)
    assert CIFAR10.url in message
    assert str(tmp_path / "cifar-10-batches-bin" / "test_batch.bin") in message
    assert "cannot download" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_no_download_where_the_files_are(monkeypatch, root):
    serve(monkeypatch, AssertionError("no download was needed"))
    assert dataset(root, download=True).train_steps() == 15
