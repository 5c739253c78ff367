"""Weights that come with the project: the manifest, `pretrained:NAME` everywhere; safetensors files."""

import hashlib
import importlib
import json

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import nn
from safetensors import safe_open

from src import card, checkpoints, cli, convert, pretrained, runtime
from src.binary import Binarization
from src.config import load_config
from src.data import open_dataset
from src.deploy import load_model
from src.deploy.description import sha256
from src.errors import UserError
from src.models import create_model, registry
from src.preprocessing import PREPROCESSING
from src.training import curves
from tests.helpers import processes
from tests.helpers.networks import lively_network, small
from tests.helpers.onnx_graph import model_files

NAME = "resnet20_digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run.ckpt` of an untrained ResNet-20 on digits with noise modules and optimizer state, and a manifest with it."""
    folder = tmp_path_factory.mktemp("pretrained")
    ms.set_seed(3)
    network = create_model("resnet20")
    config = load_config(overrides={"data.name": "digits"}).model_dump()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    checkpoints.save(folder / "run.ckpt", network, optimizer, config, PREPROCESSING["digits"], None, {})
    assert cli.run(convert.main, [str(folder / "run.ckpt"), str(folder / f"{NAME}.safetensors")]) == 0
    write_manifest(folder)
    return folder


def entry(folder, **changed) -> dict:
    return {
        "network": "resnet20",
        "dataset": "digits",
        "file": f"{NAME}.safetensors",
        "sha256": {f"{NAME}.safetensors": hashlib.sha256((folder / f"{NAME}.safetensors").read_bytes()).hexdigest()},
        "config": "configs/digits.yaml",
        "accuracy": 0.1,
        "command": f"python eval.py --checkpoint pretrained:{NAME}",
        "licence": "Apache-2.0",
    } | changed


def write_manifest(folder, entries=None) -> None:
    (folder / pretrained.MANIFEST).write_text(yaml.safe_dump(entries or {NAME: entry(folder)}, sort_keys=False))


@pytest.fixture
def ours(folder, monkeypatch):
    """As if the folder were the project's own."""
    monkeypatch.setattr(pretrained, "FOLDERS", (folder,))
    return folder


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name])


def test_a_conversion_there_and_back_keeps_weights_config_and_preprocessing(folder, capsys):
    assert cli.run(convert.main, [str(folder / f"{NAME}.safetensors"), str(folder / "back.ckpt")]) == 0
    run, there, back = (checkpoints.read(folder / name) for name in ("run.ckpt", f"{NAME}.safetensors", "back.ckpt"))
    for other in (there, back):
        assert_same(run.parameters, other.parameters)
        assert (other.config, other.preprocessing, other.format) == (run.config, run.preprocessing, run.format)
        assert other.state is None and not other.optimizer and run.optimizer
    assert ms.load_checkpoint(str(folder / "back.ckpt"))["layer1.0.relu1.a"].asnumpy() == 0.25


