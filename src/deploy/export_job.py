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
from ..files import make_folder, write_atomically, write_text
from ..preprocessing import Preprocessing, find_preprocessing
from .formats import FORMATS
from .freeze import freeze
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
) -> None:
    """Export a checkpoint to `output` plus suffix, write its description next to it and print the comparison.

    Args:
        overrides: dotted config keys.
        num_classes: None: those of the data set.
        file_format: a name in `FORMATS`.
        batch_size: None: dynamic.

    Raises:
        UserError: the checkpoint cannot be read, the format cannot be written, or the file does not agree with the
            network. No file is left in that case.
    """
    trained = checkpoints.read(checkpoint)
    config = load_config(checkpoints.network_config(trained), overrides)
    require_data_set_of(trained, config)
    runtime.start(config.runtime.device_target, "graph", config.seed)
    network = freeze(experiment.trained_network(config, trained, num_classes))
    preprocessing = experiment.preprocessing_of(config, trained)
    target = Path(output + FORMATS[file_format].suffix)
    shape = (3, preprocessing.size, preprocessing.size)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; choose another --output")
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            unverified = Path(folder) / target.name
            FORMATS[file_format].export(network, shape, batch_size, unverified)
            verified = verify(network, config, file_format, batch_size, unverified)
            write_atomically(target, lambda partial: os.replace(unverified, partial))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    description = describe(config, preprocessing, file_format, batch_size, target.name)
    write_text(target.with_name(target.name + ".json"), json.dumps(description, indent=2))
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB; {verified}")


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
    config: Config, preprocessing: Preprocessing, file_format: str, batch_size: int | None, name: str
) -> dict[str, Any]:
    """Return all that a user of the file must know, as plain data."""
    return {
        "file": name,
        "format": file_format,
        "network": config.network.name,
        "binary": config.network.binary,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": [batch_size or "dynamic", 3, preprocessing.size, preprocessing.size],
        },
        "output": {"name": "logits", "dtype": "float32"},
        "mindspore": ms.__version__,
        "preprocessing": preprocessing.to_dict(),
    }


def main(argv: list[str]) -> int:
    run(**json.loads(argv[0]))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
