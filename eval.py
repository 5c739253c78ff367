"""Evaluate a checkpoint on all test images: top-1, top-5, loss, a table of classes, and a last line of JSON.

    python eval.py --checkpoint runs/latest/best.ckpt --data_path DIR
    python eval.py --ckpt released.ckpt --data_path DIR -b 128         a checkpoint without config: ResNet-20, CIFAR-10

The network and its precision come from the checkpoint's own config if it has one; the keys below override it. Two
losses are printed: the cross-entropy, and one with smoothed labels as in the authors' evaluation (1 - s on the label,
s / (K - 1) on each other class). In the JSON they are `Loss` and, under the authors' name, `Validation-Loss`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from src import cli

with cli.explain_missing_packages():
    from src import runtime
    from src.config import load_config
    from src.errors import UserError

USED_KEYS = (
    "data.name",
    "data.path",
    "data.download",
    "data.batch_size",
    "data.num_parallel_workers",
    "data.image_size",
    "network",
    "amp.level",
    "runtime.device_target",
    "runtime.mode",
)
SHORTHANDS = {
    "--data_path": "data.path",
    "--dataset": "data.name",
    "--image_size": "data.image_size",
    "--device_target": "runtime.device_target",
    "--mode": "runtime.mode",
    "--batch_size": "data.batch_size",
    "-b": "data.batch_size",
}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="eval.py", description=__doc__)
    parser.add_argument("--checkpoint", "--ckpt", metavar="FILE", type=cli.path, required=True, help="a .ckpt file")
    parser.add_argument(
        "--num_classes",
        type=cli.integer,
        metavar="K",
        help="number of classes of the network; default: the data set's",
    )
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.1,
        metavar="S",
        help="smoothing of the smoothed loss, in [0, 1); default 0.1",
    )
    parser.add_argument("--check_data", action="store_true", help="decode every image first, and end if one is broken")
    cli.add_config_flags(parser, SHORTHANDS, USED_KEYS)
    arguments, overrides = cli.parse_config_flags(parser, argv)
    if not 0 <= arguments.smoothing < 1:
        raise UserError(f"--smoothing is {arguments.smoothing}, but must be at least 0 and less than 1")
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise UserError(f"--num_classes is {arguments.num_classes}, but must be at least 1")
    load_config(overrides=overrides)  # refuses bad values before MindSpore is imported
    cli.require_checkpoint(Path(arguments.checkpoint))
    runtime.prepare_environment()

    from mindspore import amp

    from src import checkpoints, experiment
    from src.training.evaluation import evaluate

    checkpoint = checkpoints.read(arguments.checkpoint)
    config = load_config(checkpoints.network_config(checkpoint), overrides)
    runtime.start(config.runtime.device_target, config.runtime.mode, config.seed)
    experiment.check_network(config)  # before looking for data
    data = experiment.build_data(config, splits=("test",))
    num_classes = arguments.num_classes or data.num_classes
    if num_classes < data.num_classes:
        raise UserError(f"--num_classes is {num_classes}, but {data.name} has {data.num_classes} classes")
    experiment.require_same_classes(
        checkpoint.preprocessing, data.preprocessing, f"the data set in {data.root}", arguments.checkpoint
    )
    network = experiment.trained_network(config, checkpoint, num_classes)
    amp.auto_mixed_precision(network, config.amp.level)  # the training precision, so that results match the run's
    if arguments.check_data:
        print(f"{data.check()} images can be decoded")
    result = evaluate(network, data.test(), num_classes, arguments.smoothing)

    print(
        f"{config.network.name}{'' if config.network.binary else ' (full precision)'}, {arguments.checkpoint}, "
        f"{result.images} test images of {data.name}"
    )
    print(f"{'class':<14}{'images':>8}{'right':>9}")
    for name, count, right in zip(data.preprocessing.classes, result.counts, result.per_class, strict=False):
        print(f"{name:<14}{count:>8}{right:>9.2%}")
    print(
        f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, loss {result.loss:.4f}, "
        f"smoothed loss {result.smoothed_loss:.4f} (smoothing {arguments.smoothing})"
    )
    print(
        json.dumps(
            {
                "Validation-Loss": result.smoothed_loss,  # as the released script has it
                "Loss": result.loss,
                "Top1-Acc": result.top1,
                "Top5-Acc": result.top5,
                "images": result.images,
                "checkpoint": arguments.checkpoint,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