def test_a_safetensors_file_is_read_without_this_project(folder):
    with safe_open(folder / f"{NAME}.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["config"])["network"]["name"] == "resnet20"
        assert file.get_tensor("layer1.0.conv1.weight").shape == (16, 16, 3, 3)
        assert "layer1.0.relu1.a" in file.keys() and "linear.weight" in file.keys()


def test_a_released_checkpoint_converts_too(tmp_path):
    """It has no config; MindSpore 2 spells its slopes otherwise."""
    network = create_model("resnet20", binarization=Binarization(noise_adaptation=False))
    entries = [
        {"name": parameter.name.replace(".relu1.a", ".relu1.w"), "data": parameter}
        for parameter in network.get_parameters()
    ]
    ms.save_checkpoint(entries, str(tmp_path / "released.ckpt"))
    for source, target in (("released.ckpt", "there.safetensors"), ("there.safetensors", "back.ckpt")):
        assert cli.run(convert.main, [str(tmp_path / source), str(tmp_path / target)]) == 0
        found = checkpoints.read(tmp_path / target)
        assert found.config is None and "layer1.0.relu1.a" in found.parameters
        assert checkpoints.load_network(network, found) == []


@pytest.mark.parametrize("place", range(20))
def test_a_truncated_safetensors_file_is_refused(folder, tmp_path, place):
    content = (folder / f"{NAME}.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    # Half of the places lie in the header.
    path.write_bytes(content[: place * 2000] if place < 10 else content[: len(content) * place // 20])
    with pytest.raises(UserError, match="is empty|not a safetensors file, or it is truncated or damaged") as refusal:
        checkpoints.read(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_the_weights_are_those_of_the_file(ours):
    network = create_model("resnet20", pretrained=NAME)
    found = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    assert_same(found, checkpoints.read(ours / "run.ckpt").parameters)


def test_without_noise_modules_the_rest_is_loaded(ours):
    network = create_model("resnet20", pretrained=NAME, binarization=Binarization(noise_adaptation=False))
    np.testing.assert_array_equal(
        network.layer1[0].conv1.weight.asnumpy(),
        checkpoints.read(ours / "run.ckpt").parameters["layer1.0.conv1.weight"],
    )


def test_another_number_of_classes_starts_the_head_fresh_and_says_so(ours, capsys):
    network = create_model("resnet20", num_classes=3, pretrained=NAME)
    assert network.linear.weight.shape == (3, 64)
    assert "the last layer (linear.weight, linear.bias) starts fresh for 3 classes" in capsys.readouterr().err


def test_mindcv_passes_the_name_on(ours):
    import mindcv

    network = mindcv.create_model("fda_resnet20", pretrained=NAME)
    assert network.linear.weight.shape == (10, 64)
    np.testing.assert_array_equal(
        network.linear.weight.asnumpy(), checkpoints.read(ours / "run.ckpt").parameters["linear.weight"]
    )


def test_true_means_the_default_of_the_network(ours, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=f"no weights are the default of resnet20: give a name, {NAME}"):
        create_model("resnet20", pretrained=True)
    with pytest.raises(UserError, match=f"no pretrained weights 'vgg_small': there are {NAME}"):
        create_model("vgg_small", pretrained=True)
    (tmp_path / f"{NAME}.safetensors").write_bytes((ours / f"{NAME}.safetensors").read_bytes())
    write_manifest(tmp_path, {NAME: entry(ours, default=True)})
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path,))
    assert create_model("resnet20", pretrained=True).linear.weight.shape == (10, 64)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("vgg_small", {}, f"{NAME} are weights of resnet20, not of vgg_small"),
        ("resnet20", {"binarization": Binarization.full_precision()}, "trained with network.binary True, not False"),
        (
            "resnet20",
            {"binarization": Binarization(weight_quantizer="xnor")},
            "trained with network.weight_quantizer 'dorefa', not 'xnor'",
        ),
        ("resnet20", {"in_channels": 1}, "of another shape: conv1.weight"),
    ],
)
def test_other_weights_than_the_network_needs_are_refused(ours, network, options, message):
    with pytest.raises(UserError, match=message):
        create_model(network, pretrained=NAME, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sha256": {f"{NAME}.safetensors": 64 * "0"}}, "is damaged: its SHA-256 is"),
        ({"sha256": {f"{NAME}.safetensors": "0"}}, "resnet20_digits.sha256.*: String should match"),
        ({"sha256": {"other": 64 * "0"}}, "resnet20_digits.sha256 must name resnet20_digits.safetensors"),
        ({"openvino": "net.xml"}, "sha256 must name net.bin, net.xml, net.xml.json, resnet20_digits.safetensors"),
        ({"file": "../run.ckpt"}, "resnet20_digits.file: String should match"),
        (
            {"file": "nowhere.safetensors", "sha256": {"nowhere.safetensors": 64 * "0"}},
            "cannot read the pretrained .*nowhere.safetensors: No such file",
        ),
        ({"openvino": "/tmp/net.xml"}, "resnet20_digits.openvino: String should match"),
        ({"accuracy": 1.5}, "resnet20_digits.accuracy: Input should be less than or equal to 1"),
        ({"accuracy": "high"}, "resnet20_digits.accuracy: Input should be a valid number"),
        ({"dataset": "cifar10"}, "resnet20_digits must be called resnet20_cifar10"),
        ({"binary": False}, "resnet20_digits must be called resnet20_digits_fp32"),
        ({"licence": None}, "resnet20_digits.licence: Input should be a valid string"),
        ({"kind": 1}, "resnet20_digits.kind: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, tmp_path, changed, message):
    (tmp_path / f"{NAME}.safetensors").write_bytes((folder / f"{NAME}.safetensors").read_bytes())
    write_manifest(tmp_path, {NAME: entry(folder, **changed)})
    with pytest.raises(UserError, match=message) as refusal:
        pretrained.weights(NAME, tmp_path)
    assert "\n" not in str(refusal.value)


def test_weights_without_a_config_are_no_network_of_ours(folder, tmp_path, monkeypatch):
    found = checkpoints.read(folder / "run.ckpt")
    path = tmp_path / f"{NAME}.safetensors"
    checkpoints.save_weights(path, checkpoints.Checkpoint("x", found.parameters))
    write_manifest(tmp_path, {NAME: entry(tmp_path)})
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match="do not hold the config that they were trained with"):
        create_model("resnet20", pretrained=NAME)


def test_another_openvino_model_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.safetensors").write_bytes((folder / f"{NAME}.safetensors").read_bytes())
    model_files(tmp_path)
    names = ["net.xml", "net.bin", "net.xml.json"]
    hashes = entry(folder)["sha256"] | {name: sha256(tmp_path / name) for name in names}
    write_manifest(tmp_path, {NAME: entry(folder, openvino="net.xml", sha256=hashes)})
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path,))
    assert pretrained.resolve_model(f"pretrained:{NAME}") == tmp_path / "net.xml"
    for name in names:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        with pytest.raises(UserError, match=f"{name} is damaged: its SHA-256"):
            load_model(f"pretrained:{NAME}")
        (tmp_path / name).write_bytes(content)


