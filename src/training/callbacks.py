"""Callbacks of the trainer. Each does one thing.

Callbacks add to an epoch's metrics in `on_epoch_trained` and read them in `on_epoch_end` with `.get`. So any callback
can be left out, and their order does not matter.
"""

import contextlib
import csv
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from ..binary import BinaryLayer
from ..errors import UserError, WriteError
from ..files import write_atomically, write_text
from ..run_dir import BEST, CHOSEN_ON, CURVES, EPOCH, LAST, METRICS, epoch_checkpoints
from .curves import plot_curves
from .evaluation import evaluate
from .log import echo
from .step import StepResult
from .trainer import Callback, Trainer


class ProgressBar(Callback):
    """Show a bar for each epoch with time left, images/s, loss and schedules."""

    bar: tqdm | None = None

    def on_epoch_begin(self, trainer: Trainer) -> None:
        config = trainer.experiment.config
        self.bar = tqdm(
            total=trainer.experiment.steps_per_epoch,
            initial=trainer.progress.step,
            unit="step",
            desc=f"epoch {trainer.progress.epoch + 1}/{config.train.epochs}",
            mininterval=0.5 if sys.stderr.isatty() else 30,  # seconds; fewer lines in a file
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self.images_per_step = config.data.batch_size * trainer.experiment.worker.size
        self.started, self.first_step = time.perf_counter(), trainer.progress.step

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        rate = (trainer.progress.step - self.first_step) * self.images_per_step / (time.perf_counter() - self.started)
        scheduled = "".join(f", {name} {trainer.schedule(name):.4g}" for name in trainer.experiment.tables)
        loss = f"loss {result.loss:.3f}" if result.applied else "overflow"
        self.bar.set_postfix_str(f"{loss}, {rate:.0f} images/s{scheduled}", refresh=False)
        self.bar.update(result.steps)

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.bar.close()

    def on_exit(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.bar.close()


class Throughput(Callback):
    """Add the seconds of the epoch's steps, and its trained images per second without the first step, which
    compiles."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        self.started = self.last = time.perf_counter()
        self.first: tuple[float, int] | None = None

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last, trainer.progress.step

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        metrics["seconds"] = round(self.last - self.started, 1)
        images = trainer.experiment.config.data.batch_size * trainer.experiment.worker.size
        steps = trainer.experiment.steps_per_epoch - self.first[1] if self.first else 0
        metrics["images_per_second"] = round(steps * images / (self.last - self.first[0]), 1) if steps else None


class FlipRatio(Callback):
    """Add the flip ratio: the share of binary weights that changed sign in the epoch."""

    KEY = "epoch_start_signs"

    def on_epoch_begin(self, trainer: Trainer) -> None:
        signs = np.packbits(binary_signs(trainer))
        kept = trainer.extra.get(self.KEY)
        if trainer.progress.step == 0 or kept is None:
            trainer.extra[self.KEY] = signs
        elif (kept.dtype, kept.shape) != (signs.dtype, signs.shape):
            raise UserError(
                f"the checkpoint that this run continues from is damaged: its {self.KEY} are {kept.dtype} {kept.shape}"
                f", but must be {signs.dtype} {signs.shape}"
            )

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        signs = binary_signs(trainer)
        before = np.unpackbits(trainer.extra[self.KEY], count=signs.size)
        metrics["flip_ratio"] = float(np.mean(before != signs)) if signs.size else 0.0


def binary_signs(trainer: Trainer) -> np.ndarray:
    """Whether each weight of the binary layers is positive: uint8, all layers in a row."""
    weights = [
        cell.weight_quantizer.standardize(cell.weight).asnumpy().ravel()
        for _, cell in trainer.experiment.network.cells_and_names()
        if isinstance(cell, BinaryLayer) and cell.weight_quantizer is not None
    ]
    return (np.concatenate(weights) > 0).astype(np.uint8) if weights else np.zeros(0, np.uint8)


class UndecodableImages(Callback):
    """Add the number of training images of the epoch, over all workers, that could not be decoded and were replaced.
    None if it is unknown because of data sinking."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        self.first_step, self.before = trainer.progress.step, trainer.progress.replaced

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.progress.step == trainer.experiment.steps_per_epoch:  # for a run that is stopped during evaluation
            self.count(trainer)

    def before_checkpoint(self, trainer: Trainer) -> None:
        self.count(trainer)

    def count(self, trainer: Trainer) -> None:
        """Add the images replaced by this process to those replaced before the run was resumed."""
        if trainer.progress.step > self.first_step:
            own = trainer.experiment.data.replaced
            found = None if own is None else int(trainer.collectives.gather([own]).sum())
            trainer.progress.replaced = None if None in (found, self.before) else self.before + found

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        metrics["replaced_images"] = trainer.progress.replaced


class Evaluate(Callback):
    """Add loss and accuracy on the test images, unless `train.eval_test` is false, and on the held-out ones if any.

    Evaluates after every `train.eval_every` epochs and after the last. Each worker takes its part of the images. A
    signal ends the evaluation early; it is repeated when the run continues. The column `CHOSEN_ON` names the images
    that choose the best checkpoint: "holdout" or "test".
    """

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        train, data = trainer.experiment.config.train, trainer.experiment.data
        epoch = trainer.progress.epoch + 1
        if epoch % train.eval_every and epoch < train.epochs:
            return
        metrics[CHOSEN_ON] = "test"
        if trainer.experiment.config.data.holdout:
            metrics[CHOSEN_ON] = "holdout"
            self.evaluate(trainer, metrics, "holdout", data.validation, data.validation_batches())
        if train.eval_test:
            self.evaluate(trainer, metrics, "test", data.test, data.test_batches())
        else:
            metrics.update(test_top1=None, test_top5=None)  # columns that metrics.csv always has

    def evaluate(
        self,
        trainer: Trainer,
        metrics: dict[str, Any],
        name: str,
        open_images: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        count: int,
    ) -> None:
        result = evaluate(
            trainer.experiment.network,
            self.batches(trainer, name, open_images, count),
            trainer.experiment.data.num_classes,
            collectives=trainer.collectives,
        )
        metrics.update({f"{name}_loss": result.loss, f"{name}_top1": result.top1, f"{name}_top5": result.top5})

    def batches(
        self, trainer: Trainer, name: str, open_images: Callable[[], Iterator[tuple[Tensor, Tensor]]], count: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's batches. A worker with fewer than `count` batches waits for the others."""
        trainer.heartbeat.note(f"opening the {name} images")
        own = open_images()
        for number in range(count):
            trainer.heartbeat.note("evaluating", f" batch {number + 1} after epoch {trainer.progress.epoch + 1}")
            batch = next(own, None)
            if batch is not None:
                yield batch
            trainer.heartbeat.note("waiting for the others' evaluation", waiting=True)
            trainer.stop_if_asked()


class EpochLog(Callback):
    """Print a line for each epoch with those of `COLUMNS` and `COUNTS` that its metrics have."""

    COLUMNS = {
        "train_loss": "loss {:.4f}",
        "test_top1": "test accuracy {:.2%}",
        "holdout_top1": "held-out accuracy {:.2%}",
        "flip_ratio": "flip ratio {:.4f}",
        "gradient_norm": "gradient norm {:.3g}",
        "images_per_second": "{} images/s",
    }
    COUNTS = {"skipped": "{} steps skipped for overflow", "replaced_images": "{} undecodable images replaced"}

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        found = [text.format(metrics[name]) for name, text in self.COLUMNS.items() if metrics.get(name) is not None]
        found += [text.format(metrics[name]) for name, text in self.COUNTS.items() if metrics.get(name)]
        echo(f"epoch {metrics['epoch']}: {', '.join(found)}")


class SaveCheckpoints(Callback):
    """Write last.ckpt after every epoch, before an early end and every `train.save_every_steps` steps; write best.ckpt;
    keep the checkpoints of the latest epochs.

    Args:
        folder: the run folder.
        went_back: whether the run continues from a kept epoch's checkpoint instead of last.ckpt.
    """

    def __init__(self, folder: Path, went_back: bool = False):
        self.folder = folder
        self.last = folder / LAST
        self.best = folder / BEST
        self.went_back = went_back
        self.saved = True

    def on_train_begin(self, trainer: Trainer) -> None:
        progress, count = trainer.progress, trainer.experiment.config.train.keep
        lost_best = progress.best_top1 >= 0 and not self.best.is_file()
        if lost_best:
            echo(f"warning: {self.best} is missing: the best of the coming epochs is saved there", sys.stderr)
            progress.best_top1 = -1.0
        if self.went_back or lost_best:  # update last.ckpt now, in case the run is killed soon
            self.on_checkpoint(trainer)
        if not self.went_back and progress.epoch and progress.step == 0:
            # The run may have been killed before it kept this epoch.
            trainer.write(lambda: self.keep(progress.epoch))
            self.remove(lambda number: number <= progress.epoch - count)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.saved = trainer.write(lambda: trainer.save(self.last))

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        progress, count = trainer.progress, trainer.experiment.config.train.keep
        top1 = metrics.get(f"{metrics.get(CHOSEN_ON)}_top1")
        if top1 is not None and top1 > progress.best_top1:
            before, progress.best_top1 = progress.best_top1, top1
            # Before last.ckpt: a run killed in between repeats the epoch, including this.
            if not trainer.write(lambda: trainer.save(self.best)):
                progress.best_top1 = before
        self.saved = trainer.write(lambda: trainer.save(self.last))
        if self.saved and trainer.write(lambda: self.keep(progress.epoch)):
            # After a run went back, later epochs are trained again.
            self.remove(lambda number: not progress.epoch - count < number <= progress.epoch)

    def keep(self, epoch: int) -> None:
        """Copy last.ckpt to the file of that epoch.

        Raises:
            WriteError: it cannot be written.
        """
        write_atomically(self.folder / EPOCH.format(epoch), lambda partial: shutil.copyfile(self.last, partial))

    def remove(self, unwanted: Callable[[int], bool]) -> None:
        """Delete the checkpoints of the epochs that are `unwanted`."""
        for number, path in epoch_checkpoints(self.folder).items():
            if unwanted(number):
                with contextlib.suppress(OSError):
                    path.unlink()

    def on_stop(self, trainer: Trainer) -> None:
        self.on_train_end(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if not self.saved and not trainer.write(lambda: trainer.save(self.last)):
            raise WriteError(
                f"the run ends, but its last state could not be written to {self.last}: {trainer.advice()}"
            )


class WriteMetrics(Callback):
    """Write the run's history to metrics.csv, a row for each epoch, and draw it in curves.png."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_begin(self, trainer: Trainer) -> None:
        if trainer.progress.history:  # the run may have been killed before it wrote the last row
            self.write(trainer)

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        history = trainer.progress.history
        trainer.write(lambda: write_text(self.folder / METRICS, as_csv(history)))
        try:
            plot_curves(history, list(trainer.experiment.tables), self.folder / CURVES)
        except Exception as error:  # any error: a run must not end because of a figure
            echo(f"warning: {CURVES} cannot be drawn: {error}; training continues", sys.stderr)


def as_csv(history: list[dict[str, Any]]) -> str:
    """CSV with every column that any row has. A value is empty if its row lacks the column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(history))
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def columns(history: list[dict[str, Any]]) -> list[str]:
    """The keys of all rows. A key that first appears in a later row is placed after the key before it in that row."""
    names: list[str] = []
    for metrics in history:
        place = 0
        for name in metrics:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return names


class StopOnSignal(Callback):
    """On SIGTERM, SIGHUP or Ctrl-C, finish the current step, save the run and end. A second signal ends it at once.
    SIGHUP stays ignored under nohup."""

    ECHO_SECONDS = 1.0  # timeout(1) sends its signal twice in a row: to the process, then to its group

    def on_train_begin(self, trainer: Trainer) -> None:
        def handle(number: int, frame) -> None:
            now = time.monotonic()
            if trainer.stop_signal:
                if now - self.received > self.ECHO_SECONDS:
                    sys.exit(128 + number)
                return
            self.received = now
            trainer.stop_signal = number
            echo(f"{signal.Signals(number).name}: finishing the step, saving, ending", sys.stderr)

        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, handle)
