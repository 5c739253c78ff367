"""The loop: epochs, steps, and the moments at which callbacks act."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from src import checkpoints
from src.errors import UserError
from src.experiment import Experiment
from src.training import sink
from src.training.distribution import Workers
from src.training.step import StepResult, TrainStep, results


class Diverged(UserError):
    """The loss or a gradient is no longer a number."""


class Stopped(Exception):
    """Training ended early, saved, because of a signal; `signal` is its number."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@dataclass
class Progress:
    """Where a run stands: everything that, with the weights and the optimizer, resuming needs. JSON can hold it."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps taken in the epoch that is under way
    loss_sum: float = 0.0  # over the applied steps of this epoch
    norm_sum: float = 0.0
    skipped: int = 0  # steps of this epoch that overflowed
    best_top1: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)  # a row of metrics an epoch


class Callback:
    """Something that acts at moments of training. Each does one thing."""

    def on_train_begin(self, trainer: "Trainer") -> None: ...

    def on_epoch_begin(self, trainer: "Trainer") -> None: ...

    def on_step_end(self, trainer: "Trainer", result: StepResult) -> None:
        """After every step, or with data sinking after every few; `result.steps` says how many."""

    def on_epoch_end(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        """`row`: the epoch's metrics; add to it."""

    def on_checkpoint(self, trainer: "Trainer") -> None:
        """A moment inside an epoch to save: every so many steps, and before an early end."""

    def on_stop(self, trainer: "Trainer") -> None:
        """Training is about to end before its time."""

    def on_train_end(self, trainer: "Trainer") -> None: ...


class Trainer:
    """Trains an experiment.

    Args:
        experiment: what to train.
        callbacks: act in this order.

    Attributes:
        progress (Progress): where the run stands.
        extra (dict): arrays that callbacks keep in the checkpoint.
        stop_signal (int): set to a signal's number on any worker, it ends training on all after the step under way.
    """

    def __init__(self, experiment: Experiment, callbacks: list[Callback]):
        self.experiment = experiment
        self.callbacks = callbacks
        self.progress = Progress()
        self.extra: dict[str, np.ndarray] = {}
        self.stop_signal = 0
        self.workers = Workers(experiment.worker.size)
        self.step = TrainStep(
            experiment.network, experiment.loss, experiment.optimizer, experiment.scaler, experiment.worker.size
        )
        if experiment.config.train.sink_size:
            self.step = sink.SunkSteps(self.step)

    def schedule(self, name: str, last: bool = False) -> float:
        """One of the experiment's tables, "lr" or "n", at the step that comes next, or at the `last` one applied."""
        step = self.experiment.optimizer.global_step.asnumpy().item() - last  # skipped steps do not count
        table = self.experiment.tables[name]
        return float(table[min(max(step, 0), len(table) - 1)])

    def fit(self) -> None:
        """Trains from `progress` to the last epoch.

        Raises:
            Diverged: the loss is no number.
            Stopped: `stop_signal` was set; the state was handed to the callbacks first.
        """
        self._each("on_train_begin")
        while self.progress.epoch < self.experiment.config.train.epochs:
            self._epoch()
        self._each("on_train_end")

    def save(self, path) -> None:
        """Writes the checkpoint from which `resume` goes on as if nothing had happened."""
        scaler = self.experiment.scaler
        state = asdict(self.progress)
        state["steps_per_epoch"] = self.experiment.steps_per_epoch
        if hasattr(scaler, "counter"):
            state["scaler"] = [float(scaler.scale_value.asnumpy()), int(scaler.counter.asnumpy())]
        checkpoints.save(
            path,
            self.experiment.network,
            self.experiment.optimizer,
            self.experiment.config.model_dump(),
            self.experiment.data.preprocessing,
            state,
            self.extra,
        )

    def resume(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Takes weights, optimizer, progress and the callbacks' arrays from one of our own checkpoints."""
        if checkpoint.state is None:
            raise UserError(f"{checkpoint.path} holds weights alone and cannot be resumed; use --init_checkpoint")
        state = dict(checkpoint.state)
        steps = state.pop("steps_per_epoch")
        if steps != self.experiment.steps_per_epoch:
            raise UserError(
                f"{checkpoint.path} was made with {steps} steps an epoch, but the data now give "
                f"{self.experiment.steps_per_epoch}; resume with the same data, batch size and workers"
            )
        scaler = state.pop("scaler", None)
        checkpoints.load_network(self.experiment.network, checkpoint)
        checkpoints.load_optimizer(self.experiment.optimizer, checkpoint)
        if scaler is not None:
            value, counter = self.experiment.scaler.scale_value, self.experiment.scaler.counter
            value.set_data(type(value)(np.array(scaler[0], value.asnumpy().dtype)))
            counter.set_data(type(counter)(np.array(scaler[1], counter.asnumpy().dtype)))
        self.progress = Progress(**state)
        self.extra = dict(checkpoint.extra)

    def _epoch(self) -> None:
        experiment, progress = self.experiment, self.progress
        self._each("on_epoch_begin")
        self.step.set_train()
        if progress.step < experiment.steps_per_epoch:
            for result in self._results():
                self._account(result)
                self._each("on_step_end", result)
                # Not kept in stop_signal: a signal that comes in this very moment would be overwritten.
                stop = self.workers.agree_on_signal(self.stop_signal)
                every = experiment.config.train.save_every_steps
                if stop or (every and progress.step // every > (progress.step - result.steps) // every):
                    # One worker's file is what all go on from: without the mean, the others' statistics would be lost.
                    self.workers.average_statistics(experiment.network)
                    self._each("on_checkpoint")
                if stop:
                    self._each("on_stop")
                    raise Stopped(stop)
        self.workers.average_statistics(experiment.network)
        row = self._row()
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.norm_sum = 0.0
        progress.skipped = 0
        self._each("on_epoch_end", row)

    def _results(self) -> Iterator[StepResult]:
        """Takes the rest of the epoch's steps."""
        data, sink_size = self.experiment.data, self.experiment.config.train.sink_size
        rest = self.progress.epoch, self.progress.step, self.experiment.steps_per_epoch
        if sink_size is None:
            return results(self.step, data.train(*rest))
        return sink.results(self.step, data.train_pipeline(*rest), rest[2] - rest[1], sink_size)

    def _account(self, result: StepResult) -> None:
        progress = self.progress
        progress.step += result.steps
        progress.skipped += result.skipped
        progress.loss_sum += result.loss_sum
        progress.norm_sum += result.norm_sum
        if result.broken:
            number = progress.epoch * self.experiment.steps_per_epoch + progress.step + 1
            raise Diverged(
                f"the {result.broken} is no finite number at step {number} (epoch {progress.epoch + 1}, step "
                f"{progress.step + 1}): lower optimizer.lr or resume from the last checkpoint with another "
                "recipe"
            )

    def _row(self) -> dict[str, Any]:
        """The epoch's own metrics; learning rate and schedules are those of its last step."""
        progress = self.progress
        scheduled = {name: self.schedule(name, last=True) for name in self.experiment.tables}
        applied = progress.step - progress.skipped
        return {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self.experiment.steps_per_epoch,
            **scheduled,
            "train_loss": progress.loss_sum / applied if applied else math.nan,
            "gradient_norm": progress.norm_sum / applied if applied else math.nan,
            "skipped": progress.skipped,
        }

    def _each(self, moment: str, *arguments) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *arguments)