def test_two_defaults_of_a_network_are_refused(folder, tmp_path):
    other = entry(folder, dataset="cifar10", default=True)
    write_manifest(tmp_path, {NAME: entry(folder, default=True), "resnet20_cifar10": other})
    with pytest.raises(UserError, match="resnet20_digits and resnet20_cifar10 are both the default of resnet20"):
        pretrained.read_manifest(tmp_path)


def test_a_network_has_a_binary_default_and_one_in_full_precision(folder, tmp_path):
    entries = {NAME: entry(folder, default=True), f"{NAME}_fp32": entry(folder, binary=False)}
    write_manifest(tmp_path, entries)
    assert pretrained.find("resnet20", tmp_path)[0] == NAME
    with pytest.raises(UserError, match=f"no weights are the default of resnet20 in full precision: .*{NAME}_fp32"):
        pretrained.find("resnet20", tmp_path, binary=False)
    write_manifest(tmp_path, {**entries, f"{NAME}_fp32": entry(folder, binary=False, default=True)})
    assert pretrained.find("resnet20", tmp_path)[0] == NAME
    assert pretrained.find("resnet20", tmp_path, binary=False)[0] == f"{NAME}_fp32"
    write_manifest(tmp_path, {NAME: entry(folder, default=True)})
    with pytest.raises(UserError, match="no pretrained weights 'resnet20' in full precision: there are"):
        pretrained.find("resnet20", tmp_path, binary=False)
    write_manifest(tmp_path, {f"{NAME}_fp32": entry(folder, binary=False)})
    with pytest.raises(UserError, match=f"no pretrained weights 'resnet20' with binary layers: there are {NAME}_fp32"):
        pretrained.find("resnet20", tmp_path)


def test_create_model_takes_the_default_of_its_precision(folder, tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.safetensors").write_bytes((folder / f"{NAME}.safetensors").read_bytes())
    found = checkpoints.read(folder / f"{NAME}.safetensors")
    plain = Binarization.full_precision()
    network = create_model("resnet20", binarization=plain)
    config = {**found.config, "network": {**found.config["network"], "binary": False}}
    path = tmp_path / f"{NAME}_fp32.safetensors"
    values = {name: parameter.asnumpy() for name, parameter in network.parameters_dict().items()}
    plain_weights = checkpoints.Checkpoint("x", values, config=config, preprocessing=found.preprocessing)
    checkpoints.save_weights(path, plain_weights)
    other = entry(tmp_path, binary=False, default=True, file=path.name, sha256={path.name: sha256(path)})
    write_manifest(tmp_path, {NAME: entry(folder, default=True), f"{NAME}_fp32": other})
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path,))
    for binarization, source in ((plain, values), (Binarization(), found.parameters)):
        built = create_model("resnet20", pretrained=True, binarization=binarization)
        np.testing.assert_array_equal(built.linear.weight.asnumpy(), source["linear.weight"])


def test_the_recipe_of_a_full_precision_network_has_no_keys_of_binary_layers():
    changes = {"network.binary": False, "data.num_parallel_workers": 1, "optimizer.lr": 0.2, "noise.amplitude": 0.5}
    recipe = dict(card.recipe_of(load_config(overrides=changes).model_dump()))
    assert recipe["optimizer.lr"] == 0.2 and recipe["train.epochs"] == 400
    assert not [key for key in recipe if key.startswith(("noise", "schedules", "network", "data.num"))]


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "a: 1\n", None])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / pretrained.MANIFEST).write_text(text)
    with pytest.raises(UserError, match="manifest"):
        pretrained.weights(NAME, tmp_path)


