"""One export in a process of its own: read, freeze, write beside the place, verify, rename.

`export.py` starts it once a format, because MindSpore cannot write two ONNX files in one process. Its one argument is
the request as JSON; the keys are the arguments of `run`.
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
from ..preprocessing import Preprocessing, find_preprocessing
from .formats import DYNAMIC, EXPORTERS, SUFFIXES, require_air
from .freeze import freeze
from .verification import LOADERS, compare

VERIFIED_IMAGES = 500
VERIFICATION_BATCH = 20  # where the file takes any; at 224x224, all values before signs of a batch are 0.3 GB


def run(
    checkpoint: str,
    overrides: dict[str, Any],
    num_classes: int | None,
    file_format: str,
    batch_size: int | None,
    output: str,
) -> None:
    """Exports a checkpoint to `output` (without suffix) and writes its description beside; says what was compared.

    Args:
        overrides: dotted config keys.
        num_classes: None: those of the data set.
        file_format: one of `EXPORTERS`.
        batch_size: None: dynamic.

    Raises:
        UserError: the checkpoint cannot be read, the format not written, or the file does not agree with the network;
            then no file is left.
    """
    trained = checkpoints.read(checkpoint)
    config = load_config(trained.config, overrides)
    runtime.start(config.runtime.device_target, "graph", config.seed)
    network = freeze(experiment.trained_network(config, trained, num_classes))
    preprocessing = experiment.preprocessing_of(config, trained)
    target = Path(output + SUFFIXES[file_format])
    shape = (3, preprocessing.size, preprocessing.size)
    if file_format == "AIR":
        require_air(batch_size)  # before a folder is made for it
    try:
        if target.is_dir():
            raise UserError(f"cannot write {target}: it is a folder; choose another --output")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            written = Path(folder) / target.name
            EXPORTERS[file_format](network, shape, batch_size, written)
            verified = verify(network, config, file_format, batch_size, written)
            description = Path(folder) / "description.json"
            description.write_text(
                json.dumps(describe(config, preprocessing, file_format, batch_size, target.name), indent=2)
            )
            os.replace(written, target)
            os.replace(description, target.with_name(target.name + ".json"))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB; {verified}")


def verify(network: nn.Cell, config: Config, file_format: str, batch_size: int | None, path: Path) -> str:
    """Reads the file back in its own runtime and compares it with the network; a sentence of what was found."""
    if file_format not in LOADERS:
        return "not read back: no runtime for it here"
    images, source = verification_images(config)
    return f"{compare(network, LOADERS[file_format](path), images, batch_size or VERIFICATION_BATCH)} ({source})"


def verification_images(config: Config) -> tuple[np.ndarray, str]:
    """At least 500 normalised images (N, 3, H, W) of the config's test set, else of digits, and which set it was."""
    try:
        test_set = experiment.build_data(config, splits=("test",))
    except UserError:
        test_set = None
    size = find_preprocessing(config.data.name).size
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
    """What a user of the file must know, as plain data."""
    return {
        "file": name,
        "format": file_format,
        "network": config.network.name,
        "binary": config.network.binary,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["dynamic" if batch_size is DYNAMIC else batch_size, 3, preprocessing.size, preprocessing.size],
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
