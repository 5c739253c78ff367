"""From a config to the parts of a run: names are checked, schedules have a row a step."""

import numpy as np
import pytest

from src.config import load_config
from src.errors import UserError
from src.experiment import build, build_network, build_tables
from src.runtime import Worker

DIGITS = {"data.name": "digits", "data.batch_size": 32, "train.epochs": 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"network.name": "resnet2"}, "unknown network 'resnet2'.*did you mean 'resnet20'"),
        ({"network.estimator": "fad"}, "unknown estimator 'fad'.*did you mean 'fda'.*clipped_ste.*fda.*ste"),
        ({"network.estimator_options.omga": 1.0}, "unknown option 'omga' of estimator 'fda'.*did you mean 'omega'"),
        ({"network.estimator_options.omega": -1.0}, "omega is -1.0.*greater than 0"),
        ({"network.estimator_options.omega": "wide"}, "omega is 'wide'.*greater than 0"),
        ({"network.estimator_options.clip": "nan"}, "clip is nan.*greater than 0"),
        ({"network.estimator_options.n": 4}, "n is no option of an estimator here: set schedules.n.setting"),
        ({"network.weight_estimator": "fda", "network.weight_estimator_options.n": 4}, "n is no option .*schedules.n"),
        ({"network.weight_estimator_options.omega": 0.2}, "go with a weight_estimator, and there is none"),
        ({"network.binary": False, "network.estimator": "fad"}, "unknown estimator 'fad'"),
        (
            {"network.estimator": "ste", "network.estimator_options.clip": 1.0},
            "unknown option 'clip' of estimator 'ste'",
        ),
        ({"network.weight_quantizer": "xnr"}, "unknown weight quantizer 'xnr'.*did you mean 'xnor'.*dorefa"),
        ({"network.weight_init": "normal"}, "unknown weight init 'normal'.*did you mean 'he_normal'"),
        ({"noise.eta": "sin"}, "unknown eta 'sin'.*did you mean 'sine'"),
        ({"data.name": "cifar"}, "unknown data set 'cifar'"),
    ],
)
def test_wrong_names_are_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message) as refusal:
        build(load_config(None, {**DIGITS, **overrides}), Worker())
    assert "\n" not in str(refusal.value)


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
