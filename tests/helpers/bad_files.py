"""Write a folder of bad files, which every program must refuse, next to the good originals."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
from mindspore import Tensor, nn
from PIL import Image

from src import checkpoints
from src.binary import Binarization
from src.config import MAX_CONFIG_BYTES, load_config
from src.deploy.description import sha256
from src.models import create_model
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.images import write_tree
from tests.helpers.onnx_graph import model_files

CIFAR_FILE_BYTES = 10_000 * 3073
CONFIGS = {
    "laughs.yaml": f"network:\n  options:\n    a: &a [{9 * 'x, '}]\n"
    + "".join(f"    {name}: &{name} [{9 * f'*{last}, '}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself.yaml": "network: {options: &a {a: *a}}\n",
    "deep.yaml": "seed: " + 20_000 * "[" + "\n",
    "deep_keys.yaml": "network: {options: " + 150 * "{a: " + "1" + 150 * "}" + "}\n",
    "huge.yaml": (MAX_CONFIG_BYTES + 1) * "#",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "twice_nested.yaml": "optimizer:\n  lr: 0.1\n  lr: 0.2\n",
    "unknown.yaml": "optimizer: {lr: 0.1, wieght_decay: 0}\n",
    "unknown_section.yaml": "optimiser: {lr: 0.1}\n",
    "list.yaml": "- a\n- b\n",
    "text.yaml": "just text\n",
    "unclosed.yaml": "seed: [1\n",
    "tab.yaml": "optimizer:\n\tlr: 0.1\n",
    "list_as_key.yaml": "? [a]\n: 1\n",
    "python.yaml": "seed: !!python/object/apply:os.system ['touch made_by_yaml']\n",
    "date.yaml": "seed: 2020-01-01\n",
    "dotted.yaml": "optimizer.lr: 0.1\n",
    "renamed.yaml": "data: {workers: 2}\n",
    "5000_digits.yaml": f"seed: {5000 * '9'}\n",
    "two_documents.yaml": "seed: 1\n---\nseed: 2\n",
    "nul.yaml": 'output_dir: "a\\0b"\n',
    "empty_name.yaml": "output_dir: ''\n",
    "section_is_null.yaml": "optimizer: null\n",
    "scalar_is_list.yaml": "data: {batch_size: [8]}\n",
    "number_is_text.yaml": "optimizer: {lr: fast}\n",
    "text_is_number.yaml": "data: {name: 5}\n",
    "number_is_true.yaml": "train: {epochs: true}\n",
    "key_is_number.yaml": "network: {options: {1: 2}}\n",
}


def write_all(folder: Path) -> Path:
    """Fill an empty folder and return it."""
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x81")
    (folder / "file").write_text("a file\n")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "two\nlines").mkdir()
    (folder / "ä b").mkdir()
    (folder / "ä b/file").write_text("a file\n")
    write_checkpoints(folder)
    write_runs(folder)
    write_cifar(folder)
    write_imagenet(folder)
    write_models(folder)
    return folder


def write_checkpoints(folder: Path) -> None:
    """`sound.ckpt` of a full-precision ResNet-20 on digits, and what can be wrong with one."""
    network = create_model("resnet20", binarization=Binarization.full_precision())
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    config = load_config(overrides={"data.name": "digits", "network.binary": False}).model_dump()
    sound = folder / "sound.ckpt"
    checkpoints.save(sound, network, optimizer, config, PREPROCESSING["digits"], None, {})
    content = sound.read_bytes()
    for name, damaged in {
        "zero_bytes.ckpt": b"",
        "zeros.ckpt": bytes(4096),
        "truncated.ckpt": content[: len(content) // 2],
        "flipped.ckpt": content[:9999] + bytes([content[9999] ^ 1]) + content[10_000:],
        "text.ckpt": b"no checkpoint\n" * 99,
        "text.safetensors": b"no checkpoint\n" * 99,
        "empty.safetensors": b"",
        "ä b/truncated.ckpt": content[:99],
    }.items():
        (folder / name).write_bytes(damaged)
    Image.new("RGB", (32, 32)).save(folder / "image.ckpt", "PNG")
    (folder / "folder.ckpt").mkdir()
    (folder / "loop.ckpt").symlink_to("loop.ckpt")
    (folder / "dangling.ckpt").symlink_to("nowhere.ckpt")
    ms.save_checkpoint(
        create_model("resnet20", num_classes=7, binarization=Binarization.full_precision()),
        str(folder / "other_classes.ckpt"),
    )
    broken = create_model("resnet20", binarization=Binarization.full_precision())
    broken.linear.weight.set_data(Tensor(np.full(broken.linear.weight.shape, np.nan, np.float32)))
    ms.save_checkpoint(broken, str(folder / "not_finite.ckpt"))
    weight = {"name": "layers.0.conv.weight", "data": Tensor(np.zeros(9, np.float32))}
    ms.save_checkpoint([weight], str(folder / "other_network.ckpt"))
    for name, text in {"foreign_texts.ckpt": "resnet", "foreign_config.ckpt": '{"depth": 20}'}.items():
        ms.save_checkpoint(network, str(folder / name), append_dict={"config": text}, crc_check=True)


def write_runs(folder: Path) -> None:
    """Run folders, named after what is wrong with them."""
    sound = (folder / "sound.ckpt").read_bytes()
    digits = "data: {name: digits}\nnetwork: {binary: false}\n"
    for name, config, last in (
        ("run", digits, sound),
        ("run_of_text", digits, b"no checkpoint\n"),
        ("run_of_laughs", CONFIGS["laughs.yaml"], sound),
        ("run_of_weights", digits, (folder / "other_classes.ckpt").read_bytes()),
    ):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(config)
        (folder / name / "last.ckpt").write_bytes(last)
    (folder / "run_without_config").mkdir()
    (folder / "run_without_config/last.ckpt").write_bytes(sound)


def write_cifar(folder: Path) -> None:
    """CIFAR-10 folders, named after what is wrong with them. The files are sparse: zeros are label 0 and black."""
    for name in ("missing", "empty_file", "truncated", "long", "labels"):
        target = folder / f"cifar_{name}" / "cifar-10-batches-bin"
        target.mkdir(parents=True)
        for file in processes.CIFAR10_FILES:
            (target / file).touch()
            os.truncate(target / file, CIFAR_FILE_BYTES)
        third = target / "data_batch_3.bin"
        if name == "missing":
            third.unlink()
        elif name == "labels":
            with third.open("r+b") as file:
                file.seek(7 * 3073)
                file.write(b"\x0a")
        else:
            os.truncate(third, {"empty_file": 0, "truncated": CIFAR_FILE_BYTES - 1, "long": 2 * CIFAR_FILE_BYTES}[name])


def write_imagenet(folder: Path) -> None:
    """Image folders, named after what is wrong with them."""
    sound = write_tree(folder / "imagenet", train=8, test=4, size=(40, 30))
    for name in ("no_val", "empty_class", "other_classes", "flat", "broken_image"):
        shutil.copytree(sound, folder / f"imagenet_{name}")
    shutil.rmtree(folder / "imagenet_no_val/val")
    for file in (folder / "imagenet_empty_class/train/class2").iterdir():
        file.unlink()
    shutil.rmtree(folder / "imagenet_other_classes/val/class1")
    shutil.rmtree(folder / "imagenet_flat/val")
    (folder / "imagenet_flat/val").mkdir()
    shutil.copy(next((sound / "val").rglob("*.JPEG")), folder / "imagenet_flat/val")
    broken = next((folder / "imagenet_broken_image/val/class1").iterdir())
    broken.write_bytes(broken.read_bytes()[:300])


def write_models(folder: Path) -> None:
    """Exported models next to `image.png`: sound `net.onnx` and `net.xml`, and others named after what is wrong."""
    Image.new("RGB", (9, 9)).save(folder / "image.png")
    (folder / "empty.png").touch()
    model_files(folder)
    described = json.loads((folder / "net.onnx.json").read_text())

    def write(name: str, text: str | dict | None, content: bytes | None = None) -> None:
        """net.onnx, or the content, as NAME.onnx, with the text or the changed description as its JSON."""
        (folder / f"{name}.onnx").write_bytes((folder / "net.onnx").read_bytes() if content is None else content)
        if text is not None:
            text = text if isinstance(text, str) else json.dumps(described | text)
            (folder / f"{name}.onnx.json").write_text(text)

    write("without_json", None)
    write("empty_json", "")
    write("text_json", "no JSON")
    write("list_json", "[]")
    write("deep_json", 100_000 * "[")
    write("no_keys", "{}")
    write("unknown_key", {"kind": 1})
    write("version_2", {"version": 2})
    write("divisor_1", {"divisor": 1})
    write("nearest", {"resize": described["resize"] | {"filter": "nearest"}})
    write("layout", {"input": described["input"] | {"layout": "CHWN"}})
    write("larger", {"input": described["input"] | {"shape": [3, 9, 9]}})
    write("one_channel", {"input": described["input"] | {"shape": [1, 8, 8]}})
    write("no_images", {"input": described["input"] | {"batch_size": 0}})
    write("many_names", {"output": described["output"] | {"classes": 3}})
    write("five_classes", {"output": described["output"] | {"classes": 5}})
    write("billions", {"output": described["output"] | {"classes": 10**10}})
    write("large_batch", {"input": described["input"] | {"batch_size": 200_000}})
    write("other_rule", {"resize": described["resize"] | {"shorter_side": 999}})
    write("unknown_format", {"format": "TFLITE"})
    write("json_is_a_pipe", None)
    os.mkfifo(folder / "json_is_a_pipe.onnx.json")
    write("no_std", {"preprocessing": described["preprocessing"] | {"std": [0.2, 0, 0.4]}})
    write("text_mean", {"preprocessing": described["preprocessing"] | {"mean": "grey"}})
    larger = {"size": 16, "shorter_side": 16}
    both = {"input": described["input"] | {"shape": [3, 16, 16]}, "preprocessing": described["preprocessing"] | larger}
    both["resize"] = described["resize"] | {"shorter_side": 16}
    write("both_sizes", both)
    write("other_hash", {"sha256": {".onnx": 64 * "0"}})
    write("no_hash", {"sha256": {}})
    write("other_suffix", {"sha256": {".xml": 64 * "0"}})
    write("path_as_suffix", {"sha256": {"/../net.xml": 64 * "0"}})
    write("other_format", {"format": "OPENVINO"})
    for name, content in {"not_onnx": b"no model" * 99, "onnx_of_0_bytes": b""}.items():
        write(name, {"sha256": {".onnx": hashlib.sha256(content).hexdigest()}}, content)
    write("stale", {}, (folder / "net.onnx").read_bytes()[:-9])
    shutil.copy(folder / "net.xml", folder / "without_bin.xml")
    shutil.copy(folder / "net.xml.json", folder / "without_bin.xml.json")
    for suffix in (".xml", ".xml.json"):
        shutil.copy(folder / f"net{suffix}", folder / f"other_bin{suffix}")
    (folder / "other_bin.bin").write_bytes((folder / "net.bin").read_bytes()[::-1])
    shutil.copy(folder / "net.onnx", folder / "onnx.xml")
    shutil.copy(folder / "net.bin", folder / "onnx.bin")
    hashes = {f".{suffix}": sha256(folder / f"onnx.{suffix}") for suffix in ("xml", "bin")}
    (folder / "onnx.xml.json").write_text(json.dumps(described | {"format": "OPENVINO", "sha256": hashes}))
    shutil.copy(folder / "net.bin", folder / "half_described.bin")
    shutil.copy(folder / "net.xml", folder / "half_described.xml")
    only = {"sha256": {".xml": sha256(folder / "net.xml")}, "format": "OPENVINO"}
    (folder / "half_described.xml.json").write_text(json.dumps(described | only))
    not_finite = onnx.load(str(folder / "net.onnx"))
    for tensor in not_finite.graph.initializer:
        if tensor.dims == [4]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, np.float32), tensor.name))
    content = not_finite.SerializeToString()
    write("not_finite", {"sha256": {".onnx": hashlib.sha256(content).hexdigest()}}, content)
    for name in ("net.air", "net.ms", "net.h5", "UP.ONNX", "net", "lite.ms"):
        shutil.copy(folder / "net.onnx", folder / name)
    hashes = {".ms": sha256(folder / "lite.ms")}
    (folder / "lite.ms.json").write_text(json.dumps(described | {"format": "LITE", "sha256": hashes}))
    (folder / "folder.onnx").mkdir()
