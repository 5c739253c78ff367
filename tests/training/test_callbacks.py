"""Each callback by itself, on an experiment that trains in a moment or on a trainer that only pretends to."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.errors import UserError, WriteError
from src.run_dir import CURVES, METRICS, epoch_checkpoints, read_metrics
from src.training import callbacks
from src.training.evaluation import summarize
from src.training.trainer import Callback, Progress, Trainer
from tests.helpers import processes
from tests.helpers.experiments import BATCH, CLASSES, batches, tiny_experiment


@pytest.fixture(autouse=True)
def handlers():
    """Signal handlers are as before after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def all_callbacks(folder: Path) -> list[Callback]:
    return [
        callbacks.StopOnSignal(),
        callbacks.ProgressBar(),
        callbacks.Throughput(),
        callbacks.FlipRatio(),
        callbacks.UndecodableImages(),
        callbacks.Evaluate(),
        callbacks.EpochLog(),
        callbacks.SaveCheckpoints(folder),
        callbacks.WriteMetrics(folder),
    ]


@pytest.mark.parametrize("place", range(9))
def test_every_callback_works_without_the_others(tmp_path, place):
    trainer = Trainer(tiny_experiment(tmp_path), [all_callbacks(tmp_path)[place]])
    trainer.fit()
    assert trainer.progress.epoch == 2


def test_their_order_does_not_matter(tmp_path):
    tables = []
    for name, step in (("one", 1), ("other", -1)):
        (tmp_path / name).mkdir()
        Trainer(tiny_experiment(tmp_path / name), all_callbacks(tmp_path / name)[::step]).fit()
        rows = read_metrics(tmp_path / name)
        for row in rows:
            del row["seconds"], row["images_per_second"]
        tables.append(rows)
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {"best.ckpt", "last.ckpt", "epoch_0001.ckpt", "epoch_0002.ckpt", METRICS, CURVES}
    assert tables[0] == tables[1] and len(tables[0]) == 2


@pytest.mark.parametrize("step", [1, -1])
def test_a_checkpoint_inside_an_epoch_has_what_other_callbacks_counted_in_any_order(tmp_path, step):
    experiment = tiny_experiment(tmp_path, epochs=1, save_every_steps=2)
    experiment.data.replaced = 3
    both = [callbacks.SaveCheckpoints(tmp_path), callbacks.UndecodableImages()]
    trainer = Trainer(experiment, both[::step])
    saved = []
    trainer.save = lambda path: saved.append((trainer.progress.step, trainer.progress.replaced))
    both[0].keep = lambda epoch: None  # nothing was written that it could copy
    trainer.fit()
    assert saved == [(2, 3), (0, 0)]
    assert trainer.progress.history[0]["replaced_images"] == 3


class Pretender(Trainer):
    """A trainer that saves its epoch's number, or cannot."""

    def __init__(self, folder: Path, **changes):
        self.experiment = tiny_experiment(folder, **changes)
        self.progress = Progress()
        self.extra = {}
        self.stop_signal = 0
        self.fails = False

    def save(self, path: Path) -> None:
        if self.fails:
            raise WriteError(f"cannot write {path}: no room")
        path.write_text(json.dumps(self.progress.epoch))


def end_of_epoch(trainer: Pretender, saver: callbacks.SaveCheckpoints, **metrics) -> None:
    trainer.progress.epoch += 1
    saver.on_epoch_end(trainer, {"chosen_on": "test", **metrics})


def test_the_checkpoints_of_the_latest_epochs_are_kept(tmp_path):
    trainer, saver = Pretender(tmp_path, keep=3), callbacks.SaveCheckpoints(tmp_path)
    for _ in range(5):
        end_of_epoch(trainer, saver, test_top1=0.5)
    kept = {number: path.read_text() for number, path in epoch_checkpoints(tmp_path).items()}
    assert kept == {3: "3", 4: "4", 5: "5"}
    assert (tmp_path / "last.ckpt").read_text() == "5" and (tmp_path / "best.ckpt").read_text() == "1"
    trainer.progress.epoch = 3  # gone back, to be taken again from there
    saver = callbacks.SaveCheckpoints(tmp_path, went_back=True)
    saver.on_train_begin(trainer)
    assert (tmp_path / "last.ckpt").read_text() == "3" and list(epoch_checkpoints(tmp_path)) == [3, 4, 5]
    end_of_epoch(trainer, saver, test_top1=0.5)
    assert list(epoch_checkpoints(tmp_path)) == [3, 4]


