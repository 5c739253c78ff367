"""What happens around the steps: each callback does one thing."""

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

from .. import cli
from ..binary import BinaryLayer
from ..errors import WriteError
from ..files import write_atomically, write_text
from ..run_dir import BEST, CURVES, EPOCH, LAST, METRICS, epoch_checkpoints
from .evaluation import evaluate
from .step import StepResult
from .trainer import Callback, Trainer


class Stream:
    """stderr, whose loss is no reason to end a run: nobody reads it any more, or its disk is full."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    @property
    def encoding(self) -> str:
        return sys.stderr.encoding

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class ProgressBar(Callback):
    """A bar an epoch with time left, images/s, loss and schedules."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        config = trainer.experiment.config
        # Into a file, a line every half a minute is enough.
        self.bar = tqdm(
            total=trainer.experiment.steps_per_epoch,
            initial=trainer.progress.step,
            unit="step",
            desc=f"epoch {trainer.progress.epoch + 1}/{config.train.epochs}",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
            file=Stream(),
        )
        self.images_per_step = config.data.batch_size * trainer.experiment.worker.size
        self.started, self.first_step = time.perf_counter(), trainer.progress.step

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        rate = (trainer.progress.step - self.first_step) * self.images_per_step / (time.perf_counter() - self.started)
        scheduled = "".join(f", {name} {trainer.schedule(name):.4g}" for name in trainer.experiment.tables)
        loss = f"loss {result.loss:.3f}" if result.applied else "overflow"
        self.bar.set_postfix_str(f"{loss}, {rate:.0f} images/s{scheduled}", refresh=False)
        self.bar.update(result.steps)

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.bar.close()

    def on_stop(self, trainer: Trainer) -> None:
        self.bar.close()


class Throughput(Callback):
    """Adds the epoch's seconds and trained images per second, its first step (which compiles) left out of the rate."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        self.started = time.perf_counter()
        self.first: tuple[float, int] | None = None

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last, trainer.progress.step

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        metrics["seconds"] = round(time.perf_counter() - self.started, 1)
        images = trainer.experiment.config.data.batch_size * trainer.experiment.worker.size
        steps = trainer.experiment.steps_per_epoch - self.first[1] if self.first else 0
        metrics["images_per_second"] = round(steps * images / (self.last - self.first[0]), 1) if steps else float("nan")


class FlipRatio(Callback):
    """Adds the share of binary weights whose sign changed over the epoch: the pulse of a binary network."""

    KEY = "epoch_start_signs"

    def on_epoch_begin(self, trainer: Trainer) -> None:
        if trainer.progress.step == 0 or self.KEY not in trainer.extra:
            trainer.extra[self.KEY] = np.packbits(binary_signs(trainer))

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        signs = binary_signs(trainer)
        before = np.unpackbits(trainer.extra.pop(self.KEY), count=signs.size)
        metrics["flip_ratio"] = float(np.mean(before != signs)) if signs.size else 0.0


def binary_signs(trainer: Trainer) -> np.ndarray:
    """Whether each weight of the binary layers is positive, uint8, all layers in a metrics."""
    weights = [
        cell.weight_quantizer.standardize(cell.weight).asnumpy().ravel()
        for _, cell in trainer.experiment.network.cells_and_names()
        if isinstance(cell, BinaryLayer) and cell.weight_quantizer is not None
    ]
    return (np.concatenate(weights) > 0).astype(np.uint8) if weights else np.zeros(0, np.uint8)


class UndecodableImages(Callback):
    """Adds how many training images of the epoch could not be decoded and were replaced by others, of all workers; None
    where data sinking hides it."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        self.first_step = trainer.progress.step

    def on_checkpoint(self, trainer: Trainer) -> None:
        if trainer.progress.step == trainer.experiment.steps_per_epoch:
            self.count(trainer)

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.count(trainer)
        metrics["replaced_images"] = trainer.progress.replaced

    def count(self, trainer: Trainer) -> None:
        """After the epoch's last step."""
        if trainer.progress.step > self.first_step:  # else a stopped run goes on with the evaluation, and knows it
            mine = trainer.experiment.data.replaced
            trainer.progress.replaced = None if mine is None else int(trainer.collectives.gather([mine]).sum())


