"""Write the card of trained weights: data, recipe, command, curves, accuracy of each class, confusion matrix, limits.

    python -m src.card pretrained:resnet20_digits --run runs/digits --command "python train.py --config FILE"

evaluates the weights on their test set, and on the images held out if there are some, and writes NAME.md,
NAME_curves.png, NAME_confusion.png and the run's NAME_metrics.csv into --output.
"""

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli, runtime
from .config import RESUMABLE, Config, leaf_keys, load_config
from .errors import UserError
from .files import make_folder, write_atomically, write_text
from .pretrained import ALLOWED
from .run_dir import METRICS, VERSIONS, read_metrics

if TYPE_CHECKING:
    import numpy as np

    from .checkpoints import Checkpoint

# What the data are, and what weights of a data set must not be used for.
DATA = {
    "digits": "scikit-learn's copy of handwritten digits from UCI (CC BY 4.0): scans of 8x8 pixels, each repeated "
    "to 32x32. There is no augmentation.",
    "cifar10": "CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009), 32x32. Training "
    "images are shifted by up to 4 pixels and mirrored, each time anew.",
}
LIMITS = {
    "digits": "They know 8x8 scans of single handwritten digits, and call every image one of them. They are here for "
    "trying out programs, not for reading digits in an application.",
    "cifar10": "They know ten classes of small photographs, and call every image one of them. Do not use them where a "
    "wrong answer matters. CIFAR-10 comes without a licence, but with the wish to be cited.",
}
NAMED_VERSIONS = (
    "start weights",
    "data",
    "continued after",
    "git commit",
    "python",
    "processor",
    "cores",
    "mindspore",
    "mindcv",
    "numpy",
    "OMP_NUM_THREADS",
    "binary layers",
)
MAIN_KEYS = (
    "train.epochs",
    "data.batch_size",
    "data.augment",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "network.estimator",
    "network.weight_quantizer",
    "noise.enabled",
    "seed",
)
NOT_THE_RECIPE = RESUMABLE | {"output_dir", "data.name", "network.name", "network.binary"}
ONLY_BINARY = ("network.estimator", "network.weight_quantizer", "network.scale_in_gradient", "noise", "schedules")


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m src.card", description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", type=cli.path, help=cli.A_CHECKPOINT)
    parser.add_argument("--run", metavar="FOLDER", type=cli.path, required=True, help="the run that trained them")
    parser.add_argument("--command", metavar="TEXT", required=True, help="the command that trained them")
    parser.add_argument("--data_path", metavar="DIR", type=cli.path, default="data", help="folder of the data set")
    parser.add_argument("--output", metavar="DIR", type=cli.path, default="pretrained", help="default: pretrained")
    arguments = parser.parse_args(argv)
    path, run, output = cli.require_checkpoint(arguments.weights), Path(arguments.run), Path(arguments.output)
    for name in (METRICS, VERSIONS):
        if not (run / name).is_file():
            raise UserError(f"{run} is not the folder of a run: it has no {name}")
    history = read_metrics(run)
    runtime.prepare_environment()

    from sklearn.metrics import confusion_matrix

    from . import checkpoints, experiment
    from .binary.estimators import ESTIMATORS
    from .deploy import load_model
    from .training.curves import plot_confusion, plot_curves

    trained = checkpoints.read(path)
    if trained.config is None:
        raise UserError(f"{path} does not hold the config that it was trained with")
    model = load_model(path)
    config = load_config(trained.config, {"data.path": arguments.data_path})
    data = experiment.build_data(config)

    def predictions(batches) -> tuple[list[int], list[int]]:
        labels, found = [], []
        for images, batch_labels in batches:
            labels += batch_labels.asnumpy().tolist()
            found += model.logits(images.asnumpy()).argmax(1).tolist()
        return labels, found

    counts = confusion_matrix(*predictions(data.test()), labels=range(len(model.classes)))
    images = f"{data.train_images():,} images for training, {data.test_images():,} for testing"
    chosen = ""
    if config.data.holdout:
        images += f"; {data.validation_images():,} training images are held out, to choose recipe and epoch"
        right = [label == called for label, called in zip(*predictions(data.validation()), strict=True)]
        chosen = f"Of the {len(right):,} held-out images {sum(right) / len(right):.2%} are right."
        evaluations = [row for row in history if row.get("holdout_top1", math.nan) >= 0]  # NaN: not in this epoch
        if evaluations:
            best = max(evaluations, key=lambda row: row["holdout_top1"])
            chosen += f" The best epoch of the run by them was epoch {best['epoch']:.0f}, {best['holdout_top1']:.2%}."
    versions = runtime.versions()
    evaluated = f"MindSpore {versions['mindspore']} on one {versions['processor']}"

    make_folder(output)
    name = path.stem
    scheduled = {"lr", "alpha", *(surrogate.scheduled for surrogate in ESTIMATORS.values())}
    plot_curves(history, [column for column in history[0] if column in scheduled], output / f"{name}_curves.png")
    plot_confusion(counts, model.classes, output / f"{name}_confusion.png")
    write_atomically(output / f"{name}_{METRICS}", lambda partial: shutil.copyfile(run / METRICS, partial))
    made_by = (run / VERSIONS).read_text(encoding="utf-8")
    card = text(name, trained, counts, model.classes, images, chosen, evaluated, arguments.command, made_by)
    write_text(output / f"{name}.md", card)
    print(f"{output / name}.md: top-1 {counts.trace() / counts.sum():.2%} of {counts.sum()} test images")
    return 0