@pytest.mark.parametrize("program", ["eval", "export", "predict", "train"])
def test_programs_take_the_prefix_and_list_the_names(program, ours, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(program).main
    flags = {"train": ["--dataset", "digits", "--init_checkpoint"], "predict": ["image.png", "--model"]}
    code = cli.run(main, [*flags.get(program, ["--checkpoint"]), "pretrained:resnet21"])
    error = capsys.readouterr().err
    assert code == 2 and f"there are no pretrained weights 'resnet21': there are {NAME}" in error, error


class TestShipped:
    """The weights in pretrained/."""

    @pytest.mark.parametrize("name", pretrained.read_manifest())
    def test_files_are_right(self, name):
        entry = pretrained.read_manifest()[name]
        found = checkpoints.read(pretrained.weights(name))
        assert found.config["output_dir"] is None and found.config["data"]["path"] == "data"  # of no machine
        if entry.openvino:
            described = load_model(f"pretrained:{name}").description
            assert (described.network, described.dataset) == (entry.network, entry.dataset)
        assert found.config["network"]["binary"] == entry.binary
        assert found.config["network"]["name"] == entry.network and found.config["data"]["name"] == entry.dataset
        assert (processes.ROOT / entry.config).is_file() and f"pretrained:{name}" in entry.command
        card = (pretrained.own_folder() / f"{name}.md").read_text(encoding="utf-8")
        assert f"{entry.accuracy:.2%}" in card
        for picture in ("curves", "confusion"):
            assert f"{name}_{picture}.png" in card and (pretrained.own_folder() / f"{name}_{picture}.png").is_file()

    def test_the_digits_network_has_the_accuracy_of_its_card(self, capsys):
        """With the OpenVINO file, to the image: it needs no compilation."""
        main = importlib.import_module("eval").main
        assert cli.run(main, ["--model", f"pretrained:{NAME}"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["Top1-Acc"] == pytest.approx(pretrained.read_manifest()[NAME].accuracy, abs=1e-9)

    @pytest.mark.slow
    def test_the_digits_network_has_it_in_mindspore_too(self, capsys):
        main = importlib.import_module("eval").main
        assert cli.run(main, ["--checkpoint", f"pretrained:{NAME}"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["Top1-Acc"] == pytest.approx(pretrained.read_manifest()[NAME].accuracy, abs=1e-9)


def test_a_card_says_what_the_weights_are(tmp_path, capsys, monkeypatch):
    """Its accuracies are counted again on the test images."""
    monkeypatch.setitem(registry.NETWORKS, "small", registry.Network(small, 32, 1, 10))
    network = lively_network("small", noise_adaptation=False)
    changes = {"data.name": "digits", "network.name": "small", "noise.enabled": False, "data.holdout": 37}
    config = load_config(overrides=changes).model_dump()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    checkpoints.save(tmp_path / "small_digits.ckpt", network, optimizer, config, PREPROCESSING["digits"], None, {})
    (tmp_path / "versions.txt").write_text("git commit: 0123\nprocessor: a chip\nopenvino: 1\n")
    held_out = next(iter(open_dataset("digits", batch_size=37, holdout=37).validation()))
    share = float((network.set_train(False)(held_out[0]).asnumpy().argmax(1) == held_out[1].asnumpy()).mean())
    rows = (
        "epoch,step,lr,n,train_loss,test_top1,test_top5,holdout_top1\n"
        f"1,9,0.1,9,2.5,,,\n2,18,0.05,18,2.2,0.2,0.6,{share}\n3,27,0.01,18,2.1,0.2,0.6,{share}\n"
    )
    (tmp_path / "metrics.csv").write_text(rows)
    drawn = []
    monkeypatch.setattr(curves, "plot_curves", lambda history, scheduled, path: drawn.append((len(history), scheduled)))
    words = [str(tmp_path / "small_digits.ckpt"), "--run", str(tmp_path), "--command", "python train.py --epochs 2"]
    assert cli.run(card.main, [*words, "--output", str(tmp_path / "cards")]) == 0

    data = open_dataset("digits", batch_size=360)
    images, labels = next(iter(data.test()))
    right = network.set_train(False)(images).asnumpy().argmax(1) == labels.asnumpy()
    first_class = right[labels.asnumpy() == 0]
    assert f"small_digits.md: top-1 {right.mean():.2%} of 360 test images" in capsys.readouterr().out
    written = (tmp_path / "cards/small_digits.md").read_text()
    for part in (
        f"binary: top-1 {right.mean():.2%} of 360 test images",
        "1,400 images for training, 360 for testing; 37 training images are held out",
        f"Of the 37 held-out images {share:.2%} are right. The best epoch of the run by them was epoch 2, {share:.2%}.",
        f"counted by MindSpore {ms.__version__} on one {runtime.processor()}",
        "    python train.py --epochs 2",
        "| `train.epochs` | 400 |",
        "| `network.estimator` | fda |",
        "| `data.holdout` | 37 |",
        f"| 0 | {len(first_class)} | {first_class.mean():.2%} |",
        "handwritten digits from UCI (CC BY 4.0)",
        "not for reading digits in an application",
        "    git commit: 0123\n    processor: a chip\n",
    ):
        assert part in written, part
    assert "openvino" not in written and drawn == [(3, ["lr", "n"])]
    assert "output_dir" not in written and "noise.eta" not in written and "Elsewhere" not in written
    assert (tmp_path / "cards/small_digits_metrics.csv").read_text() == rows
    assert (tmp_path / "cards/small_digits_confusion.png").read_bytes().startswith(b"\x89PNG")
