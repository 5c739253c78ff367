"""Export a checkpoint for inference: weights binarized to constants, no noise modules, nothing trainable.

    python export.py --checkpoint runs/latest/best.ckpt                        MINDIR, ONNX and OPENVINO, any batch size
    python export.py --checkpoint FILE --file_format ONNX --batch_size 1 --output exports/resnet20

OPENVINO files hold binary weights in 1 bit; MINDIR and ONNX hold them as float32. Each file is read back by its own
runtime (MindSpore, onnxruntime, OpenVINO) and compared with the network on 500 images; a file that does not agree is
deleted. A JSON next to it says how images are prepared, and names the classes. AIR needs an Ascend host; ALL is every
format that this host can write.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from src import cli

with cli.explain_missing_packages():
    from src import runtime
    from src.config import load_config
    from src.deploy import formats
    from src.deploy.description import MAX_BATCH
    from src.deploy.export_process import run_export_job
    from src.errors import UserError
    from src.files import require_writable
    from src.pretrained import PREFIX

FLOAT_WEIGHTS = ("float32", "float16")
USED_KEYS = ("data.name", "data.path", "data.image_size", "network", "runtime.device_target")
SHORTHANDS = {"--data_path": "data.path", "--dataset": "data.name", "--device_target": "runtime.device_target"}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="export.py", description=__doc__)
    parser.add_argument("--checkpoint", "--ckpt", metavar="FILE", type=cli.path, required=True, help=cli.A_CHECKPOINT)
    parser.add_argument(
        "--file_format", choices=[*formats.EXPORTED, formats.ALL], default=formats.ALL, help=f"default: {formats.ALL}"
    )
    parser.add_argument(
        "--batch_size", default="dynamic", metavar="N|dynamic", help="images per call; default: dynamic"
    )
    parser.add_argument(
        "--float_weights",
        choices=FLOAT_WEIGHTS,
        default=FLOAT_WEIGHTS[0],
        help=f"weights of full-precision layers in OPENVINO files; default: {FLOAT_WEIGHTS[0]}",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=cli.path,
        help="the file without suffix; default: the checkpoint's name in its folder",
    )
    parser.add_argument(
        "--num_classes",
        type=cli.integer,
        metavar="K",
        help="number of classes of the network; default: the data set's",
    )
    cli.add_config_flags(parser, SHORTHANDS, USED_KEYS)
    arguments, overrides = cli.parse_config_flags(parser, argv)
    config = load_config(overrides=overrides)  # refuses bad values before a process is started
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise UserError(f"--num_classes is {arguments.num_classes}, but must be at least 1")
    checkpoint = cli.require_checkpoint(arguments.checkpoint)
    batch_size = parse_batch_size(arguments.batch_size)
    file_formats = formats.select(arguments.file_format, config.runtime.device_target, batch_size)
    if arguments.float_weights != FLOAT_WEIGHTS[0] and file_formats != ["OPENVINO"]:
        raise UserError(f"--float_weights {arguments.float_weights} goes with --file_format OPENVINO only")
    is_ours = arguments.checkpoint.startswith(PREFIX)  # whose folder holds only what the manifest lists
    output = Path(arguments.output or (checkpoint.stem if is_ours else checkpoint.with_suffix("")))
    require_writable(output.parent)
    runtime.prepare_environment()
    for file_format in file_formats:
        request = {
            "checkpoint": str(checkpoint),
            "overrides": overrides,
            "num_classes": arguments.num_classes,
            "file_format": file_format,
            "batch_size": batch_size,
            "output": str(output),
            "float_weights": arguments.float_weights,
        }
        exit_code = run_export_job(request, arguments.traceback)
        if exit_code:
            return exit_code
    return 0


def parse_batch_size(text: str) -> int | None:
    """Return the number, or None for dynamic."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or len(text) > len(str(MAX_BATCH)) or not 1 <= int(text) <= MAX_BATCH:
        raise UserError(f"--batch_size is {text!r}, but must be dynamic or a whole number from 1 to {MAX_BATCH}")
    return int(text)


if __name__ == "__main__":
    sys.exit(cli.run(main))
