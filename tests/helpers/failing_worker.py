"""One of the workers of test_survival.py: trains as train.py does, but one of them fails in its way.

python failing_worker.py WAY RANK RUN_FOLDER        under msrun; WAY is one of `WAYS`
"""

import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from src import cli, runtime  # noqa: E402
from train import main  # noqa: E402

RECIPE = "--network.binary false --data.batch_size 8 --steps_per_epoch 3 --epochs 2 --distribute"


def differ(rank: int) -> None:
    """Its first weight changes at the start of the second epoch."""
    from src.training import callbacks

    class Throughput(callbacks.Throughput):
        def on_epoch_begin(self, trainer) -> None:
            super().on_epoch_begin(trainer)
            if (trainer.collectives.rank, trainer.progress.epoch) == (rank, 1):
                weight = trainer.experiment.network.trainable_params()[0]
                weight.set_data(weight + 1e-3)

    callbacks.Throughput = Throughput


def hang(rank: int) -> None:
    """It reads for ever after the first step of the second epoch."""
    from src.data import Dataset

    train = Dataset.train

    def hanging(self, epoch, *rest):
        for number, batch in enumerate(train(self, epoch, *rest)):
            if (self.rank, epoch, number) == (rank, 1, 1):
                print("hanging", flush=True)
                time.sleep(3600)
            yield batch

    Dataset.train = hanging


def stop(rank: int) -> None:
    """It gets SIGTERM after the second step."""
    from src.training import callbacks

    class Throughput(callbacks.Throughput):
        def on_step_end(self, trainer, result) -> None:
            super().on_step_end(trainer, result)
            if (trainer.collectives.rank, trainer.progress.epoch, trainer.progress.step) == (rank, 0, 2):
                signal.raise_signal(signal.SIGTERM)

    callbacks.Throughput = Throughput


WAYS = {"differ": differ, "hang": hang, "stop": stop}

if __name__ == "__main__":
    runtime.prepare_environment()
    WAYS[sys.argv[1]](int(sys.argv[2]))
    config = str(ROOT / "configs/digits.yaml")
    sys.exit(cli.run(main, ["--config", config, *RECIPE.split(), "--output_dir", sys.argv[3]]))
