"""Build the parts of a run from a config: names are checked, schedules have a row for each step."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import nn

from src.binary import Binarization
from src.checkpoints import Checkpoint
from src.config import MAX_BATCH, load_config
from src.errors import UserError
from src.experiment import (
    binarization_of,
    build,
    build_network,
    build_tables,
    keep_global_batch,
    require_same_classes,
    synchronize_batch_norm,
)
from src.preprocessing import PREPROCESSING
from src.runtime import Worker

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DIGITS = {"data.name": "digits", "data.batch_size": 32, "train.epochs": 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"network.name": "resnet2"}, "unknown network 'resnet2'.*did you mean 'resnet20'"),
        ({"network.estimator": "fad"}, "unknown estimator 'fad'.*did you mean 'fda'.*clipped_ste.*fda.*ste"),
        ({"network.estimator_options.omga": 1.0}, "unknown option 'omga' of estimator 'fda'.*did you mean 'omega'"),
        ({"network.estimator_options.omega": -1.0}, "omega is -1.0.*greater than 0"),
        ({"network.estimator_options.omega": "wide"}, "omega is 'wide'.*greater than 0"),
        ({"network.estimator_options.clip": "nan"}, "clip is 'nan'.*greater than 0"),
        ({"network.estimator_options.n": 4}, "n is not an option of an estimator here: set schedules.n.setting"),
        ({"network.weight_estimator": "fda", "network.weight_estimator_options.n": 4}, "n is not .*schedules.n"),
        ({"network.weight_estimator_options.omega": 0.2}, "go with a weight_estimator, and there is none"),
        ({"network.binary": False, "network.estimator": "fad"}, "unknown estimator 'fad'"),
        (
            {"network.estimator": "ste", "network.estimator_options.clip": 1.0},
            "unknown option 'clip' of estimator 'ste'",
        ),
        ({"network.weight_quantizer": "xnr"}, "unknown weight quantizer 'xnr'.*did you mean 'xnor'.*dorefa"),
        ({"network.weight_init": "normal"}, "unknown weight init 'normal'.*did you mean 'he_normal'"),
        ({"noise.eta": "sin"}, "unknown eta 'sin'.*did you mean 'sine'"),
        ({"noise.init": "norma"}, "unknown noise init 'norma'.*did you mean 'normal'.*uniform"),
        ({"data.name": "cifar"}, "unknown data set 'cifar'"),
    ],
)
def test_wrong_names_are_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message) as refusal:
        build(load_config(None, {**DIGITS, **overrides}), Worker())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"network.name": "resnet2"},
        {"network.estimator": "fad"},
        {"network.estimator_options.omga": 1.0},
        {"network.weight_quantizer": "xnr"},
        {"network.options.prelu": True},
        {"network.name": "alexnet"},
    ],
)
def test_names_and_sizes_are_checked_before_data_are_looked_for(overrides, tmp_path):
    missing = {"data.name": "cifar10", "data.path": str(tmp_path / "missing")}
    with pytest.raises(UserError, match="unknown|takes only 224x224"):
        build(load_config(None, {**missing, **overrides}), Worker())


def test_noise_options_of_the_config_arrive_in_the_layers():
    binarization = binarization_of(load_config(None, {"noise.init": "uniform", "noise.reduction": 8}))
    assert binarization.noise_options == {"eta": "sine", "amplitude": 0.1, "reduction": 8, "init": "uniform"}


def test_full_precision_keeps_only_the_start_of_the_weights():
    config = load_config(None, {"network.binary": False, "network.weight_init": "he_normal"})
    assert binarization_of(config) == Binarization.full_precision(weight_init="he_normal")


@pytest.mark.parametrize("overrides", [{"noise.enabled": False}, {"schedules.alpha.start": 0}])
def test_no_noise_means_no_noise_modules(overrides):
    network = build_network(load_config(None, overrides), 10)
    assert not any(".noise." in parameter.name for parameter in network.get_parameters())


def test_tables_have_a_row_a_step():
    tables = build_tables(load_config(None, {"train.epochs": 3}), 21)
    assert tables["n"].shape == tables["alpha"].shape == (21,)
    assert (tables["n"][0], tables["n"][-1]) == (9, 18)
    assert (tables["alpha"][0], tables["alpha"][-1]) == (np.float32(0.1), 0)


def test_an_experiment_has_schedules_attached_to_the_optimizers_counter():
    experiment = build(load_config(None, {**DIGITS, "train.steps_per_epoch": 5}), Worker())
    assert experiment.steps_per_epoch == 5
    assert len(experiment.tables["lr"]) == len(experiment.tables["n"]) == 10
    state = experiment.network.layer1[0].conv1.activation_quantizer.estimator.state
    assert state.followed_step is experiment.optimizer.global_step
    np.testing.assert_array_equal(state.table.asnumpy(), experiment.tables["n"])


def test_more_steps_than_there_are_batches_are_capped():
    assert build(load_config(None, {**DIGITS, "train.steps_per_epoch": 10_000}), Worker()).steps_per_epoch == 44


def test_the_seed_fixes_the_initial_weights():
    import mindspore as ms

    def weights(seed: int) -> np.ndarray:
        ms.set_seed(seed)
        network = build_network(load_config(None, {"noise.enabled": False}), 10)
        return network.layer3[2].conv2.weight.asnumpy()

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).any()


def checkpoint_of(workers: int, batch_size: int, step: int = 0, epoch: int = 3) -> Checkpoint:
    config = {"data": {"batch_size": batch_size}}
    return Checkpoint("run/last.ckpt", {}, config=config, state={"workers": workers, "step": step, "epoch": epoch})


@pytest.mark.parametrize(("before", "workers", "expected"), [((2, 64), 4, 32), ((2, 64), 1, 128), ((2, 64), 2, 64)])
def test_the_global_batch_is_the_checkpoints_whatever_the_folder_says(before, workers, expected):
    """The folder's config may be that of workers which were killed before they saved."""
    config = load_config(None, {"data.batch_size": 17})
    assert keep_global_batch(config, checkpoint_of(*before), workers).data.batch_size == expected


