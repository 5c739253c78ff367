"""Two and three real processes on CPU, started through msrun: their data, gradients and weights are compared with each
other and with those of a single process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.launch.cluster import Cluster, at_open_port
from src.launch.processes import Supervisor
from src.runtime import Worker
from src.training.evaluation import evaluate
from tests.helpers import collectives_worker as program

IMAGES_A_FILE = 10_000
TRAIN_IMAGES = 5 * IMAGES_A_FILE


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Iterator[str]:
    """CIFAR-10's files, full size, with random pixels except the first two red ones, which hold the image's number."""
    folder = tmp_path_factory.mktemp("cifar-10-batches-bin")
    random = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]):
        records = random.integers(0, 256, (IMAGES_A_FILE, 1 + 3072), np.uint8)
        records[:, 0] %= 10
        records[:, 1], records[:, 2] = np.divmod(np.arange(IMAGES_A_FILE) + number * IMAGES_A_FILE, 256)
        records.tofile(folder / name)
    yield str(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request, data_folder, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """The files that the workers wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_workers(request.param, data_folder, folder)


def run_workers(count: int, argument: str, folder: Path) -> list[dict[str, np.ndarray]]:
    supervisor = Supervisor(at_open_port(Cluster(count, 0)), folder, [program.__file__, argument, str(folder)])
    code = supervisor.run()
    assert code == 0, "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    return [dict(np.load(folder / f"rank_{rank}.npz")) for rank in range(count)]


@pytest.fixture(scope="module")
def single_losses() -> np.ndarray:
    return program.followed_losses(Worker())


def test_shards_are_disjoint_and_complete(ranks):
    shards = [rank["shard"] for rank in ranks]
    images = np.concatenate(shards)
    assert len(set(map(len, shards))) == 1 and len(set(images.tolist())) == len(images)
    assert TRAIN_IMAGES - len(images) < len(ranks) * program.READING_BATCH  # a last batch is dropped


def test_workers_start_from_the_same_weights(ranks):
    for name in (name for name in ranks[0] if name.startswith("initial.")):
        assert all(np.array_equal(ranks[0][name], rank[name]) for rank in ranks[1:]), name


def test_the_averaged_gradient_is_that_of_the_whole_batch(ranks):
    images, labels = (np.concatenate([rank[name] for rank in ranks]) for name in ("images", "labels"))
    assert len(set(program.image_ids(ms.Tensor(images)))) == len(ranks) * program.BATCH
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
        assert np.array_equal(ranks[0]["averaged"], rank["averaged"])


def test_weights_stay_identical(ranks):
    before = np.concatenate([ranks[0][name].ravel() for name in ranks[0] if name.startswith("initial.")])
    assert len(ranks[0]["weights"]) < len(before)  # the moving statistics are only in `before`
    assert all(np.array_equal(ranks[0]["weights"], rank["weights"]) for rank in ranks[1:])
    assert np.isfinite(ranks[0]["weights"]).all()


def test_moving_statistics_are_averaged(ranks):
    own = np.stack([rank["statistics"] for rank in ranks])
    assert not np.allclose(own[0], own[1])  # each saw other images
    for rank in ranks:
        assert np.array_equal(ranks[0]["averaged_statistics"], rank["averaged_statistics"])
    np.testing.assert_allclose(ranks[0]["averaged_statistics"], own.mean(0), rtol=1e-6)


def test_workers_agree_on_a_signal_that_one_received(ranks):
    for rank in ranks:
        assert rank["signals"].tolist() == [0, 15 * (len(ranks) - 1), 15]


def test_every_worker_knows_what_all_gathered_to_the_bit(ranks):
    expected = [[np.pi * (number + 1), 2**53 - 1, 1e-20 / 3, -np.inf, 0] for number in range(len(ranks))]
    for rank in ranks:
        np.testing.assert_array_equal(rank["gathered"], expected)


def test_the_worker_with_another_checksum_is_named(ranks):
    for rank in ranks:
        assert rank["outliers"].tolist() == [1]


def test_a_full_precision_network_follows_one_workers_loss_for_50_steps(ranks, single_losses):
    assert single_losses[-10:].mean() < single_losses[:10].mean()  # it learns, so following it means something
    for rank in ranks:
        assert len(rank["losses"]) == program.FOLLOWED_STEPS
        assert np.abs(rank["losses"] - single_losses).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_full_precision_resnet20_follows_one_worker_and_the_binary_one_drifts_by_sign_flips(count, tmp_path):
    """Prints the numbers of docs/clusters.md."""
    several, single = run_workers(count, "resnet20", tmp_path)[0], program.resnet20_losses(Worker())
    apart = {name: np.abs(several[name] - single[name]) for name in single}
    for name, differences in apart.items():
        far = np.flatnonzero(differences > 1e-4)
        print(
            f"{name}: loss {single[name][0]:.3f} to {single[name][-1]:.3f}; {count} workers at most "
            f"{differences.max():.2g} apart, beyond 1e-4 first at step {far[0] + 1 if len(far) else 'none'}"
        )
    assert single["full precision"][-10:].mean() < single["full precision"][:10].mean()
    assert apart["full precision"].max() < 1e-4
    assert apart["binary"][0] < 1e-4 and np.isfinite(several["binary"]).all()


def test_the_accuracy_of_shared_images_is_that_of_one_worker_to_the_image(ranks, data_folder):
    network = program.SmallNetwork()
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(ranks[0][f"final.{parameter.name}"]))
    single = evaluate(network, program.Dataset("cifar10", data_folder, batch_size=300).test(), 10)
    for rank in ranks:
        images, top1, top5, loss = rank["evaluation"]
        assert (images, top1, top5) == (IMAGES_A_FILE, single.top1, single.top5)
        assert loss == pytest.approx(single.loss, rel=1e-9)
