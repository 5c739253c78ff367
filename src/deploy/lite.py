"""MindSpore Lite, which runs networks on CPUs and on Ascend.

    python lite.py convert net.onnx net_lite.mindir --device ascend     an offline model; .ms: for small devices
    python lite.py run net_lite.mindir images.npy logits.npy            float32 (N, C, H, W) to (N, K)

`lite_process.py` starts it a third way, `serve`, to run many batches in a Python that has MindSpore Lite. Some versions
of MindSpore Lite need an old Python. So this file needs only Python 3.7, numpy and mindspore_lite, and imports nothing
of this project.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile

import numpy as np

DEVICES = ("cpu", "ascend")
NOT_INSTALLED = "{} has no MindSpore Lite: docs/ascend.md says where to get it"
OPTIMIZE = {"cpu": "general", "ascend": "ascend_oriented"}  # of the converter
SOURCES, SUFFIXES = (".onnx", ".mindir"), (".mindir", ".ms")


class LiteError(Exception):
    """What is wrong, in a sentence."""


class LiteModel:
    """An offline model in MindSpore Lite, or a file that it converts when it loads.

    Args:
        path: ends in .mindir or .ms.
        device: "cpu" or "ascend".
        device_id: number of the Ascend device.
        threads: of the CPU; None: MindSpore Lite's choice.

    Raises:
        LiteError: MindSpore Lite is not installed, or cannot read the file or use the device.
    """

    trace = None  # it does not show the values inside

    def __init__(self, path, device="cpu", device_id=0, threads=None):
        lite = _mindspore_lite()
        path, suffix = str(path), os.path.splitext(str(path))[1]
        if suffix not in SUFFIXES:
            raise LiteError("{} must end in {}".format(path, " or ".join(SUFFIXES)))
        if not os.path.isfile(path):
            raise LiteError("{} is not a file".format(path))
        kind = lite.ModelType.MINDIR if suffix == ".mindir" else lite.ModelType.MINDIR_LITE
        try:
            context = lite.Context()
            context.target = [device]
            if device == "ascend":
                context.ascend.device_id = device_id
            elif threads is not None:
                context.cpu.thread_num = threads
            self.model = lite.Model()
            self.model.build_from_file(path, kind, context)
            (self.input,) = self.model.get_inputs()
        except Exception as error:
            raise LiteError("MindSpore Lite cannot load {} on {}: {}".format(path, device, _reason(error)))

    def logits(self, images):
        """Logits (N, K) of images, float32 (N, C, H, W)."""
        return self.outputs(images)[0]

    def outputs(self, images):
        """All outputs for images, float32 (N, C, H, W). The model's own batch size is used; the last batch is padded.

        Files for small devices (.ms) take N, H, W, C: their shape says so, their format does not.
        """
        shape, results = list(self.input.shape), []
        if shape[1:] != list(images.shape[1:]):
            images = images.transpose(0, 2, 3, 1)
            if shape[1:] != list(images.shape[1:]):
                raise LiteError("the images have the shape {}, but the model takes {}".format(images.shape, shape))
        for start in range(0, len(images), shape[0]):
            batch = np.zeros(shape, np.float32)
            some = images[start : start + shape[0]]
            batch[: len(some)] = some
            self.input.set_data_from_numpy(batch)
            try:
                found = self.model.predict([self.input])
            except Exception as error:
                raise LiteError("MindSpore Lite cannot run the model: {}".format(_reason(error)))
            results.append([output.get_data_to_numpy()[: len(some)].copy() for output in found])
        return [np.concatenate(parts) for parts in zip(*results)]


def serve(path, device, device_id, threads):
    """Run batches until the standard input ends.

    A request is a line of JSON with two paths: `images`, an .npy file with float32 (N, C, H, W), and `outputs`, the
    .npz file to write. The reply is a line of JSON with `error`, a sentence or null. The first reply comes before any
    request, once the model is loaded.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MindSpore Lite prints to the standard output

    def reply(error=None):
        replies.write(json.dumps({"error": error}) + "\n")
        replies.flush()

    try:
        loaded = LiteModel(path, device, device_id, threads)
    except LiteError as error:
        return reply(str(error))
    reply()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            np.savez(request["outputs"], *loaded.outputs(np.load(request["images"], allow_pickle=False)))
            reply()
        except (LiteError, OSError) as error:
            reply(str(error))