@pytest.mark.parametrize("killed", ["before the copy", "before the deletion"])
def test_a_resumed_run_keeps_the_epoch_at_whose_end_it_was_killed(tmp_path, killed):
    trainer, saver = Pretender(tmp_path, keep=2), callbacks.SaveCheckpoints(tmp_path)
    for _ in range(3):
        end_of_epoch(trainer, saver, test_top1=0.5)
    trainer.progress.epoch = 4
    trainer.save(saver.last)
    if killed == "before the deletion":
        (tmp_path / "epoch_0004.ckpt").write_text("4")
    callbacks.SaveCheckpoints(tmp_path).on_train_begin(trainer)
    assert {number: path.read_text() for number, path in epoch_checkpoints(tmp_path).items()} == {3: "3", 4: "4"}


def test_best_is_chosen_from_evaluated_epochs(tmp_path):
    trainer, saver = Pretender(tmp_path), callbacks.SaveCheckpoints(tmp_path)
    trainer.progress.epoch = 1
    saver.on_epoch_end(trainer, {"train_loss": 1.0})  # not evaluated
    assert not saver.best.exists()
    end_of_epoch(trainer, saver, chosen_on="holdout", holdout_top1=0.5, test_top1=0.1)
    end_of_epoch(trainer, saver, chosen_on="holdout", holdout_top1=0.4, test_top1=0.9)
    assert saver.best.read_text() == "2" and trainer.progress.best_top1 == 0.5


def test_a_run_that_is_continued_without_its_best_checkpoint_writes_one(tmp_path, capsys):
    trainer, saver = Pretender(tmp_path), callbacks.SaveCheckpoints(tmp_path)
    end_of_epoch(trainer, saver, test_top1=0.5)
    saver.on_train_begin(trainer)
    assert trainer.progress.best_top1 == 0.5 and capsys.readouterr().err == ""
    saver.best.unlink()
    saver.on_train_begin(trainer)
    end_of_epoch(trainer, saver, test_top1=0.4)
    assert f"warning: {saver.best} is missing: the best of the coming epochs" in capsys.readouterr().err
    assert saver.best.read_text() == "2" and trainer.progress.best_top1 == 0.4


def test_an_epoch_without_its_best_checkpoint_is_kept_in_the_state_that_says_so(tmp_path):
    trainer, saver = Pretender(tmp_path), callbacks.SaveCheckpoints(tmp_path)
    end_of_epoch(trainer, saver, test_top1=0.5)
    saver.best.unlink()
    trainer.save = lambda path: path.write_text(str(trainer.progress.best_top1))
    saver.on_train_begin(trainer)
    assert saver.last.read_text() == epoch_checkpoints(tmp_path)[1].read_text() == "-1.0"


def test_a_failed_save_stops_the_run_and_the_last_good_files_stay(tmp_path):
    trainer, saver = Pretender(tmp_path), callbacks.SaveCheckpoints(tmp_path)
    end_of_epoch(trainer, saver, test_top1=0.5)
    trainer.fails = True
    with pytest.raises(WriteError, match="no room; fix that and continue with --resume"):
        end_of_epoch(trainer, saver, test_top1=0.6)
    assert saver.best.read_text() == saver.last.read_text() == "1"


def test_a_failed_save_may_be_a_warning_until_the_run_ends(tmp_path, capsys):
    trainer, saver = Pretender(tmp_path, on_write_error="go_on"), callbacks.SaveCheckpoints(tmp_path)
    end_of_epoch(trainer, saver, test_top1=0.5)
    trainer.fails = True
    end_of_epoch(trainer, saver, test_top1=0.6)
    assert "warning: cannot write" in capsys.readouterr().err
    assert trainer.progress.best_top1 == 0.5  # the better one was not saved: the next one counts
    with pytest.raises(WriteError, match="the run ends, but its last state could not be written"):
        saver.on_train_end(trainer)
    trainer.fails = False
    saver.on_train_end(trainer)  # there is room again
    assert saver.last.read_text() == "2" and saver.best.read_text() == "1"


