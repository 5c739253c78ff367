"""One of the workers of test_survival.py: trains as train.py does, but one of them changes a weight of its own.

python diverging_worker.py RANK RUN_FOLDER        under msrun
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from src import doors, runtime  # noqa: E402
from train import main  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent


def diverge(rank: int) -> None:
    """On that worker the first weight of a convolution is another one before the first epoch."""
    from src.training import callbacks

    class Speed(callbacks.Speed):
        def on_epoch_begin(self, trainer) -> None:
            super().on_epoch_begin(trainer)
            if trainer.workers.rank == rank:
                weight = trainer.experiment.network.trainable_params()[0]
                weight.set_data(weight + 1e-3)

    callbacks.Speed = Speed


if __name__ == "__main__":
    runtime.prepare_environment()
    diverge(int(sys.argv[1]))
    recipe = (
        f"--config {ROOT}/configs/digits.yaml --network.binary false --data.batch_size 4 --steps_per_epoch 2 --epochs 2"
    )
    sys.exit(doors.run(main, [*recipe.split(), "--distribute", "--output_dir", sys.argv[2]]))
