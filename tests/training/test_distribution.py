"""Two processes on the CPU train for real, started through msrun; the test compares what they saw and computed."""

import shutil
from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest

from scripts.cluster import Cluster, at_open_port
from scripts.distribute import Launch
from tests.training import distribution_worker as program

IMAGES_A_FILE = 10_000
TRAIN_IMAGES = 5 * IMAGES_A_FILE


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Iterator[str]:
    """CIFAR-10's files, full size, the pixels random but for the first two red ones, which number the image."""
    folder = tmp_path_factory.mktemp("cifar-10-batches-bin")
    random = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]):
        records = random.integers(0, 256, (IMAGES_A_FILE, 1 + 3072), np.uint8)
        records[:, 0] %= 10
        records[:, 1], records[:, 2] = np.divmod(np.arange(IMAGES_A_FILE) + number * IMAGES_A_FILE, 256)
        records.tofile(folder / name)
    yield str(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ranks(data_folder, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of two workers wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = Launch(at_open_port(Cluster(2, master_port=0)), folder, [program.__file__, data_folder, str(folder)])
    code = launch.run()
    assert code == 0, "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    return [dict(np.load(folder / f"rank_{rank}.npz")) for rank in (0, 1)]


def test_shards_are_disjoint_and_complete(ranks):
    first, second = (rank["shard"] for rank in ranks)
    assert len(first) == len(second) == TRAIN_IMAGES // 2
    assert sorted([*first, *second]) == list(range(TRAIN_IMAGES))


def test_workers_start_from_the_same_weights(ranks):
    for name in (name for name in ranks[0] if name.startswith("initial.")):
        assert np.array_equal(ranks[0][name], ranks[1][name]), name


def test_the_averaged_gradient_is_that_of_the_whole_batch(ranks):
    images, labels = (np.concatenate([rank[name] for rank in ranks]) for name in ("images", "labels"))
    assert len(set(program.image_ids(ms.Tensor(images)))) == 2 * program.BATCH
    network = program.SmallNetwork()
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(ranks[0][f"initial.{parameter.name}"]))
    step = program.training_step(network, workers=1).set_train(False)
    whole, _ = program.Gradients(step)(ms.Tensor(images), ms.Tensor(labels))
    whole = program.flat(whole)

    scale = np.abs(whole).max()
    for rank in ranks:
        assert np.abs(rank["averaged"] - whole).max() < 1e-6 * scale
        assert np.abs(rank["own"] - whole).max() > 0.1 * scale  # each worker's own gradient is far from it
    assert np.array_equal(ranks[0]["averaged"], ranks[1]["averaged"])


def test_weights_stay_identical(ranks):
    before = np.concatenate([ranks[0][name].ravel() for name in ranks[0] if name.startswith("initial.")])
    assert len(ranks[0]["weights"]) < len(before)  # the moving statistics are among `before` alone
    assert np.array_equal(ranks[0]["weights"], ranks[1]["weights"])
    assert np.isfinite(ranks[0]["weights"]).all()


def test_moving_statistics_are_averaged(ranks):
    first, second = (rank["statistics"] for rank in ranks)
    assert not np.allclose(first, second)  # each saw other images
    assert np.array_equal(ranks[0]["averaged_statistics"], ranks[1]["averaged_statistics"])
    np.testing.assert_allclose(ranks[0]["averaged_statistics"], (first + second) / 2, rtol=1e-6)


def test_workers_agree_on_a_signal_that_one_received(ranks):
    for rank in ranks:
        assert rank["signals"].tolist() == [0, 15, 15]
