"""The loop, on a network that trains in a moment: its moments, what it saves, and what ends it."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor, amp

from src import checkpoints
from src.errors import UserError, WriteError
from src.training.collectives import Collectives, get_statistics
from src.training.step import StepResult
from src.training.trainer import Callback, Diverged, Stopped, Trainer
from tests.helpers.experiments import tiny_experiment

MOMENTS = [name for name in vars(Callback) if name.startswith(("on_", "before_"))]


class Recorder(Callback):
    """Notes the moments, and calls an action at one of them, the first time or the `at`-th."""

    def __init__(self, when: str = "", action=lambda trainer: None, at: int = 1):
        self.moments: list[str] = []
        self.when, self.action, self.at = when, action, at

    def note(self, moment: str, trainer: Trainer) -> None:
        self.moments.append(moment)
        if moment == self.when and self.moments.count(moment) == self.at:
            self.action(trainer)


for name in MOMENTS:
    setattr(Recorder, name, lambda self, trainer, *rest, name=name: self.note(name, trainer))


class Save(Callback):
    def __init__(self, path):
        self.path = path

    def on_checkpoint(self, trainer):
        trainer.save(self.path)


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in trainer._state()}


def stop(trainer: Trainer) -> None:
    trainer.stop_signal = 15


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_epoch_in_which_every_step_overflows(tmp_path, dynamic):
    """A fixed scale would overflow for ever; a dynamic one may still fall far enough."""
    scaler = amp.DynamicLossScaler(1024, 2, 1000) if dynamic else amp.StaticLossScaler(1024)
    trainer = Trainer(replace(tiny_experiment(tmp_path), scaler=scaler), [])
    trainer._results = lambda: iter([StepResult(0.0, 0.0, 0, 1, None)] * 3)
    before = weights(trainer)
    if not dynamic:
        with pytest.raises(Diverged, match="all 3 steps of epoch 1 overflowed.*lower amp.loss_scale"):
            trainer.fit()
    else:
        trainer.fit()
        assert [metrics["train_loss"] for metrics in trainer.progress.history] == [None, None]
        assert [metrics["skipped"] for metrics in trainer.progress.history] == [3, 3]
    for name, value in weights(trainer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_moments_come_in_order(tmp_path):
    recorder = Recorder()
    Trainer(tiny_experiment(tmp_path), [recorder]).fit()
    epoch = ["on_epoch_begin", *["on_step_end"] * 3, "on_epoch_trained", "on_epoch_end"]
    assert recorder.moments == ["on_train_begin", *epoch, *epoch, "on_train_end", "on_exit"]


def test_the_history_has_the_mean_loss_and_the_schedules_of_the_last_step(tmp_path):
    losses = []

    class Losses(Callback):
        def on_step_end(self, trainer, result):
            losses.append(result.loss)

    trainer = Trainer(tiny_experiment(tmp_path), [Losses()])
    trainer.fit()
    assert [metrics["epoch"] for metrics in trainer.progress.history] == [1, 2]
    assert [metrics["step"] for metrics in trainer.progress.history] == [3, 6]
    means = np.reshape(losses, (2, 3)).mean(1)
    assert [metrics["train_loss"] for metrics in trainer.progress.history] == pytest.approx(means)
    assert trainer.progress.history[1]["lr"] == pytest.approx(np.linspace(0.1, 0.01, 100)[5])


@pytest.mark.parametrize("when", ["on_step_end", "on_epoch_trained"])
def test_a_run_that_is_stopped_and_resumed_ends_like_one_that_is_not(tmp_path, when):
    whole = Trainer(tiny_experiment(tmp_path), [])
    whole.fit()

    def stop_now(trainer):
        stop(trainer)
        if when == "on_epoch_trained":
            trainer.stop_if_asked()

    recorder = Recorder(when, stop_now, at=2)
    stopped = Trainer(tiny_experiment(tmp_path), [recorder, Save(tmp_path / "last.ckpt")])
    with pytest.raises(Stopped):
        stopped.fit()
    assert recorder.moments[-3:] == ["on_checkpoint", "on_stop", "on_exit"]
    resumed = Trainer(tiny_experiment(tmp_path), [])
    resumed.resume(checkpoints.read(tmp_path / "last.ckpt"))
    resumed.fit()
    # Equal to the bit in tests/test_train.py. Here a kernel's last digit depends on where the arrays are in memory.
    assert len(resumed.progress.history) == 2
    for metrics, expected in zip(resumed.progress.history, whole.progress.history, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(resumed)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("name", ["hidden", "norm.moving_mean", "moments.hidden"])
def test_state_that_is_not_finite_is_named_before_anything_is_saved(tmp_path, name, every):
    def spoil(trainer):
        parameter = next(parameter for parameter in trainer._state() if parameter.name == name)
        parameter.set_data(Tensor(np.full(parameter.shape, np.nan, np.float32)))

    recorder = Recorder("on_step_end", spoil, at=3 if every is None else 1)
    trainer = Trainer(tiny_experiment(tmp_path, save_every_steps=every), [recorder])
    step = 3 if every is None else 1
    with pytest.raises(Diverged, match=rf"^{name} is not finite at step {step} \(epoch 1, step {step}\): start again"):
        trainer.fit()
    assert not {"on_checkpoint", "on_epoch_end"} & set(recorder.moments)
    assert recorder.moments[-1] == "on_exit"


def test_a_nan_weight_that_its_sign_hides_is_found_at_the_end_of_the_epoch(tmp_path):
    def spoil(trainer):
        trainer.experiment.network.hidden.set_data(Tensor(np.full(5, np.nan, np.float32)))

    recorder = Recorder("on_step_end", spoil)
    with pytest.raises(Diverged, match=r"^hidden is not finite at step 3 "):
        Trainer(tiny_experiment(tmp_path), [recorder]).fit()
    assert recorder.moments.count("on_step_end") == 3  # the loss did not show it


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    def spoil(trainer):
        trainer.experiment.network.linear.bias.set_data(Tensor(np.full(3, np.nan, np.float32)))

    with pytest.raises(Diverged, match=r"^the loss is not finite at step 2 \(epoch 1, step 2\)"):
        Trainer(tiny_experiment(tmp_path), [Recorder("on_step_end", spoil)]).fit()


class OtherWorker(Collectives):
    """Two workers in one process: all that the other one gives is larger by 1."""

    def __init__(self):
        self.rank, self.size = 0, 2

    def gather(self, values):
        values = np.array(values, np.float64).ravel()
        return np.stack([values, values + 1])

    def outliers(self, checksum):
        return []

    def agree_on_signal(self, number):
        return number

    def _sum(self, values):
        return 2 * values + 1


def test_saving_inside_an_epoch_does_not_change_the_statistics_of_several_workers(tmp_path):
    path = tmp_path / "last.ckpt"
    seen = {}

    def save(trainer):
        seen["own"], seen["loss"] = get_statistics(trainer.experiment.network), trainer.progress.loss_sum
        trainer._checkpoint("on_checkpoint")
        np.testing.assert_array_equal(get_statistics(trainer.experiment.network), seen["own"])
        assert trainer.progress.loss_sum == seen["loss"] and not trainer.extra
        raise KeyboardInterrupt

    trainer = Trainer(tiny_experiment(tmp_path), [Recorder("on_step_end", save, at=2), Save(path)])
    trainer.collectives = OtherWorker()
    trainer._require_finite = lambda: None  # otherwise the other worker would report it
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    checkpoint = checkpoints.read(path)
    mean = checkpoint.parameters["norm.moving_mean"]
    np.testing.assert_allclose(mean, trainer.experiment.network.norm.moving_mean.asnumpy() + 0.5, rtol=1e-6)

    resumed = Trainer(tiny_experiment(tmp_path), [])
    resumed.collectives = OtherWorker()
    resumed.resume(checkpoint)
    np.testing.assert_array_equal(get_statistics(resumed.experiment.network), seen["own"])
    assert resumed.progress.loss_sum == seen["loss"] and not resumed.averaged and not resumed.extra


def test_statistics_of_other_workers_are_refused_on_resume(tmp_path):
    trainer = Trainer(tiny_experiment(tmp_path), [])
    trainer.extra[Trainer.WORKERS] = np.zeros((2, 7))
    trainer.save(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"its worker_statistics are \(2, 7\), but must be \(1, 7\)"):
        Trainer(tiny_experiment(tmp_path), []).resume(checkpoints.read(tmp_path / "last.ckpt"))


def test_other_data_are_refused_on_resume(tmp_path):
    first = Trainer(tiny_experiment(tmp_path), [])
    first.save(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="was made with 3 steps per epoch, but the data now give 2"):
        Trainer(tiny_experiment(tmp_path, steps_per_epoch=2), []).resume(checkpoints.read(tmp_path / "last.ckpt"))


def fail() -> None:
    raise WriteError("cannot write x: no room")


def test_a_file_that_cannot_be_written_ends_the_run_with_advice_that_fits(tmp_path):
    trainer = Trainer(tiny_experiment(tmp_path), [])
    assert trainer.write(lambda: None)
    with pytest.raises(WriteError, match="^cannot write x: no room; fix that and start again: nothing was saved yet$"):
        trainer.write(fail)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(WriteError, match="no room; fix that and continue with --resume: the last good files"):
        trainer.write(fail)


def test_a_run_may_continue_without_a_file(tmp_path, capsys):
    assert not Trainer(tiny_experiment(tmp_path, on_write_error="go_on"), []).write(fail)
    assert capsys.readouterr().err.startswith("warning: cannot write x: no room; training continues")
