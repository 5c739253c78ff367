"""Write the card of trained weights: data, recipe, command, curves, accuracy of each class, confusion matrix, limits.

    python -m src.card pretrained:resnet20_digits --run runs/digits --command "python train.py --config FILE"

evaluates the weights on their test set and writes NAME.md, NAME_curves.png and NAME_confusion.png into --output.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli, runtime
from .errors import UserError
from .files import make_folder, write_text
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
NAMED_VERSIONS = ("continued after", "git commit", "python", "processor", "cores", "mindspore", "mindcv", "numpy")
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
    from .config import load_config
    from .deploy import load_model
    from .training.curves import plot_confusion, plot_curves

    trained = checkpoints.read(path)
    if trained.config is None:
        raise UserError(f"{path} does not hold the config that it was trained with")
    model = load_model(path)
    config = load_config(trained.config, {"data.path": arguments.data_path})
    data = experiment.build_data(config)
    labels, found = [], []
    for images, batch_labels in data.test():
        labels += batch_labels.asnumpy().tolist()
        found += model.logits(images.asnumpy()).argmax(1).tolist()
    counts = confusion_matrix(labels, found, labels=range(len(model.classes)))

    make_folder(output)
    name = path.stem
    scheduled = {"lr", "alpha", *(surrogate.scheduled for surrogate in ESTIMATORS.values())}
    plot_curves(history, [column for column in history[0] if column in scheduled], output / f"{name}_curves.png")
    plot_confusion(counts, model.classes, output / f"{name}_confusion.png")
    images = f"{data.train_images():,} images for training, {data.test_images():,} for testing"
    if config.data.holdout:
        images += f"; {data.validation_images():,} training images are held out, to choose recipe and epoch"
    versions = (run / VERSIONS).read_text(encoding="utf-8")
    write_text(output / f"{name}.md", text(name, trained, counts, model.classes, images, arguments.command, versions))
    print(f"{output / name}.md: top-1 {counts.trace() / counts.sum():.2%} of {counts.sum()} test images")
    return 0


def text(
    name: str,
    trained: "Checkpoint",
    counts: "np.ndarray",
    classes: Sequence[str],
    images: str,
    command: str,
    versions: str,
) -> str:
    """The card in Markdown.

    Args:
        counts: (K, K), images of each class (row) that were called each class (column).
        images: how many there are of each kind.
        versions: those of the run.
    """
    config, dataset, prepared = trained.config, trained.config["data"]["name"], trained.preprocessing
    recipe = [f"| `{key}` | {_value(config, key)} |" for key in MAIN_KEYS]
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
            f"(`python eval.py --checkpoint pretrained:{name}`).",
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
            "| key | value |",
            "| --- | --- |",
            *recipe,
            "",
            f"![loss and accuracy of each epoch]({name}_curves.png)",
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


def _value(config: dict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


if __name__ == "__main__":
    sys.exit(cli.run(main))
