"""Run a tree's train.py and print when each step ended. The run ends after its first epoch, before the evaluation.

python timed_train.py TREE [arguments of train.py]

The last line of stdout has the time of each step's end, as time.time(), in a JSON list.
"""

import json
import os
import runpy
import sys
import time

tree, arguments = sys.argv[1], sys.argv[2:]
sys.path.insert(0, tree)

from src import runtime  # noqa: E402

ends: list[float] = []
start = runtime.start


def start_and_add_callback(*options, **named):
    """Do what train.py calls; after that it imports MindSpore and src.training.run, which get one more callback."""
    worker = start(*options, **named)
    from src.training import run
    from src.training.trainer import Callback

    class StepEnds(Callback):
        def on_step_end(self, trainer, result) -> None:
            ends.append(time.time())
            if trainer.progress.step == trainer.experiment.steps_per_epoch:
                raise SystemExit(0)

    create_callbacks = run.create_callbacks
    run.create_callbacks = lambda *given: [*create_callbacks(*given), StepEnds()]
    return worker


runtime.start = start_and_add_callback
sys.argv = [os.path.join(tree, "train.py"), *arguments]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(json.dumps(ends))
