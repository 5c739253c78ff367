"""One export in a separate process: read, freeze, write, verify, rename.

`export_process` starts it once for each format. Its only argument is the request as JSON; the keys are the arguments of
`run`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from .. import checkpoints, cli, experiment, runtime
from ..config import Config, load_config
from ..data import open_dataset
from ..errors import UserError
from ..files import make_folder, write_atomically
from ..preprocessing import Preprocessing, find_preprocessing
from .description import Description, Input, Output, Resize, path_of, sha256
from .formats import FORMATS
from .freeze import freeze, round_to_float16
from .verification import compare

VERIFIED_IMAGES = 500
VERIFICATION_BATCH = 20  # with a dynamic batch; at 224x224 all values before signs of a batch are 0.3 GB


def run(
    checkpoint: str,
    overrides: dict[str, Any],
    num_classes: int | None,
    file_format: str,
    batch_size: int | None,
    output: str,
    float_weights: str = "float32",
) -> None:
    """Export a checkpoint to `output` plus suffix, write its description next to it and print the comparison.

    Args:
        overrides: dotted config keys.
        num_classes: None: those of the data set.
        file_format: a name in `FORMATS`.
        batch_size: None: dynamic.
        float_weights: "float16": round the weights of full-precision layers to float16, and print the accuracy before
            and after if the test set is there.

    Raises:
        UserError: the checkpoint cannot be read, the format cannot be written, or the file does not agree with the
            network. No file is left in that case.
    """
    trained = checkpoints.read(checkpoint)
    config = load_config(checkpoints.network_config(trained), overrides)
    require_data_set_of(trained, config)
    runtime.start(config.runtime.device_target, "graph", config.seed)
    preprocessing = experiment.preprocessing_of(config, trained)
    network = freeze(experiment.trained_network(config, trained, num_classes))
    if float_weights == "float16":
        before = accuracy(network, config)
        round_to_float16(network)
        if before is not None:
            print(f"top-1 with float32 weights {before:.2%}, with float16 weights {accuracy(network, config):.2%}")
    written = FORMATS[file_format]
    target = Path(output + written.suffix)
    shape = (3, preprocessing.size, preprocessing.size)
    for path in written.files(target):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; choose another --output")
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            unverified = Path(folder) / target.name
            remark = written.export(network, shape, batch_size, unverified)
            verified = verify(network, config, file_format, batch_size, unverified)
            new = written.files(unverified)
            classes = num_classes or len(preprocessing.classes)
            description = describe(config, preprocessing, classes, file_format, batch_size, new)
            path_of(target).unlink(
                missing_ok=True
            )  # until the last file is there, no description is better than another
            for path, final in zip(new, written.files(target), strict=True):
                write_atomically(final, lambda partial, path=path: os.replace(path, partial))
            description.write(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    size = sum(path.stat().st_size for path in written.files(target))
    print(f"{target}: {size / 1024:.0f} KiB; {verified}{f'; {remark}' if remark else ''}")


def accuracy(network: nn.Cell, config: Config) -> float | None:
    """Top-1 on the test set of the config, in [0, 1]; None if it is not there."""
    try:
        test_set = experiment.build_data(config, splits=("test",))
    except UserError:
        return None
    right = [network(images).asnumpy().argmax(1) == labels.asnumpy() for images, labels in test_set.test()]
    return float(np.concatenate(right).mean())


def require_data_set_of(checkpoint: checkpoints.Checkpoint, config: Config) -> None:
    """UserError if the config names another data set than the checkpoint was trained on."""
    if checkpoint.config is None or config.data.name == checkpoint.config["data"]["name"]:
        return
    found = find_preprocessing(config.data.name)
    experiment.require_same_classes(checkpoint.preprocessing, found, config.data.name, checkpoint.path)
    if found.classes != checkpoint.preprocessing.classes:
        raise UserError(
            f"{checkpoint.path} was trained on {checkpoint.config['data']['name']}, not on {config.data.name}; leave "
            "out --dataset: the checkpoint names its data set"
        )


def verify(network: nn.Cell, config: Config, file_format: str, batch_size: int | None, path: Path) -> str:
    """Load the file into its own runtime, compare it with the network and return a sentence about the result."""
    load = FORMATS[file_format].load
    if load is None:
        return "not read back: no runtime for it here"
    images, source = verification_images(config)
    return f"{compare(network, load(path), images, batch_size or VERIFICATION_BATCH)} ({source})"


def verification_images(config: Config) -> tuple[np.ndarray, str]:
    """Return 500 normalised images (N, 3, H, W) and their source: the config's test set, filled up from digits."""
    try:
        test_set = experiment.build_data(config, splits=("test",))
    except UserError:
        test_set = None
    size = find_preprocessing(config.data.name, config.data.image_size).size
    digits = open_dataset("digits", batch_size=config.data.batch_size, augment=False, image_size=size)
    found: list[np.ndarray] = []
    count, sources = 0, []
    for name, batches in (
        (config.data.name, test_set.test if test_set else tuple),
        ("digits", digits.test),
        ("digits", lambda: digits.train(0)),
    ):
        for images, _ in batches():
            if count >= VERIFIED_IMAGES:
                break
            found.append(images.asnumpy())
            count += len(found[-1])
            if name not in sources:
                sources.append(name)
    return np.concatenate(found)[:VERIFIED_IMAGES], " and ".join(sources)


def describe(
    config: Config,
    preprocessing: Preprocessing,
    num_classes: int,
    file_format: str,
    batch_size: int | None,
    files: list[Path],
) -> Description:
    """Return what the user of the files must know."""
    size = preprocessing.size
    return Description(
        format=file_format,
        network=config.network.name,
        binary=config.network.binary,
        dataset=config.data.name,
        input=Input(batch_size=batch_size, shape=(3, size, size)),
        output=Output(classes=num_classes),
        resize=Resize(shorter_side=preprocessing.shorter_side or size),
        preprocessing=preprocessing.to_dict(),
        sha256={path.suffix: sha256(path) for path in files},
        versions={"mindspore": ms.__version__},
    )


def main(argv: list[str]) -> int:
    run(**json.loads(argv[0]))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