class Evaluate(Callback):
    """Adds the test set's loss and accuracy. Each worker takes its part of the images; a signal ends it early."""

    def on_epoch_trained(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        experiment = trainer.experiment
        result = evaluate(
            experiment.network, self.batches(trainer), experiment.data.num_classes, collectives=trainer.collectives
        )
        metrics.update(test_loss=result.loss, test_top1=result.top1, test_top5=result.top5)

    def batches(self, trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of this worker, which stays with the others to the end of the longest part."""
        trainer.heartbeat.note("opening the test images")
        mine = trainer.experiment.data.test()
        for number in range(trainer.experiment.data.test_batches()):
            trainer.heartbeat.note("evaluating", f" batch {number + 1} after epoch {trainer.progress.epoch + 1}")
            batch = next(mine, None)
            if batch is not None:
                yield batch
            trainer.heartbeat.note("waiting for the others' evaluation", waiting=True)
            trainer.stop_if_asked()


class EpochLog(Callback):
    """Keeps the epochs' rows in the run's progress and says each in a line."""

    def __init__(self, say: Callable[[str], None] = cli.echo):
        self.say = say

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        trainer.progress.history.append(metrics)
        self.say(
            f"epoch {metrics['epoch']}: loss {metrics['train_loss']:.4f}, test accuracy {metrics['test_top1']:.2%}, "
            f"flip ratio {metrics['flip_ratio']:.4f}, gradient norm {metrics['gradient_norm']:.3g}, "
            f"{metrics['images_per_second']} images/s"
            + (f", {metrics['skipped']} steps skipped for overflow" if metrics["skipped"] else "")
            + (f", {metrics['replaced_images']} broken pictures replaced" if metrics["replaced_images"] else "")
        )


class SaveCheckpoints(Callback):
    """Writes last.ckpt after every epoch, before an early end and every so many steps; best.ckpt; and keeps those of
    the latest epochs.

    Args:
        folder: the run's.
        went_back: the run does not go on from last.ckpt, but from the checkpoint of an epoch.
    """

    def __init__(self, folder: Path, went_back: bool = False):
        self.folder = folder
        self.last = folder / LAST
        self.best = folder / BEST
        self.went_back = went_back
        self.saved = True

    def on_train_begin(self, trainer: Trainer) -> None:
        if self.went_back:  # from now on this is where the run stands, also if it is killed at once
            self.on_checkpoint(trainer)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.saved = trainer.write(lambda: trainer.save(self.last))

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        if metrics["test_top1"] > trainer.progress.best_top1:
            before, trainer.progress.best_top1 = trainer.progress.best_top1, metrics["test_top1"]
            # Before the last one: a run killed in between takes the epoch again, and this too.
            if not trainer.write(lambda: trainer.save(self.best)):
                trainer.progress.best_top1 = before
        self.saved = trainer.write(lambda: trainer.save(self.last))
        if self.saved:
            trainer.write(lambda: self.keep(trainer.progress.epoch, trainer.experiment.config.train.keep))

    def keep(self, epoch: int, count: int) -> None:
        """A copy of last.ckpt that stays when the next one is written; what is older than the latest `count` goes, and
        what is of later epochs, which are taken again.

        Raises:
            WriteError: it cannot be had.
        """
        path = self.folder / EPOCH.format(epoch)
        write_atomically(path, lambda partial: shutil.copyfile(self.last, partial))
        for number, other in epoch_checkpoints(self.folder).items():
            if not epoch - count < number <= epoch:
                with contextlib.suppress(OSError):
                    other.unlink()

    def on_stop(self, trainer: Trainer) -> None:
        self.on_train_end(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if not self.saved and not trainer.write(lambda: trainer.save(self.last)):
            raise WriteError(
                f"the run ends, but its last state could not be written to {self.last}: mend that and go on with "
                "--resume from the state before"
            )


class WriteMetrics(Callback):
    """Writes metrics.csv, a metrics an epoch, and curves.png, from the run's history."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_begin(self, trainer: Trainer) -> None:
        if trainer.progress.history:  # a run killed before it wrote the metrics that its checkpoint has
            self.on_epoch_end(trainer, trainer.progress.history[-1])

    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        history = trainer.progress.history
        text = io.StringIO()
        writer = csv.DictWriter(text, list(metrics))
        writer.writeheader()
        writer.writerows(history)
        trainer.write(lambda: write_text(self.folder / METRICS, text.getvalue()))
        trainer.write(lambda: plot_curves(history, list(trainer.experiment.tables), self.folder / CURVES))


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C let the step under way finish; then the run is saved and ends. A second ends it at once."""

    ECHO_SECONDS = 1.0  # timeout(1) sends its signal twice in a metrics: to the process, then to its group

    def on_train_begin(self, trainer: Trainer) -> None:
        def handle(number: int, frame) -> None:
            now = time.monotonic()
            if trainer.stop_signal:
                if now - self.received > self.ECHO_SECONDS:
                    sys.exit(128 + number)
                return
            self.received = now
            trainer.stop_signal = number
            cli.echo(f"\n{signal.Signals(number).name}: finishing the step, saving, ending", sys.stderr)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)


def plot_curves(history: list[dict[str, Any]], scheduled: list[str], path: Path) -> None:
    """Loss, test accuracy, flip ratio and the columns `scheduled` against the epoch, as a PNG.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [metrics["epoch"] for metrics in history]
    largest = {name: max(metrics[name] for metrics in history) for name in scheduled}
    shares = [{name: metrics[name] / (largest[name] or 1) for name in scheduled} for metrics in history]
    panels = {
        "Loss": (history, {"train_loss": "training", "test_loss": "test"}),
        "Test accuracy": (history, {"test_top1": "top-1", "test_top5": "top-5"}),
        "Flip ratio of binary weights": (history, {"flip_ratio": "signs that changed in the epoch"}),
        "Schedules at the end of each epoch": (shares, {name: f"{name} / {largest[name]:.3g}" for name in scheduled}),
    }
    for axes, (title, (rows, curves)) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for key, label in curves.items():
            axes.plot(epochs, [metrics[key] for metrics in rows], marker="." if len(epochs) < 50 else "", label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))
