"""Training the binary ResNet-20 in float16: what holds in float32 holds there."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import amp

from src import checkpoints, experiment
from src.binary import BinaryLayer
from src.config import load_config
from src.runtime import Worker
from src.training.evaluation import evaluate
from src.training.trainer import Callback, Trainer
from tests.helpers import processes


class Watch(Callback):
    """Keeps the losses, and the checkpoint of a moment in the epoch."""

    def __init__(self, path=None):
        self.path = path
        self.losses = []

    def on_step_end(self, trainer, result):
        self.losses.append(result.loss)

    def on_checkpoint(self, trainer):
        if self.path is not None and not self.path.exists():
            trainer.save(self.path)


def trainer_of(level: str, watch: Watch) -> Trainer:
    """An epoch of 12 steps of digits."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    changes = {
        "amp.level": level,
        "amp.loss_scale": "dynamic",
        "scheduler.name": "constant",
        "schedules.n.setting": 1,  # a fresh network's gradients grow with n, and overflow
        "train.epochs": 1,
        "train.steps_per_epoch": 12,
        "train.save_every_steps": 6,
    }
    config = load_config(processes.ROOT / "configs/digits.yaml", changes)
    return Trainer(experiment.build(config, Worker()), [watch])


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    """Every parameter of network, optimizer and loss scaling."""
    built = trainer.experiment
    cells = (*built.network.get_parameters(), *built.optimizer.get_parameters())
    found = {parameter.name: parameter.asnumpy() for parameter in cells}
    return {**found, "scale": built.scaler.scale_value.asnumpy(), "counter": built.scaler.counter.asnumpy()}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_mixed_precision_keeps_the_properties_of_a_run(level, tmp_path):
    trainer = trainer_of(level, watch := Watch(tmp_path / "middle.ckpt"))
    trainer.fit()
    trainer.save(tmp_path / "last.ckpt")
    built, after = trainer.experiment, state(trainer)
    assert np.nanmean(watch.losses[-3:]) < 0.95 * np.nanmean(watch.losses[:3]), watch.losses
    assert built.tables["alpha"][-1] == 0

    # Latent weights, optimizer state and statistics are float32; the network computes in float16.
    assert {value.dtype for value in after.values()} <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert all(np.isfinite(value).all() for value in after.values())
    images, _ = next(iter(built.data.test()))
    assert built.network.set_train(False)(images).dtype == ms.float16

    # Every binary weight is its latent weight's sign times one scale.
    for _, layer in built.network.cells_and_names():
        if isinstance(layer, BinaryLayer):
            latent = layer.weight.asnumpy()
            layer.weight_quantizer.set_train(False)
            signs, scale = (value.asnumpy() for value in layer.signs_and_scale())
            np.testing.assert_array_equal(signs, np.where(latent > 0, 1, -1))
            np.testing.assert_allclose(scale, np.abs(latent).mean(), rtol=1e-5)
            assert scale.dtype == np.float32

    # Resuming from the middle gives the same bits.
    resumed = trainer_of(level, Watch())
    resumed.resume(checkpoints.read(tmp_path / "middle.ckpt"))
    resumed.fit()
    for name, value in state(resumed).items():
        np.testing.assert_array_equal(value, after[name], name)

    # The saved network is the run's own, in the precision of the run; and nearly so in float32.
    own = evaluate(built.network, built.data.test(), 10)
    assert own.loss == evaluate(saved(built.config, tmp_path, level), built.data.test(), 10).loss
    full = evaluate(saved(built.config, tmp_path, "O0"), built.data.test(), 10)
    assert full.loss == pytest.approx(own.loss, rel=0.05)

    arguments = ("--checkpoint", tmp_path / "last.ckpt", "--file_format", "MINDIR")
    done = processes.run("export.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "last.mindir").exists()


def saved(config, folder, level: str):
    network = experiment.trained_network(config, checkpoints.read(folder / "last.ckpt"))
    amp.auto_mixed_precision(network, level)
    return network
