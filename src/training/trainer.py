"""The loop: epochs, steps, and the moments at which callbacks act."""

import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .. import checkpoints, cli
from ..errors import UserError, WriteError
from ..experiment import Experiment
from ..heartbeat import SAVING_SECONDS, Heartbeat
from . import sink
from .collectives import Collectives, checksum
from .step import StepResult, TrainStep, results

# Of the config: what workers of one run may differ in, since they can be on different machines.
OF_A_MACHINE = {"data": {"path", "download", "num_parallel_workers"}, "output_dir": True, "init_checkpoint": True}


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
    grad_norm_sum: float = 0.0
    skipped: int = 0  # steps of this epoch that overflowed
    replaced: int = 0  # pictures of this epoch that others came in place of, once all its steps are taken
    best_top1: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)  # a metrics of metrics an epoch


class Callback:
    """Something that acts at moments of training. Each does one thing."""

    def on_train_begin(self, trainer: "Trainer") -> None: ...

    def on_epoch_begin(self, trainer: "Trainer") -> None: ...

    def on_step_end(self, trainer: "Trainer", result: StepResult) -> None:
        """After every step, or with data sinking after every few; `result.steps` says how many."""

    def on_epoch_trained(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """All steps of the epoch are taken, and moving statistics are averaged; add to its `metrics`. Here a callback
        may call `stop_if_asked`; then the run is saved as it stands, and comes here again when it goes on."""

    def on_epoch_end(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """The epoch is over, and `progress` stands at the next one. `metrics`: its metrics; add to it."""

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
        heartbeat: tells the launcher what this worker does; None: a new one.

    Attributes:
        progress (Progress): where the run stands.
        extra (dict): arrays that callbacks keep in the checkpoint.
        stop_signal (int): set to a signal's number on any worker, it ends training on all after the step under way.
    """

    def __init__(self, experiment: Experiment, callbacks: list[Callback], heartbeat: Heartbeat | None = None):
        self.experiment = experiment
        self.callbacks = callbacks
        self.progress = Progress()
        self.extra: dict[str, np.ndarray] = {}
        self.stop_signal = 0
        self.collectives = Collectives(experiment.worker)
        self.heartbeat = heartbeat or Heartbeat(experiment.worker.rank)
        self.averaged = True  # the workers start, or go on, with the same
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
        self.heartbeat.note("comparing the workers", waiting=True)
        self._require_the_same("config", self.experiment.config.model_dump(exclude=OF_A_MACHINE))
        data = self.experiment.data
        images = [self.experiment.steps_per_epoch, data.train_images(), data.test_images()]
        self._require_the_same("data", [images, data.preprocessing.to_dict()])
        self._require_the_same_state("at the start")
        self._each("on_train_begin")
        while self.progress.epoch < self.experiment.config.train.epochs:
            self._epoch()
        self._each("on_train_end")

    def stop_if_asked(self) -> None:
        """Ends training, saved, if any worker has had a signal; collective.

        Raises:
            Stopped: one had.
        """
        # Not kept in stop_signal: a signal that comes in this very moment would be overwritten.
        stop = self.collectives.agree_on_signal(self.stop_signal)
        if stop:
            self._checkpoint()
            self._each("on_stop")
            raise Stopped(stop)

    def write(self, action: Callable[[], None]) -> bool:
        """Calls `action`, which writes a file of the run, and returns whether it could; `train.on_write_error` says
        what becomes of the run if it could not.

        Raises:
            WriteError: it could not, and the run is to stop.
        """
        try:
            action()
        except WriteError as error:
            if self.experiment.config.train.on_write_error == "stop":
                raise WriteError(
                    f"{error}; mend that and go on with --resume: the last good files are untouched"
                ) from error
            cli.echo(f"warning: {error}; training goes on, and the last good files are untouched", sys.stderr)
            return False
        return True

    def save(self, path) -> None:
        """Writes the checkpoint from which `resume` goes on as if nothing had happened."""
        scaler = self.experiment.scaler
        state = asdict(self.progress)
        state["steps_per_epoch"] = self.experiment.steps_per_epoch
        state["workers"] = self.collectives.size
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
        state.pop("workers", None)
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
                self.averaged = False
                self._account(result)
                self._each("on_step_end", result)
                self.stop_if_asked()
                every = experiment.config.train.save_every_steps
                if every and progress.step // every > (progress.step - result.steps) // every:
                    self._checkpoint()
        self.heartbeat.note("averaging statistics", f" of epoch {progress.epoch + 1}", waiting=True)
        self._average()
        self._require_the_same_state(f"after epoch {progress.epoch + 1}")
        metrics = self._metrics()
        self._each("on_epoch_trained", metrics)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.grad_norm_sum = 0.0
        progress.skipped = progress.replaced = 0
        self._save("on_epoch_end", metrics)

    def _checkpoint(self) -> None:
        """Saves inside an epoch."""
        self._average()
        self._save("on_checkpoint")

    def _average(self) -> None:
        """Makes moving statistics and this epoch's loss those of all workers' images, once after the steps under way:
        one worker's file is what all go on from, and without the mean the others' would be lost."""
        if self.averaged:
            return
        self.collectives.average_statistics(self.experiment.network)
        self.progress.loss_sum = float(self.collectives.gather([self.progress.loss_sum]).mean())
        self.averaged = True

    def _save(self, moment: str, *arguments) -> None:
        """A moment at which worker 0 writes files, and the others wait for it."""
        self.heartbeat.note("saving", waiting=self.collectives.rank > 0, seconds=SAVING_SECONDS)
        self._each(moment, *arguments)
        self.heartbeat.note("waiting for worker 0 to save", waiting=True, seconds=SAVING_SECONDS)
        self.collectives.wait()

    def _require_the_same(self, what: str, content: Any) -> None:
        """UserError, on all workers, if one was started with another config, or has other data, than the rest."""
        outliers = self.collectives.outliers(zlib.crc32(json.dumps(content).encode()))
        if outliers:
            raise UserError(
                f"{self._named(outliers)} has another {what} than the others: give all the same arguments and files"
            )

    def _require_the_same_state(self, when: str) -> None:
        """UserError, on all workers, if one differs from the rest in weights, moving statistics, the optimizer or its
        place in the schedules: it no longer trains the same network."""
        progress, experiment = self.progress, self.experiment
        scheduled = [np.float32(self.schedule(name)).item() for name in experiment.tables]
        place = [progress.epoch, progress.step, *scheduled]
        state = [*experiment.network.get_parameters(), *checkpoints.optimizer_state(experiment.optimizer)]
        outliers = self.collectives.outliers(zlib.crc32(repr(place).encode(), checksum(state)))
        if outliers:
            raise UserError(
                f"{self._named(outliers)} differs from the others {when}, in weights, statistics or schedules: look "
                "for other versions or a broken device there, and resume from the last checkpoint"
            )

    def _named(self, ranks: list[int]) -> str:
        return f"worker {', '.join(map(str, ranks))} of {self.collectives.size}"

    def _results(self) -> Iterator[StepResult]:
        """Takes the rest of the epoch's steps."""
        data, sink_size = self.experiment.data, self.experiment.config.train.sink_size
        rest = self.progress.epoch, self.progress.step, self.experiment.steps_per_epoch
        if sink_size is None:
            return results(self.step, self._noted(data.train(*rest)))
        return self._noted(sink.results(self.step, data.train_pipeline(*rest), rest[2] - rest[1], sink_size))

    def _noted(self, steps: Iterable) -> Iterator:
        """The same, told to the launcher: getting the next one may take long by itself, what is done with it because
        of the others."""
        kind = "reading images" if self.experiment.config.train.sink_size is None else "steps"
        where = f" of epoch {self.progress.epoch + 1}"
        self.heartbeat.note(kind, where, waiting=kind == "steps")
        for step in steps:
            self.heartbeat.note("step", f" {self.progress.step + 1}{where}", waiting=True)
            yield step
            self.heartbeat.note(kind, where, waiting=kind == "steps")

    def _account(self, result: StepResult) -> None:
        progress = self.progress
        progress.step += result.steps
        progress.skipped += result.skipped
        progress.loss_sum += result.loss_sum
        progress.grad_norm_sum += result.grad_norm_sum
        if result.broken:
            number = progress.epoch * self.experiment.steps_per_epoch + progress.step + 1
            raise Diverged(
                f"the {result.broken} is no finite number at step {number} (epoch {progress.epoch + 1}, step "
                f"{progress.step + 1}): lower optimizer.lr or resume from the last checkpoint with another "
                "recipe"
            )

    def _metrics(self) -> dict[str, Any]:
        """The epoch's own metrics; learning rate and schedules are those of its last step."""
        progress = self.progress
        scheduled = {name: self.schedule(name, last=True) for name in self.experiment.tables}
        applied = progress.step - progress.skipped
        return {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self.experiment.steps_per_epoch,
            **scheduled,
            "train_loss": progress.loss_sum / applied if applied else math.nan,
            "gradient_norm": progress.grad_norm_sum / applied if applied else math.nan,
            "skipped": progress.skipped,
        }

    def _each(self, moment: str, *arguments) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *arguments)