def text(
    name: str,
    trained: "Checkpoint",
    counts: "np.ndarray",
    classes: Sequence[str],
    images: str,
    chosen: str,
    evaluated: str,
    command: str,
    versions: str,
) -> str:
    """The card in Markdown.

    Args:
        counts: (K, K), images of each class (row) that were called each class (column).
        images: how many there are of each kind.
        chosen: the accuracy on held-out images, and the epoch, in sentences; empty without those.
        evaluated: the program and processor that counted.
        versions: those of the run.
    """
    config, dataset, prepared = trained.config, trained.config["data"]["name"], trained.preprocessing
    allowed = int(ALLOWED * counts.sum())
    recipe = [f"| `{key}` | {value} |" for key, value in recipe_of(config)]
    right = [
        f"| {label} | {row.sum()} | {row[number] / max(row.sum(), 1):.2%} |"
        for number, (label, row) in enumerate(zip(classes, counts, strict=True))
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{config['network']['name']}` on `{dataset}`, "
            f"{'binary' if config['network']['binary'] else 'full precision'}: top-1 "
            f"{counts.trace() / counts.sum():.2%} of {counts.sum()} test images "
            f"(`python eval.py --checkpoint pretrained:{name}`), counted by {evaluated}."
            + (
                f" Elsewhere up to {allowed} images may differ, where a value rounds to another sign."
                if allowed
                else ""
            ),
            *([chosen] if chosen else []),
            "",
            "## Data",
            "",
            DATA.get(dataset, f"The data set `{dataset}`."),
            f"{images}. A pixel's value divided by 255 is normalised with mean {prepared.mean} and standard deviation "
            f"{prepared.std} of red, green, blue.",
            "",
            "## Training",
            "",
            f"    {command}",
            "",
            "Keys that are not here are those of `default_config.yaml`.",
            "",
            "| key | value |",
            "| --- | --- |",
            *recipe,
            "",
            f"![loss and accuracy of each epoch]({name}_curves.png)",
            "",
            f"All numbers of each epoch: [{name}_{METRICS}]({name}_{METRICS}).",
            "",
            "## Accuracy of each class",
            "",
            "| class | test images | right |",
            "| --- | --- | --- |",
            *right,
            "",
            f"![confusion matrix]({name}_confusion.png)",
            "",
            "## Limits",
            "",
            LIMITS.get(dataset, "They know the classes of their data set, and call every image one of them."),
            "",
            "## Versions of the run",
            "",
            *(f"    {line}" for line in versions.splitlines() if line.startswith(NAMED_VERSIONS)),
            "",
        ]
    )


def recipe_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that say how the weights were trained, and their values: `MAIN_KEYS`, and all that differ from the
    default; without those of binary layers if there are none."""
    default = load_config().model_dump()
    for key in (*MAIN_KEYS, *(key for key in leaf_keys(Config) if key not in MAIN_KEYS)):
        applies = config["network"]["binary"] or not key.startswith(ONLY_BINARY)
        value = _value(config, key)
        if applies and key not in NOT_THE_RECIPE and (key in MAIN_KEYS or value != _value(default, key)):
            yield key, value


def _value(config: dict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


if __name__ == "__main__":
    sys.exit(cli.run(main))
