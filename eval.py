"""Evaluate a checkpoint or an exported model on all test images: top-1, top-5, loss, a table of classes, a last line
of JSON.

    python eval.py --checkpoint runs/latest/best.ckpt --data_path DIR
    python eval.py --ckpt released.ckpt --data_path DIR -b 128         a checkpoint without config: ResNet-20, CIFAR-10
    python eval.py --model exports/resnet20.xml --data_path DIR        what export.py wrote, in its own runtime

The network and its precision come from the checkpoint's own config if it has one; the keys below override it. Two
losses are printed: the cross-entropy, and one with smoothed labels as in the authors' evaluation (1 - s on the label,
s / (K - 1) on each other class). In the JSON they are `Loss` and, under the authors' name, `Validation-Loss`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src import cli

with cli.explain_missing_packages():
    from src import runtime
    from src.config import Config, load_config
    from src.errors import UserError
    from src.preprocessing import Preprocessing
    from src.pretrained import CHECKPOINT_SUFFIXES, resolve_model

if TYPE_CHECKING:
    from src.data import Dataset
    from src.training.evaluation import Evaluation

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
    parser.add_argument("--checkpoint", "--ckpt", metavar="FILE", type=cli.path, help=cli.A_CHECKPOINT)
    parser.add_argument(
        "--model",
        metavar="FILE",
        type=cli.path,
        help="what --checkpoint takes, or an exported file: .mindir, .onnx, .xml, .ms",
    )
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
    if (arguments.checkpoint is None) == (arguments.model is None):
        parser.error("give either --checkpoint or --model")
    if not 0 <= arguments.smoothing < 1:
        raise UserError(f"--smoothing is {arguments.smoothing}, but must be at least 0 and less than 1")
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise UserError(f"--num_classes is {arguments.num_classes}, but must be at least 1")
    load_config(overrides=overrides)  # refuses bad values before MindSpore is imported
    file = arguments.model or arguments.checkpoint
    exported = arguments.model and resolve_model(file).suffix not in CHECKPOINT_SUFFIXES
    if exported:
        for key in overrides:
            if key.startswith(("network.", "amp.", "runtime.mode")):
                raise UserError(f"--{key} goes with a checkpoint: the exported model {file} is what it is")
    else:
        cli.require_checkpoint(file)
    runtime.prepare_environment()
    return (evaluate_exported if exported else evaluate_checkpoint)(file, overrides, arguments)


def evaluate_checkpoint(file: str, overrides: dict[str, Any], arguments: argparse.Namespace) -> int:
    from mindspore import amp

    from src import checkpoints, experiment
    from src.training.evaluation import evaluate

    checkpoint = checkpoints.read(file)
    config = load_config(checkpoints.network_config(checkpoint), overrides)
    runtime.start(config.runtime.device_target, config.runtime.mode, config.seed)
    experiment.check_network(config)  # before looking for data
    data = open_test_set(config, checkpoint.preprocessing, file)
    num_classes = arguments.num_classes or data.num_classes
    require_enough_classes(num_classes, data)
    network = experiment.trained_network(config, checkpoint, num_classes)
    amp.auto_mixed_precision(network, config.amp.level)  # the training precision, so that results match the run's
    if arguments.check_data:
        print(f"{data.check()} images can be decoded")
    result = evaluate(network, data.test(), num_classes, arguments.smoothing)
    name = f"{config.network.name}{'' if config.network.binary else ' (full precision)'}"
    return report(name, file, data, result, arguments.smoothing)


def evaluate_exported(file: str, overrides: dict[str, Any], arguments: argparse.Namespace) -> int:
    from src.deploy import load_model
    from src.training.evaluation import evaluate_function

    model = load_model(file, overrides.get("runtime.device_target", "CPU"))
    described = model.description
    own = {"data": {"name": described.dataset, "image_size": model.preprocessing.size}}
    config = load_config(own, overrides)
    data = open_test_set(config, model.preprocessing, file)
    num_classes = len(model.classes)
    if arguments.num_classes not in (None, num_classes):
        raise UserError(f"--num_classes is {arguments.num_classes}, but {file} has {num_classes}")
    require_enough_classes(num_classes, data)
    if arguments.check_data:
        print(f"{data.check()} images can be decoded")
    result = evaluate_function(model.logits, data.test(), num_classes, arguments.smoothing)
    name = f"{described.network}{'' if described.binary else ' (full precision)'} as {described.format}"
    return report(name, file, data, result, arguments.smoothing)


def open_test_set(config: Config, trained: Preprocessing | None, file: str) -> "Dataset":
    """The test set of the config, which must have the classes that the network was trained on."""
    from src import experiment

    data = experiment.build_data(config, splits=("test",))
    experiment.require_same_classes(trained, data.preprocessing, f"the data set in {data.root}", file)
    return data


def require_enough_classes(num_classes: int, data: "Dataset") -> None:
    if num_classes < data.num_classes:
        raise UserError(f"--num_classes is {num_classes}, but {data.name} has {data.num_classes} classes")


def report(name: str, file: str, data: "Dataset", result: "Evaluation", smoothing: float) -> int:
    print(f"{name}, {file}, {result.images} test images of {data.name}")
    print(f"{'class':<14}{'images':>8}{'right':>9}")
    for name, count, right in zip(data.preprocessing.classes, result.counts, result.per_class, strict=False):
        print(f"{name:<14}{count:>8}{right:>9.2%}")
    print(
        f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, loss {result.loss:.4f}, "
        f"smoothed loss {result.smoothed_loss:.4f} (smoothing {smoothing})"
    )
    print(
        json.dumps(
            {
                "Validation-Loss": result.smoothed_loss,  # as the released script has it
                "Loss": result.loss,
                "Top1-Acc": result.top1,
                "Top5-Acc": result.top5,
                "images": result.images,
                "checkpoint": file,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