@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])], ids=lambda value: str(value)
)
def test_every_so_many_epochs_are_evaluated_and_the_last(tmp_path, monkeypatch, every, evaluated):
    result = summarize(np.eye(3), np.arange(3), 3)
    monkeypatch.setattr(callbacks, "evaluate", lambda *arguments, **options: result)
    monkeypatch.setattr(callbacks, "plot_curves", lambda *arguments: None)  # half a second an epoch
    experiment = tiny_experiment(tmp_path, epochs=5, steps_per_epoch=1, eval_every=every)
    Trainer(experiment, [callbacks.Evaluate(), callbacks.WriteMetrics(tmp_path)]).fit()
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows if row["test_top1"] == 1] == evaluated
    assert [row["epoch"] for row in rows if np.isnan(row["test_top1"])] == sorted({1, 2, 3, 4, 5} - set(evaluated))
    with (tmp_path / METRICS).open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file) if row["chosen_on"] == "test"] == evaluated


def test_held_out_images_choose_instead_of_the_test_images(tmp_path):
    experiment = tiny_experiment(tmp_path, epochs=1)
    held_out = experiment.config.model_copy(
        update={"data": experiment.config.data.model_copy(update={"holdout": BATCH})}
    )
    trainer = Trainer(replace(experiment, config=held_out), [callbacks.Evaluate()])
    trainer.fit()
    metrics = trainer.progress.history[0]
    assert metrics["chosen_on"] == "holdout"
    images, labels = batches(98)[0]
    trainer.experiment.network.set_train(False)
    own = summarize(trainer.experiment.network(images).asnumpy().astype(np.float64), labels.asnumpy(), CLASSES)
    assert metrics["holdout_loss"] == pytest.approx(own.loss, rel=1e-5) and metrics["holdout_top1"] == own.top1
    assert metrics["test_loss"] != metrics["holdout_loss"] and 0 <= metrics["test_top5"] <= 1


def test_the_test_images_can_be_left_alone(tmp_path, monkeypatch):
    experiment = tiny_experiment(tmp_path, epochs=1)
    data = experiment.config.data.model_copy(update={"holdout": BATCH})
    train = experiment.config.train.model_copy(update={"eval_test": False})
    monkeypatch.setattr(type(experiment.data), "test", lambda self: pytest.fail("the test images were opened"))
    experiment = replace(experiment, config=experiment.config.model_copy(update={"data": data, "train": train}))
    trainer = Trainer(experiment, [callbacks.Evaluate(), callbacks.EpochLog(), callbacks.WriteMetrics(tmp_path)])
    trainer.fit()
    (row,) = read_metrics(tmp_path)
    assert 0 <= row["holdout_top1"] <= 1 and np.isnan(row["test_top1"]) and "test_loss" not in row
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_the_metrics_survive_columns_that_come_and_go():
    history = [{"epoch": 1, "old": 3, "test_top1": 0.1}, {"epoch": 2, "new": None, "test_top1": 0.2}, {"epoch": 3}]
    assert list(csv.DictReader(callbacks.as_csv(history).splitlines())) == [
        {"epoch": "1", "new": "", "old": "3", "test_top1": "0.1"},
        {"epoch": "2", "new": "", "old": "", "test_top1": "0.2"},
        {"epoch": "3", "new": "", "old": "", "test_top1": ""},
    ]


def test_a_resumed_run_writes_the_rows_that_its_checkpoint_has(tmp_path):
    trainer = Pretender(tmp_path)
    trainer.progress.history = [{"epoch": 1, "train_loss": 1.0, "test_top1": 0.1, "test_top5": 0.2, "forgotten": 7.0}]
    callbacks.WriteMetrics(tmp_path).on_train_begin(trainer)
    assert read_metrics(tmp_path) == trainer.progress.history


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(callbacks, "plot_curves", fail)
    Trainer(tiny_experiment(tmp_path), [callbacks.WriteMetrics(tmp_path)]).fit()
    assert "warning: curves.png cannot be drawn: no matplotlib; training continues" in capsys.readouterr().err
    assert (tmp_path / METRICS).exists()


