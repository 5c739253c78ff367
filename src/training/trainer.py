"""The training loop: epochs, steps, and calls of callbacks."""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, amp
from pydantic import TypeAdapter, ValidationError

from .. import checkpoints
from ..errors import UserError, WriteError
from ..experiment import Experiment
from ..heartbeat import SAVING_SECONDS, Heartbeat
from ..run_dir import holds_run
from . import sink
from .collectives import Collectives, checksum, get_statistics, is_statistic, set_statistics
from .log import echo
from .step import StepResult, TrainStep, results

# Keys of the config in which the workers of one run may differ, since they can be on different machines.
OF_A_MACHINE = {"data": {"path", "download", "num_parallel_workers"}, "output_dir": True, "init_checkpoint": True}


class Diverged(UserError):
    """The loss, a gradient, a weight or other state is not finite."""


class Stopped(Exception):
    """Training ended early because of a signal, and is saved. `signal` is its number."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@dataclass
class Progress:
    """Progress of a run: all that resuming needs besides weights and optimizer. Can be stored as JSON."""

    epoch: int = 0  # finished epochs
    step: int = 0  # steps taken in the current epoch
    loss_sum: float = 0.0  # over the applied steps of this epoch
    grad_norm_sum: float = 0.0
    skipped: int = 0  # steps of this epoch that overflowed
    replaced: int | None = 0  # undecodable images of this epoch; None: unknown
    best_top1: float = -1.0  # accuracy on the images that choose best.ckpt
    history: list[dict[str, Any]] = field(default_factory=list)  # the metrics of each epoch


class Callback:
    """Acts at moments of training. Each callback does one thing."""

    def on_train_begin(self, trainer: "Trainer") -> None: ...

    def on_epoch_begin(self, trainer: "Trainer") -> None: ...

    def on_step_end(self, trainer: "Trainer", result: StepResult) -> None:
        """A step was taken, or several (`result.steps`) with data sinking."""

    def on_epoch_trained(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """All steps of the epoch are taken, and moving statistics are averaged. Callbacks add to the epoch's `metrics`
        here. They may call `stop_if_asked`; then the run is saved, and calls this again when it continues."""

    def on_epoch_end(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """The epoch is over: its `metrics` are complete and in the history; `progress` is at the next epoch."""

    def before_checkpoint(self, trainer: "Trainer") -> None:
        """`progress` and `extra` are about to be saved inside an epoch: bring them up to date."""

    def on_checkpoint(self, trainer: "Trainer") -> None:
        """Save inside an epoch: every `train.save_every_steps` steps, and before an early end."""

    def on_stop(self, trainer: "Trainer") -> None:
        """Training is about to end early; it was saved."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """The last epoch is over."""

    def on_exit(self, trainer: "Trainer") -> None:
        """Training is over, also by a signal or an error."""


class Trainer:
    """Trains an experiment.

    Args:
        experiment: what to train.
        callbacks: called in this order.
        heartbeat: tells the launcher what this worker does; None: create one.

    Attributes:
        progress (Progress): progress of the run.
        extra (dict): arrays of the current epoch that callbacks keep in the checkpoint.
        stop_signal (int): if set to a signal's number on any worker, training ends on all after the current step.
    """

    WORKERS = "worker_statistics"  # in `extra`, while an epoch is saved before its end

    def __init__(self, experiment: Experiment, callbacks: list[Callback], heartbeat: Heartbeat | None = None):
        self.experiment = experiment
        self.callbacks = callbacks
        self.progress = Progress()
        self.extra: dict[str, np.ndarray] = {}
        self.stop_signal = 0
        self.collectives = Collectives(experiment.worker)
        self.heartbeat = heartbeat or Heartbeat(experiment.worker.rank)
        self.averaged = True  # whether all workers have the same moving statistics
        self.step = TrainStep(
            experiment.network, experiment.loss, experiment.optimizer, experiment.scaler, experiment.worker.size
        )
        if experiment.config.train.sink_size:
            self.step = sink.SunkSteps(self.step)

    def schedule(self, name: str, last: bool = False) -> float:
        """The value in one of the experiment's tables, such as "lr" or "n", at the next step, or at the last applied
        one if `last`."""
        step = self.experiment.optimizer.global_step.asnumpy().item() - last  # skipped steps do not count
        table = self.experiment.tables[name]
        return float(table[min(max(step, 0), len(table) - 1)])

    def fit(self) -> None:
        """Train from `progress` to the last epoch.

        Raises:
            Diverged: the loss, a gradient, a weight or other state is not finite. That state was not saved.
            Stopped: `stop_signal` was set; the callbacks were called first.
        """
        try:
            self._fit()
        finally:
            self._each("on_exit")

    def _fit(self) -> None:
        self.heartbeat.note("comparing the workers", waiting=True)
        self._require_the_same(self.experiment.config.model_dump(exclude=OF_A_MACHINE), "a different config")
        data = self.experiment.data
        images = [self.experiment.steps_per_epoch, data.train_images(), data.test_images(), data.checksum]
        self._require_the_same([images, data.preprocessing.to_dict()], "different data")
        self._require_the_same_state("at the start")
        self._each("on_train_begin")
        while self.progress.epoch < self.experiment.config.train.epochs:
            self._epoch()
        self._each("on_train_end")

    def stop_if_asked(self) -> None:
        """Save and end training if any worker has received a signal. Collective.

        Raises:
            Stopped: a worker has received one.
        """
        # Not stored in stop_signal: that could overwrite a signal that arrives just now.
        stop = self.collectives.agree_on_signal(self.stop_signal)
        if stop:
            self._checkpoint("on_checkpoint", "on_stop")
            raise Stopped(stop)

    def write(self, action: Callable[[], None]) -> bool:
        """Call `action`, which writes a file of the run, and return whether it succeeded.

        Raises:
            WriteError: it failed, and `train.on_write_error` is "stop".
        """
        try:
            action()
        except WriteError as error:
            if self.experiment.config.train.on_write_error == "stop":
                raise WriteError(f"{error}; {self.advice()}") from error
            echo(f"warning: {error}; training continues, and the last good files are unchanged", sys.stderr)
            return False
        return True

    def advice(self) -> str:
        """What to do after a file could not be written."""
        if holds_run(Path(self.experiment.config.output_dir)):
            return "fix that and continue with --resume: the last good files are untouched"
        return "fix that and start again: nothing was saved yet"

    def save(self, path: Path) -> None:
        """Write the checkpoint from which `resume` continues exactly."""
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
        """Take weights, optimizer, progress and the callbacks' arrays from one of our own checkpoints."""
        if checkpoint.state is None:
            raise UserError(f"{checkpoint.path} holds only weights and cannot be resumed; use --init_checkpoint")
        state = dict(checkpoint.state)
        state.pop("workers", None)
        steps = state.pop("steps_per_epoch")
        if steps != self.experiment.steps_per_epoch:
            raise UserError(
                f"{checkpoint.path} was made with {steps} steps per epoch, but the data now give "
                f"{self.experiment.steps_per_epoch}: resume with the same data, batch size and workers"
            )
        scaler = state.pop("scaler", None)
        if (scaler is None) == hasattr(self.experiment.scaler, "counter"):
            raise UserError(f"{checkpoint.path} does not fit the run's config: its amp.loss_scale differs")
        try:
            progress = TypeAdapter(Progress).validate_python(state)
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{checkpoint.path} is damaged: its state: {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            ) from error
        checkpoints.load_network(self.experiment.network, checkpoint)
        checkpoints.load_optimizer(self.experiment.optimizer, checkpoint)
        if scaler is not None:
            value, counter = self.experiment.scaler.scale_value, self.experiment.scaler.counter
            value.set_data(type(value)(np.array(scaler[0], value.asnumpy().dtype)))
            counter.set_data(type(counter)(np.array(scaler[1], counter.asnumpy().dtype)))
        self.progress = progress
        self.extra = dict(checkpoint.extra)
        own = self.extra.pop(self.WORKERS, None)
        if own is not None:
            shape = self.collectives.size, get_statistics(self.experiment.network).size + 1
            if own.shape != shape:
                raise UserError(
                    f"{checkpoint.path} is damaged: its {self.WORKERS} are {own.shape}, but must be {shape}"
                )
            self._set_own(own[self.collectives.rank])

    def _epoch(self) -> None:
        progress = self.progress
        self._each("on_epoch_begin")
        self._steps()
        self.heartbeat.note("averaging statistics", f" of epoch {progress.epoch + 1}", waiting=True)
        self._average()
        self._require_the_same_state(f"after epoch {progress.epoch + 1}")
        self._require_finite()
        self._require_applied_steps()
        metrics = self._metrics()
        self._each("on_epoch_trained", metrics)
        progress.history.append(metrics)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.grad_norm_sum = 0.0
        progress.skipped = progress.replaced = 0
        self.extra.clear()
        self._save("on_epoch_end", metrics)

    def _steps(self) -> None:
        """Take the rest of the epoch's steps."""
        experiment, progress = self.experiment, self.progress
        every = experiment.config.train.save_every_steps
        self.step.set_train()
        if progress.step == experiment.steps_per_epoch:  # the run was stopped during evaluation
            return
        for result in self._results():
            self.averaged = self.collectives.size == 1
            self._account(result)
            self._each("on_step_end", result)
            self.stop_if_asked()
            if every and progress.step // every > (progress.step - result.steps) // every:
                self._checkpoint("on_checkpoint")

    def _checkpoint(self, *moments: str) -> None:
        """Save inside an epoch by calling callbacks for these moments. The file has the means over the workers, for
        evaluation, and each worker's own values, with which training continues here and after `resume`: saving does not
        change the run."""
        self._each("before_checkpoint")
        own = None
        if not self.averaged:
            own = np.append(get_statistics(self.experiment.network), self.progress.loss_sum)
            self.extra[self.WORKERS] = self.collectives.gather(own)
            self._average()
        self._require_finite()
        for moment in moments:
            self._save(moment)
        if own is not None:
            del self.extra[self.WORKERS]
            self._set_own(own)

    def _set_own(self, own: np.ndarray) -> None:
        """Set this worker's moving statistics, and its sum of losses in the current epoch."""
        set_statistics(self.experiment.network, own[:-1])
        self.progress.loss_sum = float(own[-1])
        self.averaged = False

    def _average(self) -> None:
        """Set moving statistics and the epoch's loss to the means over the workers, which saw different images."""
        if self.averaged:
            return
        self.collectives.average_statistics(self.experiment.network)
        self.progress.loss_sum = float(self.collectives.gather([self.progress.loss_sum]).mean())
        self.averaged = True

    def _require_finite(self) -> None:
        """Raise Diverged on all workers if a weight, a moving statistic or the optimizer's state is not finite on one.
        The loss may still be finite: the sign of a NaN is -1."""
        state = self._state()
        bad = next((place for place, value in enumerate(state, 1) if not np.isfinite(value.asnumpy()).all()), 0)
        if place := int(self.collectives.gather([bad]).max()):
            raise Diverged(self._divergence(f"{state[place - 1].name}", self.progress.step))

    def _require_applied_steps(self) -> None:
        """Raise Diverged if every step of the epoch overflowed with a fixed loss scale: a fixed loss scale never
        recovers. A dynamic one halves with each overflow; at 1, the next overflow ends the run."""
        steps, fixed = self.experiment.steps_per_epoch, isinstance(self.experiment.scaler, amp.StaticLossScaler)
        if fixed and self.progress.skipped == steps:
            raise Diverged(
                f"all {steps} steps of epoch {self.progress.epoch + 1} overflowed, so nothing was learned: lower "
                f"amp.loss_scale, which is {self.experiment.config.amp.loss_scale}, or make it dynamic"
            )

    def _save(self, moment: str, *arguments) -> None:
        """Let the callbacks of worker 0 write files, while the others wait."""
        self.heartbeat.note("saving", waiting=self.collectives.rank > 0, seconds=SAVING_SECONDS)
        self._each(moment, *arguments)
        self.heartbeat.note("waiting for worker 0 to save", waiting=True, seconds=SAVING_SECONDS)
        self.collectives.wait()

    def _require_the_same(self, content: Any, difference: str) -> None:
        """Raise UserError on all workers if the content (config or data) of one differs from the others'."""
        outliers = self.collectives.outliers(zlib.crc32(json.dumps(content).encode()))
        if outliers:
            raise UserError(
                f"{self._named(outliers)} {'has' if len(outliers) == 1 else 'have'} {difference} from the others: give "
                "all workers the same arguments and files"
            )

    def _require_the_same_state(self, when: str) -> None:
        """Raise UserError on all workers if one differs from the others in weights, moving statistics, the optimizer or
        the position in the schedules: it no longer trains the same network. Statistics may differ until averaged."""
        progress = self.progress
        scheduled = [np.float32(self.schedule(name)).item() for name in self.experiment.tables]
        place = [progress.epoch, progress.step, *scheduled]
        state = [parameter for parameter in self._state() if self.averaged or not is_statistic(parameter)]
        outliers = self.collectives.outliers(zlib.crc32(repr(place).encode(), checksum(state)))
        if outliers:
            raise UserError(
                f"{self._named(outliers)} {'differs' if len(outliers) == 1 else 'differ'} from the others {when}, in "
                "weights, statistics or schedules: check for different software versions or a faulty device there, and "
                "resume from the last checkpoint"
            )

    def _state(self) -> list[Parameter]:
        """Weights, moving statistics and the optimizer's state."""
        experiment = self.experiment
        return [*experiment.network.get_parameters(), *checkpoints.optimizer_state(experiment.optimizer)]

    def _named(self, ranks: list[int]) -> str:
        return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self.collectives.size}"

    def _results(self) -> Iterator[StepResult]:
        """The results of the epoch's remaining steps. A step is taken when its result is requested."""
        data, sink_size = self.experiment.data, self.experiment.config.train.sink_size
        rest = self.progress.epoch, self.progress.step, self.experiment.steps_per_epoch
        if sink_size is None:
            return results(self.step, self._noted(data.train(*rest)))
        return self._noted(sink.results(self.step, data.train_pipeline(*rest), rest[2] - rest[1], sink_size))

    def _noted(self, steps: Iterable) -> Iterator:
        """The same steps, with notes for the launcher: getting the next one depends only on this worker, processing it
        also on the others."""
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
            raise Diverged(self._divergence(f"the {result.broken}", progress.step + 1))

    def _divergence(self, what: str, step: int) -> str:
        """An error sentence; `step` is the number in the epoch, from 1."""
        epoch = self.progress.epoch
        return (
            f"{what} is not finite at step {epoch * self.experiment.steps_per_epoch + step} (epoch {epoch + 1}, step "
            f"{step}): start again with a lower optimizer.lr, perhaps from the last good weights (--init_checkpoint)"
        )

    def _metrics(self) -> dict[str, Any]:
        """The trainer's metrics of the epoch; learning rate and schedules are those of its last step."""
        progress = self.progress
        scheduled = {name: self.schedule(name, last=True) for name in self.experiment.tables}
        applied = progress.step - progress.skipped
        return {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self.experiment.steps_per_epoch,
            **scheduled,
            "train_loss": progress.loss_sum / applied if applied else None,
            "gradient_norm": progress.grad_norm_sum / applied if applied else None,
            "skipped": progress.skipped,
        }

    def _each(self, moment: str, *arguments) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *arguments)