@pytest.mark.parametrize(
    ("checkpoint", "workers", "message"),
    [
        (checkpoint_of(2, 3), 4, r"6 images per step, which 4 worker\(s\) cannot share .* numbers: 1, 2, 3, 6$"),
        (
            checkpoint_of(2, MAX_BATCH),
            1,
            r"32768 images per step, which 1 worker\(s\) cannot share .* numbers: 2, 4$",
        ),
        (
            checkpoint_of(2, 8, step=5),
            1,
            "at step 5 of epoch 4 of a run with 2 .* resume with 2, or add --from_epoch 3",
        ),
        (checkpoint_of(2, 8, step=5, epoch=0), 1, "continue only from the end of an epoch: resume with 2$"),
    ],
)
def test_workers_that_cannot_continue_are_told_what_would_work(checkpoint, workers, message):
    with pytest.raises(UserError, match=message):
        keep_global_batch(load_config(), checkpoint, workers)


def test_a_checkpoint_inside_an_epoch_continues_with_the_same_number_of_workers():
    assert keep_global_batch(load_config(), checkpoint_of(2, 8, step=5), 2).data.batch_size == 8


DIGITS_IMAGES = PREPROCESSING["digits"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"classes": tuple("0123456798")},
            "10 classes, and mine has 10; the classes differ: class 8 is 8 in the checkpoint and 9 in the data",
        ),
        (
            {"classes": tuple("012345678")},
            "10 classes, and mine has 9; the classes differ: class 9 is 9 in the checkpoint and none in the data",
        ),
        ({"mean": (0.5, 0.5, 0.4)}, r"images with the mean \(0.5, 0.5, 0.5\), but mine has \(0.5, 0.5, 0.4\): use the"),
        ({"std": (0.5, 0.5, 0.4)}, r"images with the std \(0.5, 0.5, 0.5\), but mine has \(0.5, 0.5, 0.4\): use the"),
        ({"classes": (), "std": (1.0, 1.0, 1.0)}, "images with the std"),
    ],
)
def test_data_of_other_classes_or_normalisation_are_refused(found, message):
    with pytest.raises(UserError, match=f"^last.ckpt was trained on {message}"):
        require_same_classes(DIGITS_IMAGES, replace(DIGITS_IMAGES, **found), "mine", "last.ckpt")


@pytest.mark.parametrize(
    "trained", [DIGITS_IMAGES, replace(DIGITS_IMAGES, classes=()), replace(DIGITS_IMAGES, size=64), None]
)
def test_data_may_have_another_size_and_what_is_unknown_is_not_compared(trained):
    require_same_classes(trained, DIGITS_IMAGES, "mine", "last.ckpt")


def test_the_learning_rate_is_scaled_only_if_the_config_has_the_batch_that_it_is_meant_for():
    for changes, workers, factor in (
        ({}, 4, 1),
        ({"optimizer.lr_for_batch": 64}, 4, 2),
        ({"data.batch_size": 16}, 1, 1),
    ):
        config = load_config(None, {**DIGITS, **changes})
        rates = build(config, Worker(0, workers)).tables["lr"]
        assert rates[0] == pytest.approx(config.optimizer.lr * factor)


def test_synchronized_batch_norm_takes_over_all_that_batch_norm_has(monkeypatch):
    """With a stand-in: MindSpore's own is only for Ascend."""

    class Synchronized(nn.BatchNorm2d):
        pass

    monkeypatch.setattr(nn, "SyncBatchNorm", Synchronized)
    for name, data in (("resnet20", "digits"), ("alexnet", "imagenet")):
        config = load_config(None, {**DIGITS, "network.name": name, "data.name": data})
        network = build_network(config, 10)
        before = {parameter.name: parameter for parameter in network.get_parameters()}
        norms = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, NORMS)}
        synchronize_batch_norm(network)
        after = {parameter.name: parameter for parameter in network.get_parameters()}
        assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
        cells = dict(network.cells_and_names())
        for name, cell in norms.items():
            assert type(cells[name]) is Synchronized
            assert (cells[name].momentum, cells[name].eps) == (cell.momentum, cell.eps)