def test_curves_are_drawn_whatever_backend_the_environment_names(tmp_path):
    program = (
        "from pathlib import Path; from src.training.curves import plot_curves; import os, sys;"
        "rows = [{'epoch': 1, 'train_loss': 1.0, 'lr': 0.1}, {'epoch': 2, 'train_loss': None, 'test_top1': 0.5}];"
        "plot_curves(rows, ['lr', 'n'], Path(sys.argv[1]));"
        "assert os.environ['MPLBACKEND'] == 'module://nowhere'; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "curves.png")],
        cwd=processes.ROOT,
        env={**os.environ, "MPLBACKEND": "module://nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_epochs_line_has_what_there_is(capsys):
    callbacks.EpochLog().on_epoch_end(None, {"epoch": 3})
    callbacks.EpochLog().on_epoch_end(
        None, {"epoch": 4, "train_loss": 0.5, "test_top1": 0.25, "replaced_images": 2, "skipped": 0, "unknown": 1}
    )
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: ",
        "epoch 4: loss 0.5000, test accuracy 25.00%, 2 undecodable images replaced",
    ]


def test_the_bar_is_closed_before_an_error_is_printed(tmp_path, capsys):
    trainer = Trainer(tiny_experiment(tmp_path), [callbacks.ProgressBar()])
    trainer.experiment.network.linear.bias.set_data(ms.Tensor(np.full(3, np.nan, np.float32)))
    with contextlib.suppress(ValueError):
        trainer.fit()
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown and shown.endswith("\n")


def test_throughput_leaves_the_first_step_out(tmp_path, monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(now))
    trainer = Trainer(tiny_experiment(tmp_path, epochs=1), [callbacks.Throughput()])
    trainer.fit()
    metrics = trainer.progress.history[0]  # begin 0, steps at 10, 20, 30
    assert (metrics["seconds"], metrics["images_per_second"]) == (30, round(2 * BATCH / 20, 1))


def test_the_flip_ratio_counts_signs_that_changed_since_the_epochs_start(tmp_path, monkeypatch):
    signs = iter([[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1]])
    monkeypatch.setattr(callbacks, "binary_signs", lambda trainer: np.array(next(signs), np.uint8))
    trainer = Trainer(tiny_experiment(tmp_path), [callbacks.FlipRatio()])
    trainer.fit()
    assert [metrics["flip_ratio"] for metrics in trainer.progress.history] == [0.5, 0.25]
    assert not trainer.extra


@pytest.mark.parametrize("kept", [np.ones(2, np.float32), np.ones(1, np.uint8), np.ones((2, 1), np.uint8)])
def test_damaged_signs_of_the_epochs_start_are_refused(tmp_path, monkeypatch, kept):
    """Format 0 has no hash over the arrays that resuming needs."""
    monkeypatch.setattr(callbacks, "binary_signs", lambda trainer: np.ones(9, np.uint8))
    trainer, callback = Pretender(tmp_path), callbacks.FlipRatio()
    trainer.progress.step = 1
    trainer.extra[callback.KEY] = kept
    with pytest.raises(UserError, match=r"is damaged: its epoch_start_signs are .*, but must be uint8 \(2,\)$"):
        callback.on_epoch_begin(trainer)
    trainer.extra[callback.KEY] = np.zeros(2, np.uint8)
    callback.on_epoch_begin(trainer)
    assert not trainer.extra[callback.KEY].any()


@pytest.mark.parametrize("count", [7, None])
def test_undecodable_images_are_counted_after_the_last_step(tmp_path, count):
    trainer = Trainer(tiny_experiment(tmp_path), [callbacks.UndecodableImages()])
    trainer.experiment.data.replaced = count
    trainer.fit()
    assert [metrics["replaced_images"] for metrics in trainer.progress.history] == [count, count]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_the_trainer_to_stop_and_a_second_ends_it(tmp_path, number, capsys):
    signal.signal(number, signal.SIG_DFL)  # also where these tests run under nohup
    trainer, callback = Pretender(tmp_path), callbacks.StopOnSignal()
    callback.on_train_begin(trainer)
    signal.raise_signal(number)
    assert trainer.stop_signal == number
    assert f"{number.name}: finishing the step, saving, ending\n" in capsys.readouterr().err
    signal.raise_signal(number)  # within the second
    callback.received -= 2
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert ended.value.code == 128 + number


def test_an_ignored_sighup_stays_ignored(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    callbacks.StopOnSignal().on_train_begin(Pretender(tmp_path))
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
