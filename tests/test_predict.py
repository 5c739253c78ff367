"""predict.py and load_model: the pixels that a network gets, what is printed, and that MindSpore is not needed."""

import csv
import dataclasses
import importlib
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import cli
from src.deploy import Model, load_model
from src.deploy.exported_model import ExportedModel
from src.errors import UserError
from src.image_files import open_image
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.onnx_graph import PREPARED, model_files

predict = importlib.import_module("predict")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """net.onnx and net.xml, and images of all kinds in `images`, two of them damaged, at a path with a space."""
    folder = tmp_path_factory.mktemp("predict") / "ä b"
    (folder / "images/below").mkdir(parents=True)
    model_files(folder)
    generator = np.random.default_rng(2)
    for number, (width, height) in enumerate([(8, 8), (33, 17), (10, 300), (1, 1), (64, 64)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "images/below/5 ü.tif")
    (folder / "images/.hidden.png").write_bytes(b"")
    (folder / "images/notes.txt").write_text("no image")
    (folder / "damaged").mkdir()
    (folder / "damaged/empty.png").write_bytes(b"")
    (folder / "damaged/cut.png").write_bytes((folder / "images/4.png").read_bytes()[:2000])
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.run(predict.main, [str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("file", ["net.onnx", "net.xml"])
def test_probabilities_are_those_of_the_files_logits(file):
    model = load_model(file)
    images = [np.asarray(open_image(f"images/{number}.png")) for number in range(5)]
    batch = np.stack([model.prepare(image) for image in images])
    logits = model.logits(images)
    np.testing.assert_array_equal(logits, model.logits(batch))
    one_by_one = np.concatenate([model.logits(batch[number : number + 1]) for number in range(5)])
    np.testing.assert_allclose(logits, one_by_one, atol=1e-6)
    np.testing.assert_array_equal(model.logits(np.stack([images[0], images[0]]))[1], logits[0])
    probabilities = model.probabilities(images)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-6)
    assert model.classes == PREPARED.classes and np.ptp(logits) > 0.5


def test_both_formats_predict_the_same(capsys):
    _, onnx, _ = run(capsys, "--model", "net.onnx", "images", "--json")
    _, openvino, _ = run(capsys, "--model", "net.xml", "images", "--json")
    for one, other in zip(onnx.splitlines(), openvino.splitlines(), strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one["image"] == other["image"]
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["class"] == b["class"] and abs(a["probability"] - b["probability"]) < 1e-5


def images_of_all_modes(folder: Path) -> list[Path]:
    """Images of odd sizes: colour, grey, with alpha, with a palette, CMYK, 16 bit, turned by EXIF."""
    generator = np.random.default_rng(3)
    pixels = Image.fromarray(generator.integers(0, 256, (301, 267, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    written = {
        "colour.png": (pixels, {}),
        "wide.jpg": (pixels.resize((700, 31)), {}),
        "grey.png": (pixels.convert("L"), {}),
        "alpha.png": (pixels.convert("RGBA"), {}),
        "palette.png": (pixels.convert("P"), {}),
        "cmyk.jpg": (pixels.convert("CMYK"), {}),
        "16bit.png": (Image.fromarray(generator.integers(0, 2**16, (300, 257), dtype=np.uint16)), {}),
        "turned.jpg": (pixels, {"exif": turned}),
    }
    for name, (image, options) in written.items():
        image.save(folder / name, **options)
    return [folder / name for name in sorted(written)]


def identity(preprocessing) -> Model:
    return Model(Path("model"), ExportedModel(lambda images: images.reshape(len(images), -1)), preprocessing, 2)


def test_images_are_prepared_as_in_the_evaluation_of_folders(tmp_path):
    from src.data import open_dataset

    for name in ("train/a", "val/a"):
        (tmp_path / name).mkdir(parents=True)
    paths = images_of_all_modes(tmp_path / "val/a")
    images_of_all_modes(tmp_path / "train/a")
    data = open_dataset("folder", path=str(tmp_path), batch_size=3)
    expected = np.concatenate([images.asnumpy() for images, _ in data.test()])
    model = identity(data.preprocessing)
    found = np.stack([model.prepare(open_image(str(path))) for path in paths])
    np.testing.assert_array_equal(found, expected)
    assert expected.shape == (len(paths), 3, 224, 224)


def test_images_are_prepared_as_in_the_evaluation_of_cifar10(tmp_path):
    from src.data import open_dataset

    processes.write_cifar10(tmp_path, ["test_batch.bin"], "cifar-10-verify-bin")
    data = open_dataset("cifar10", path=str(tmp_path), batch_size=100, splits=("test",))
    expected = next(iter(data.test()))[0].asnumpy()
    records = np.fromfile(next(tmp_path.rglob("test_batch.bin")), np.uint8).reshape(-1, 3073)[:100, 1:]
    pixels = records.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(np.stack([identity(data.preprocessing).prepare(image) for image in pixels]), expected)


def test_exif_orientation_is_ignored(tmp_path):
    pixels = Image.fromarray(np.random.default_rng(6).integers(0, 256, (301, 267, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels.save(tmp_path / "turned.jpg", exif=turned)
    pixels.save(tmp_path / "plain.jpg")
    assert Image.open(tmp_path / "turned.jpg").getexif()[0x0112] == 6
    model = identity(PREPROCESSING["folder"])
    np.testing.assert_array_equal(
        *(model.prepare(open_image(str(tmp_path / name))) for name in ("turned.jpg", "plain.jpg"))
    )


@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (31, 100)])
def test_without_a_shorter_side_images_are_scaled_to_fit(shape):
    pixels = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    preprocessing = PREPROCESSING["digits"]
    scale = 32 / min(shape)
    size = (round(shape[1] * scale - 0.49), round(shape[0] * scale - 0.49))
    scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.BILINEAR))
    top, left = round((scaled.shape[0] - 32) / 2), round((scaled.shape[1] - 32) / 2)
    expected = (scaled[top : top + 32, left : left + 32] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(identity(preprocessing).prepare(pixels), expected.transpose(2, 0, 1), atol=1e-6)


def test_text_json_and_csv_say_the_same(capsys):
    names = ["images/0.png", "images/1.png", "images/2.png", "images/3.png", "images/4.png", "images/below/5 ü.tif"]
    code, text, error = run(capsys, "--model", "net.xml", "images", "--top", 2, "--csv", "out.csv")
    assert code == 0 and not error
    code, lines, error = run(capsys, "--model", "net.xml", "images", "--top", 2, "--json", "--batch_size", 4)
    assert code == 0 and not error
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    assert [row["image"] for row in rows] == names
    for line, json_line, row in zip(text.splitlines(), lines.splitlines(), rows, strict=True):
        found = json.loads(json_line)
        (first, second) = found["predictions"]
        assert found["image"] == row["image"] and row["error"] == ""
        assert [row["class_1"], row["class_2"]] == [first["class"], second["class"]]
        assert abs(float(row["probability_1"]) - first["probability"]) < 1e-5 and "class_3" not in row
        ranks = ", ".join(f"{rank['class']} {rank['probability']:.1%}" for rank in (first, second))
        assert line == f"{row['image']}: {ranks}" and first["probability"] >= second["probability"]


def test_more_classes_than_there_are_is_all(capsys):
    _, out, _ = run(capsys, "--model", "net.xml", "images/0.png", "--top", 9, "--json")
    (found,) = (json.loads(line) for line in out.splitlines())
    assert {rank["class"] for rank in found["predictions"]} == set(PREPARED.classes)
    assert sum(rank["probability"] for rank in found["predictions"]) == pytest.approx(1)


def test_bad_images_are_named_and_the_rest_is_predicted(capsys):
    given = ("images/0.png", "damaged", "nowhere.png", "images/1.png", "--json", "--csv", "some.csv")
    code, out, error = run(capsys, "--model", "net.xml", *given)
    assert code == 1
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in found] == [
        "images/0.png", "damaged/cut.png", "damaged/empty.png", "nowhere.png", "images/1.png"
    ]  # fmt: skip
    assert ["error" in line for line in found] == [False, True, True, True, False]
    assert [line.split(": ")[0] for line in error.splitlines()] == [
        "damaged/cut.png",
        "damaged/empty.png",
        "nowhere.png",
    ]
    rows = list(csv.DictReader(Path("some.csv").open()))
    assert [bool(row["error"]) for row in rows] == ["error" in line for line in found]
    assert all(bool(row["class_1"]) != bool(row["error"]) for row in rows)


def huge_png(path: Path) -> None:
    """The beginning of a PNG of 210 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 15000, 14000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT")


def animated_gif(path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "empty"),
        ("huge.png", huge_png, "it has 210,000,000 pixels"),
        ("text.jpg", lambda path: path.write_text("no image"), "its content is not JPEG"),
        ("folder.png", lambda path: path.mkdir(), "image"),
    ],
)
def test_each_kind_of_bad_image_is_named_in_one_line(capsys, tmp_path, name, write, message):
    write(tmp_path / name)
    code, out, error = run(capsys, "--model", "net.xml", tmp_path / name, "images/0.png", "--csv", tmp_path / "all.csv")
    assert (code, len(out.splitlines()), len(error.splitlines())) == (1, 1, 1)
    assert name in error and re.search(message, error), error
    (bad, good) = csv.DictReader((tmp_path / "all.csv").open())
    assert bad["error"] and not bad["class_1"] and good["class_1"]


def test_of_an_animated_image_the_first_is_predicted(capsys, tmp_path):
    animated_gif(tmp_path / "moving.gif")
    with Image.open(tmp_path / "moving.gif") as image:
        assert image.n_frames == 3
        image.convert("RGB").save(tmp_path / "first.png")
    code, out, error = run(capsys, "--model", "net.xml", tmp_path / "moving.gif", tmp_path / "first.png")
    first, second = (line.split(": ")[1] for line in out.splitlines())
    assert code == 0 and first == second and not error


def test_many_images_have_a_progress_bar(capsys, monkeypatch):
    for many, shown in ((6, True), (7, False)):
        monkeypatch.setattr(predict, "MANY", many)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        code, out, error = run(capsys, "--model", "net.xml", "images")
        assert code == 0 and len(out.splitlines()) == 6
        assert ("6/6" in error) == shown, error


def test_nothing_predicted_is_2(capsys):
    code, out, error = run(capsys, "--model", "net.xml", "damaged", "images/notes.txt")
    assert code == 2 and not out and len(error.splitlines()) == 3


@pytest.mark.parametrize("fixed", [3, None])
def test_batches_of_a_fixed_size_are_filled_up(fixed):
    sizes = []

    def logits(images):
        sizes.append(len(images))
        return images[:, :2, 0, 0]

    model = load_model("net.xml")
    described = model.description.model_copy(
        update={"input": model.description.input.model_copy(update={"batch_size": fixed})}
    )
    model = Model(Path("model"), ExportedModel(logits), dataclasses.replace(PREPARED, classes=()), 2, described)
    batch = np.random.default_rng(5).normal(size=(7, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(model.logits(batch), batch[:, :2, 0, 0])
    assert sizes == ([3, 3, 3] if fixed else [7]) and model.classes == ("0", "1")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 9, 9), np.float32),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((1, 8, 8, 3), np.float64),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        [],
    ],
    ids=str,
)
def test_other_arrays_are_refused(images):
    with pytest.raises(UserError, match="was given, but"):
        load_model("net.xml").logits(images)


def test_paths_come_from_standard_input():
    names = "images/0.png\nimages/1.png\r\n\nimages/below/5 ü.tif\n"
    command = [sys.executable, str(processes.ROOT / "predict.py"), "--model", "net.xml", "-", "--json"]
    done = subprocess.run(command, input=names.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert found == ["images/0.png", "images/1.png", "images/below/5 ü.tif"]


@pytest.mark.parametrize("file", ["net.onnx", "net.xml"])
def test_mindspore_is_not_needed(file):
    code = (
        "import sys; sys.modules['mindspore'] = sys.modules['mindcv'] = None\n"
        f"sys.path.insert(0, {str(processes.ROOT)!r})\n"
        "import predict; from src import cli\n"
        f"sys.exit(cli.run(predict.main, ['--model', '{file}', 'images']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