def convert(source, target, device="cpu"):
    """Convert an ONNX or MINDIR file to an offline model, and write a description next to it if the source has one.

    Args:
        source: .onnx or .mindir; with a fixed batch size.
        target: ends in .mindir, or in .ms for small devices.
        device: which device it is optimized for.

    Raises:
        LiteError: MindSpore Lite is not installed or cannot convert the file. Nothing is left in that case.
    """
    check(source, target)
    lite = _mindspore_lite()
    kind = {".onnx": lite.FmkType.ONNX, ".mindir": lite.FmkType.MINDIR}[os.path.splitext(source)[1]]
    suffix, folder = os.path.splitext(target)[1], os.path.dirname(os.path.abspath(target))
    partial = tempfile.mkdtemp(dir=folder)
    try:
        converter = lite.Converter()
        converter.save_type = lite.ModelType.MINDIR if suffix == ".mindir" else lite.ModelType.MINDIR_LITE
        converter.optimize = OPTIMIZE[device]
        made = os.path.join(partial, "model")
        converter.convert(fmk_type=kind, model_file=source, output_file=made)
        os.chmod(made + suffix, 0o644)
        described = _describe(source, made + suffix, device)
        os.replace(made + suffix, target)
        if described:
            os.replace(described, target + ".json")
    except Exception as error:
        raise LiteError("MindSpore Lite cannot convert {}: {}".format(source, _reason(error)))
    finally:
        shutil.rmtree(partial)


def check(source, target):
    """LiteError if the names are not those of a file that can be converted and of one that can be written."""
    if os.path.splitext(source)[1] not in SOURCES:
        raise LiteError("{} must end in {}".format(source, " or ".join(SOURCES)))
    if os.path.splitext(target)[1] not in SUFFIXES:
        raise LiteError("{} must end in {}".format(target, " or ".join(SUFFIXES)))
    if not os.path.isfile(source):
        raise LiteError("{} is not a file".format(source))
    if os.path.isdir(target):
        raise LiteError("{} is a folder: give the name of a file".format(target))
    if os.path.abspath(source) == os.path.abspath(target):
        raise LiteError("{} cannot replace itself: give another name".format(source))
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise LiteError("{} is not a folder".format(folder))


def _describe(source, made, device):
    """Write the source's description for the new file next to it, and return its path; None if there is none."""
    if not os.path.isfile(source + ".json"):
        return None
    with open(source + ".json", encoding="utf-8") as file:
        description = json.load(file)
    with open(made, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    suffix = os.path.splitext(made)[1]
    changed = dict(
        description,
        format="LITE",
        input=dict(description["input"], layout="NHWC" if suffix == ".ms" else "NCHW"),
        sha256={suffix: digest},
        versions=dict(description["versions"], mindspore_lite=_version(), device=device),
    )
    with open(made + ".json", "w", encoding="utf-8") as file:
        json.dump(changed, file, indent=2)
    return made + ".json"


def _mindspore_lite():
    try:
        import mindspore_lite
    except ImportError:
        raise LiteError(NOT_INSTALLED.format(sys.executable or "Python"))
    return mindspore_lite


def _version():
    return str(getattr(_mindspore_lite(), "__version__", "unknown"))


def _reason(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", metavar="convert|run|serve")
    converting, running, serving = (actions.add_parser(name) for name in ("convert", "run", "serve"))
    converting.add_argument("source", metavar="MODEL", help=".onnx or .mindir")
    converting.add_argument("target", metavar="OUTPUT", help=".mindir or .ms")
    for action in (running, serving):
        action.add_argument("model", metavar="MODEL", help=".mindir or .ms")
        action.add_argument("--device_id", type=int, default=0, help="number of the Ascend device; default: 0")
        action.add_argument("--threads", type=int, help="of the CPU")
    running.add_argument("images", metavar="IMAGES", help=".npy, float32 (N, C, H, W)")
    running.add_argument("logits", metavar="LOGITS", help=".npy that is written")
    for action in (converting, running, serving):
        action.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    arguments = parser.parse_args(argv)
    if arguments.action is None:
        parser.error("give convert, run or serve")
    try:
        if arguments.action == "convert":
            convert(arguments.source, arguments.target, arguments.device)
            print("{}: {:.0f} KiB".format(arguments.target, os.path.getsize(arguments.target) / 1024))
        elif arguments.action == "serve":
            serve(arguments.model, arguments.device, arguments.device_id, arguments.threads)
        else:
            images = np.load(arguments.images, allow_pickle=False)
            if not isinstance(images, np.ndarray) or images.ndim != 4 or not len(images):
                raise LiteError("{} does not hold images (N, C, H, W)".format(arguments.images))
            model = LiteModel(arguments.model, arguments.device, arguments.device_id, arguments.threads)
            logits = model.logits(images.astype(np.float32))
            with open(arguments.logits + ".partial", "wb") as file:
                np.save(file, logits)
            os.replace(arguments.logits + ".partial", arguments.logits)
    except (LiteError, OSError, ValueError, EOFError) as error:
        print("error: {}".format(_reason(error)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
