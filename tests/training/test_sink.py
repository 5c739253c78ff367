"""Data sinking, with a mock of the device's queue that passes the same batches."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, nn, ops

from src.checkpoints import read
from src.config import load_config
from src.data import open_dataset
from src.experiment import Experiment
from src.runtime import Worker
from src.training import sink
from src.training.step import TrainStep, results
from src.training.trainer import Callback, Diverged, Trainer
from tests.helpers.steps import LABELS, Small, images, make, weights, with_infinity

pytestmark = pytest.mark.usefixtures("graph_mode")  # there is no other with data sinking


GOOD, BAD = images, lambda seed: with_infinity()


class Root(nn.Cell):
    """Logits +-sqrt(w x): finite at x = 0, where the gradient is 0 / 0."""

    def __init__(self):
        super().__init__()
        self.w = ms.Parameter(Tensor([1.0], ms.float32))

    def construct(self, x):
        root = ops.sqrt(self.w * x)
        return ops.concat((root, -root), 1)


def batches(*kinds) -> list:
    return [(kind(seed), Tensor(LABELS)) for seed, kind in enumerate(kinds)]


def sunk(step: TrainStep) -> sink.SunkSteps:
    return sink.SunkSteps(step).set_train()


def totals_of(cell: sink.SunkSteps, given: list) -> list[float]:
    totals = ops.zeros(5, ms.float32)
    for one in given:
        totals = cell(*one, totals)
    return totals.asnumpy().tolist()


def on_the_host(step: TrainStep, given: list) -> list[float]:
    """The totals of the steps up to the first that is broken."""
    totals = [0.0] * 5
    for result in results(step, given):
        news = (
            result.loss_sum,
            result.grad_norm_sum,
            result.applied,
            result.skipped,
            sink.NON_FINITE.index(result.broken),
        )
        totals = [total + new for total, new in zip(totals, news, strict=True)]
        if result.broken:
            break
    return totals


def twice(network, scaler=lambda: None) -> list[TrainStep]:
    """Two equal steps."""
    steps = []
    for _ in range(2):
        ms.set_seed(1)
        steps.append(make(network(), scaler()))
    return steps


def assert_same_state(first: TrainStep, second: TrainStep) -> None:
    for name, value in weights(first).items():
        np.testing.assert_array_equal(weights(second)[name], value, err_msg=name)
    for ours, other in zip(first.optimizer.moments, second.optimizer.moments, strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), other.asnumpy())
    assert first.optimizer.global_step.asnumpy() == second.optimizer.global_step.asnumpy()


def test_the_totals_are_what_the_host_adds_up_and_schedules_continue():
    """n and alpha change at every step, so that weights to the bit tell which row a step read."""
    host, step = twice(Small)
    cell, given = sunk(step), batches(GOOD, GOOD, GOOD, GOOD)
    np.testing.assert_allclose(totals_of(cell, given), on_the_host(host, given), rtol=1e-6)
    assert_same_state(step, host)
    assert len(cell.compile_cache) == 1


def test_once_a_loss_is_not_finite_the_weights_stay_the_last_good_ones():
    host, step = twice(lambda: Small(noise=False))
    totals = totals_of(sunk(step), batches(GOOD, GOOD, BAD, GOOD, BAD))
    np.testing.assert_allclose(totals[:4], on_the_host(host, batches(GOOD, GOOD))[:4], rtol=1e-6)
    assert sink.NON_FINITE[int(totals[4])] == "loss"
    assert_same_state(step, host)


def test_weights_stay_the_last_good_ones_once_a_gradient_is_not_finite():
    optimizer = nn.Momentum((network := Root()).trainable_params(), 0.1, 0.9)
    step = TrainStep(network, nn.CrossEntropyLoss(), optimizer)
    cell, labels = sunk(step), Tensor([0, 1], ms.int32)
    before = totals_of(cell, [(Tensor([[1.0], [2.0]]), labels)])
    weight = network.w.asnumpy().copy()
    after = totals_of(cell, [(Tensor([[1.0], [0.0]]), labels), (Tensor([[1.0], [2.0]]), labels)])
    assert sink.NON_FINITE[int(before[4])] is None and before[2] == 1
    assert after == [0, 0, 0, 0, sink.NON_FINITE.index("gradient")]
    np.testing.assert_array_equal(network.w.asnumpy(), weight)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param((GOOD, BAD, GOOD), id="an overflow", marks=pytest.mark.slow),
        pytest.param((BAD, BAD, GOOD), id="no scale helps"),
    ],
)
def test_an_overflow_is_skipped_as_long_as_the_scale_can_fall(kinds):
    """From 4, the first overflow leaves a scale of 2, the second of 1, which is no longer a scale."""
    host, step = twice(lambda: Small(noise=False), lambda: amp.DynamicLossScaler(4, 2, 1000))
    given = batches(*kinds)
    np.testing.assert_allclose(totals_of(sunk(step), given), on_the_host(host, given), rtol=1e-6)
    assert_same_state(step, host)


@pytest.fixture
def queue(monkeypatch) -> SimpleNamespace:
    """Replacement of the device's queue: endless rounds of a pipeline. Counts the queues open now and opened so far."""
    state = SimpleNamespace(open=0, opened=0)

    def data_sink(take_step, pipeline, sink_size):
        assert sink_size == 1
        state.open, state.opened = state.open + 1, state.opened + 1
        rows = (row for _ in iter(int, 1) for row in pipeline.create_tuple_iterator(num_epochs=1))

        def release():
            state.open -= 1

        pipeline.__transfer_dataset__ = SimpleNamespace(stop_send=lambda: None, release=release)
        return lambda: take_step(*next(rows))

    monkeypatch.setattr(ms, "data_sink", data_sink)
    return state


