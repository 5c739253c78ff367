"""Predict the classes of images with a trained or an exported network.

    python predict.py --model exports/resnet20.xml photo.jpg             top classes and their probabilities
    python predict.py --model runs/latest/best.ckpt DIR --csv out.csv    all images below a folder
    find . -name '*.png' | python predict.py --model FILE - --json       paths from standard input, one a line

FILE is a checkpoint (.ckpt, .safetensors), or a file that export.py wrote: MINDIR (.mindir), ONNX (.onnx) or OpenVINO
(.xml), or one of scripts/run_convert_lite.sh (.mindir, .ms), with its JSON next to it; pretrained:NAME is one that
comes with the project. MindSpore is needed only for checkpoints and its own MINDIR. An image of another size is scaled
until its shorter side fits, and its centre is taken. EXIF orientation is ignored, as in training.

An image that cannot be read is named, and the others are predicted. Exit code: 0 if all images were predicted, 1 if
some were, 2 if none or for a wrong argument.
"""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from src import cli

with cli.explain_missing_packages():
    from tqdm import tqdm

    from src.deploy import load_model
    from src.deploy.description import MAX_BATCH
    from src.deploy.prediction import Prediction, find_images, predict
    from src.errors import UserError
    from src.files import require_writable, write_text

MANY = 100  # images from which on there is a progress bar
ALL, SOME, NONE = 0, 1, cli.BAD_INPUT


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="predict.py", description=__doc__)
    parser.add_argument(
        "--model", "--checkpoint", metavar="FILE", type=cli.path, required=True, help="a checkpoint or exported file"
    )
    parser.add_argument(
        "images", metavar="IMAGE|DIR|-", nargs="+", help="image files, folders, or - for paths on stdin"
    )
    parser.add_argument("--top", type=cli.integer, default=5, metavar="K", help="classes per image; default: 5")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per image")
    parser.add_argument("--csv", type=cli.path, metavar="FILE", help="also write a table")
    parser.add_argument(
        "--batch_size", type=cli.integer, default=32, metavar="N", help="images at once; default: 32, or the file's own"
    )
    parser.add_argument(
        "--device_target", choices=("CPU", "GPU", "Ascend"), default="CPU", help="for MindSpore's formats"
    )
    parser.add_argument("--num_classes", type=cli.integer, metavar="K", help="of a checkpoint that does not hold it")
    arguments = parser.parse_args(argv)
    for name, bound in (("top", None), ("batch_size", MAX_BATCH), ("num_classes", None)):
        value = getattr(arguments, name)
        if value is not None and (value < 1 or (bound and value > bound)):
            limits = f"from 1 to {bound}" if bound else "at least 1"
            raise UserError(f"--{name} is {value}, but must be {limits}")
    if arguments.csv:
        require_writable(Path(arguments.csv).parent)
    paths = [line for path in arguments.images for line in (lines_of_stdin() if path == "-" else [path])]
    images = list(find_images(paths))
    if not images:
        raise UserError("standard input names no image: give a path on each line")
    model = load_model(arguments.model, arguments.device_target, arguments.num_classes)

    predictions = []
    progress = tqdm(total=len(images), unit="image", disable=None if len(images) >= MANY else True)
    with progress:
        for prediction in predict(model, images, arguments.batch_size, arguments.top):
            progress.update()
            predictions.append(prediction)
            if prediction.error:
                progress.write(cli.one_line(f"{prediction.image}: {prediction.error}"), sys.stderr)
            if arguments.json or not prediction.error:
                progress.write(as_json(prediction) if arguments.json else as_text(prediction))
    if arguments.csv:
        write_text(Path(arguments.csv), as_csv(predictions, min(arguments.top, len(model.classes))))
    failed = sum(prediction.error is not None for prediction in predictions)
    return ALL if not failed else NONE if failed == len(predictions) else SOME


def lines_of_stdin() -> list[str]:
    """The paths on standard input; bytes that are not UTF-8 stay what they are."""
    if sys.stdin is None:
        raise UserError("standard input is closed: give images as arguments")
    content = sys.stdin.buffer.read().decode(sys.getfilesystemencoding(), "surrogateescape")
    return [line.removesuffix("\r") for line in content.split("\n") if line.strip()]


def as_text(prediction: Prediction) -> str:
    ranks = ", ".join(f"{name} {probability:.1%}" for name, probability in prediction.classes)
    return cli.one_line(f"{prediction.image}: {ranks}")


def as_json(prediction: Prediction) -> str:
    if prediction.error:
        return json.dumps({"image": prediction.image, "error": prediction.error})
    ranks = [{"class": name, "probability": probability} for name, probability in prediction.classes]
    return json.dumps({"image": prediction.image, "predictions": ranks})


def as_csv(predictions: Sequence[Prediction], top: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
    writer.writerow(["image", *ranks, "error"])
    for prediction in predictions:
        values = [value for name, probability in prediction.classes for value in (name, f"{probability:.6f}")]
        writer.writerow([prediction.image, *(values or [""] * 2 * top), prediction.error or ""])
    return text.getvalue().encode("utf-8", "backslashreplace").decode()  # names may hold bytes that are not UTF-8


if __name__ == "__main__":
    sys.exit(cli.run(main))