class Watch(Callback):
    """Notes how many steps each look of the host told of, where checkpoints were due, and the epochs' rows."""

    def __init__(self, checkpoint=None):
        self.checkpoint = checkpoint
        self.looks, self.saves, self.rows = [], [], []

    def on_step_end(self, trainer, result):
        self.looks.append(result.steps)

    def on_checkpoint(self, trainer):
        self.saves.append(trainer.progress.step)
        if self.checkpoint is not None and not self.checkpoint.exists():
            trainer.save(self.checkpoint)

    def on_epoch_end(self, trainer, row):
        self.rows.append(row)


def trainer_of(sink_size: int | None, watch: Watch, scaler: amp.LossScaler | None = None) -> Trainer:
    """Two epochs of 5 steps of a linear network on digits."""
    ms.set_seed(0)
    config = load_config("configs/digits.yaml", {"train.sink_size": sink_size, "train.save_every_steps": 2})
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    network = nn.SequentialCell(nn.Flatten(), nn.Dense(3 * 32 * 32, 10))
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    data = open_dataset("digits", batch_size=8)
    tables = {"lr": np.arange(10, dtype=np.float32)}
    experiment = Experiment(config, Worker(), data, network, nn.CrossEntropyLoss(), optimizer, scaler, 5, tables)
    return Trainer(experiment, [watch])


def spoil_third_batch(trainer: Trainer) -> None:
    """Makes the pixels of the first epoch's third batch NaN."""
    data = trainer.experiment.data
    third, pipeline = [batch.asnumpy() for batch, _ in data.train(0, stop=3)][2], data.train_pipeline

    def spoil(batch):
        return batch * np.float32(np.nan if np.array_equal(batch, third) else 1)

    data.train_pipeline = lambda *place: pipeline(*place).map(spoil, "image")


def final(trainer: Trainer) -> np.ndarray:
    return trainer.experiment.network[1].weight.asnumpy()


@pytest.mark.parametrize(
    ("sink_size", "looks", "saves"),
    [
        (2, [2, 2, 1], [2, 4]),
        pytest.param(3, [3, 2], [3, 5], marks=pytest.mark.slow),
        pytest.param(100, [5], [5], marks=pytest.mark.slow),
    ],
)
def test_a_run_with_sinking_is_the_run_without(queue, sink_size, looks, saves):
    """Looks, and what depends on them, come every `sink_size` steps and at an epoch's end; results are the same."""
    host, other = Watch(), Watch()
    expected, got = trainer_of(None, host), trainer_of(sink_size, other)
    expected.fit()
    got.fit()
    np.testing.assert_array_equal(final(got), final(expected))
    assert (other.looks, other.saves) == (2 * looks, 2 * saves)
    assert (host.looks, host.saves) == (10 * [1], 2 * [2, 4])
    for ours, theirs in zip(other.rows, host.rows, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)
    assert (queue.opened, queue.open) == (2, 0)  # one an epoch, and none left
    assert len(got.step.compile_cache) == 1


def test_a_run_with_sinking_continues_in_the_middle_of_an_epoch(queue, tmp_path):
    whole = trainer_of(2, Watch(tmp_path / "last.ckpt"))
    whole.fit()
    resumed = trainer_of(2, watch := Watch())
    resumed.resume(read(tmp_path / "last.ckpt"))
    resumed.fit()
    assert watch.looks == [2, 1, 2, 2, 1]
    np.testing.assert_array_equal(final(resumed), final(whole))


def test_a_broken_step_is_named_by_its_own_number(queue):
    """The host learns of it at the end of the sink, and the weights are those before it."""
    trainer = trainer_of(4, Watch())
    spoil_third_batch(trainer)
    with pytest.raises(Diverged, match=r"the loss is not finite at step 3 \(epoch 1, step 3\)"):
        trainer.fit()
    assert np.isfinite(final(trainer)).all()
    assert trainer.experiment.optimizer.global_step.asnumpy() == 2


def test_the_schedules_that_are_reported_wait_for_skipped_steps(queue):
    trainer = trainer_of(3, watch := Watch(), amp.StaticLossScaler(64))
    spoil_third_batch(trainer)
    trainer.fit()
    assert [row["skipped"] for row in watch.rows] == [1, 0]
    assert [row["lr"] for row in watch.rows] == [3, 8]
