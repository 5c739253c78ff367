"""YAML and flags become a typed, frozen Config, or one sentence about the first wrong key."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from src import cli
from src.config import DEFAULT_CONFIG, RENAMED, Config, choices, explanations, leaf_keys, load_config
from src.errors import UserError

ROOT = DEFAULT_CONFIG.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def with_overrides(*argv: str) -> Config:
    """The config of a command line, with two shorthands."""
    parser = cli.Parser(prog="test")
    cli.add_config_flags(parser, {"--epochs": "train.epochs", "-b": "data.batch_size"})
    return load_config(None, cli.parse_config_flags(parser, argv)[1])


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_default_is_the_papers_recipe():
    config = load_config()
    assert (config.train.epochs, config.data.batch_size, config.data.name) == (400, 128, "cifar10")
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("momentum", 0.1, 0.9)
    assert config.optimizer.weight_decay == 1e-4
    network = config.network
    assert (network.name, network.estimator, network.weight_quantizer) == ("resnet20", "fda", "dorefa")
    assert (config.schedules.n.setting, config.schedules.n.n_s) == (3, 9)
    assert (config.noise.enabled, config.noise.eta, config.noise.amplitude) == (True, "sine", 0.1)
    assert (config.noise.reduction, config.noise.in_forward) == (64, True)
    assert "clip" not in network.estimator_options


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_file_parses_and_changes_something(file):
    is_the_default = file.stem == "resnet20_fda"  # has a file all the same, as every row of the paper's tables
    assert (load_config(file) == load_config()) == is_the_default


def test_there_are_shipped_files():
    assert {"digits", "resnet20_dorefa", "resnet18_fda"} <= {file.stem for file in CONFIGS}


def test_a_round_trip_through_yaml(tmp_path):
    config = load_config(ROOT / "configs/cifar10/resnet20_fda_clip.yaml", {"optimizer.lr": 3e-5})
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_the_config_in_a_checkpoint_parses_again():
    config = load_config(ROOT / "configs" / "digits.yaml")
    assert load_config(config.model_dump()) == config


def test_it_is_frozen():
    config = load_config()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.optimizer.lr = 1.0


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("data.batchsize", "data.batch_size"),
        ("sed", "seed"),
        ("train.epoch", "train.epochs"),
        ("schedules.n.set", "schedules.n.setting"),
        ("loss.smoothing", "loss.label_smoothing"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(UserError, match=f"unknown key '{key}' in the command line .did you mean '{nearest}'"):
        load_config(None, {key: 1})


def test_an_unknown_key_in_a_file_names_file_and_key(tmp_path):
    file = write(tmp_path, "optimizer: {lr: 0.1, wieght_decay: 0}")
    with pytest.raises(UserError, match="'optimizer.wieght_decay' in .*mine.yaml.*mean 'optimizer.weight_decay'"):
        load_config(file)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.batch_size", -8, "greater than or equal to 1"),
        ("data.batch_size", 12.5, "integer"),
        ("data.batch_size", True, "integer"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.steps_per_epoch", 0, "greater than or equal to 1"),
        ("optimizer.lr", math.nan, "finite"),
        ("optimizer.lr", math.inf, "finite"),
        ("optimizer.lr", 0, "greater than 0"),
        ("optimizer.lr", -0.1, "greater than 0"),
        ("optimizer.lr", True, "number"),
        ("optimizer.lr", None, "number"),
        ("optimizer.momentum", 1, "less than 1"),
        ("optimizer.weight_decay", -1e-4, "greater than or equal to 0"),
        ("optimizer.name", "sgd", "'momentum' or 'adam'"),
        ("optimizer.decay_all", 1, "true or false"),
        ("optimizer.decay_all", "yes", "true or false"),
        ("optimizer", 3, "dictionary"),
        ("scheduler.name", "cosine", "'cosine_decay', 'constant' or 'polynomial_decay'"),
        ("schedules.n.n_s", 0, "greater than or equal to 1"),
        ("schedules.alpha.start", -0.1, "greater than or equal to 0"),
        ("noise.reduction", 0, "greater than or equal to 1"),
        ("noise.amplitude", math.nan, "finite"),
        ("loss.label_smoothing", 1.0, "less than 1"),
        ("amp.level", "O4", "'O0', 'O2' or 'O3'"),
        ("amp.loss_scale", 0.5, "greater than or equal to 1"),
        ("amp.loss_scale", "static", "'none' or 'dynamic'"),
        ("network.binary", "false", "true or false"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(UserError) as refusal:
        load_config(None, {key: value})
    message = str(refusal.value)
    assert message.startswith(f"{key} is ")
    assert allowed in message
    assert "\n" not in message


# PyYAML reads YAML 1.1, where these are 8, 64, 90, 1000, 1, 16, false, a date, infinity and text.
NUMBERS = {"010": 10, "0100": 100, "+7": 7, "1e3": 1000.0, "1e-4": 1e-4, "1.": 1.0, "-.5": -0.5, "2.5E+1": 25.0}
NOT_NUMBERS = ["1:30", "1_000", "0b1", "0x10", "0o7", "no", "off", "2020-01-01", ".inf", ".nan", "1e", "e5", "1,5", "٣"]


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_numbers_are_decimal_on_the_command_line_and_in_files(text, number, tmp_path):
    key = "network.options.a"
    file = write(tmp_path, f"network: {{options: {{a: {text}}}}}")
    for value in (with_overrides(f"--{key}={text}").network.options["a"], load_config(file).network.options["a"]):
        assert value == number and type(value) is type(number)


@pytest.mark.parametrize("text", NOT_NUMBERS)
@pytest.mark.parametrize(("key", "kind"), [("seed", "a valid integer"), ("optimizer.lr", "a valid number")])
def test_other_spellings_of_numbers_are_refused(text, key, kind, tmp_path):
    *sections, last = key.split(".")
    file = write(tmp_path, "".join(f"{name}:\n  " for name in sections) + f"{last}: {text}\n")
    for call in (lambda: with_overrides(f"--{key}={text}"), lambda: load_config(file)):
        with pytest.raises(UserError, match=f"{key} is {text!r}, but must be {kind}"):
            call()


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "y", "1"])
def test_only_true_and_false_are_flags(text):
    with pytest.raises(UserError, match="data.download is .*, but must be true or false"):
        with_overrides("--data.download", text)


def test_text_that_looks_like_another_type_survives_the_stored_config(tmp_path):
    for text in ("010", "1e5", "1:30", "yes", "null", "2020-01-01", "0o7", "08", "1.5", "~x", "- a", "é", "=", "<<"):
        config = load_config(None, {"data.path": text})
        assert load_config(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize("key", ["output_dir", "data.path", "init_checkpoint"])
def test_a_tilde_is_the_home_folder(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    *sections, last = key.split(".")
    file = write(tmp_path, "".join(f"{name}:\n  " for name in sections) + f"{last}: ~/a/b\n")
    for config in (load_config(file), with_overrides(f"--{key}=~/a/b")):
        values = config.model_dump()
        for name in sections:
            values = values[name]
        assert values[last] == "/home/somebody/a/b"


def test_every_key_and_section_is_explained_in_the_default_config():
    explained = explanations()
    keys = leaf_keys(Config)
    sections = {key.rsplit(".", count)[0] for key in keys for count in range(1, key.count(".") + 1)}
    assert explained.keys() == set(keys) | sections
    for key, explanation in explained.items():
        assert len(explanation.meaning) > 5, f"{key} has no comment in default_config.yaml"
        assert not explanation.meaning.startswith(("of them", "re-"))


def test_explanations_have_the_default_as_it_is_written():
    explained = explanations()
    config = load_config()
    assert explained["seed"].default == "0"
    assert "runs/latest links to the newest" in explained["output_dir"].meaning, "a comment of two lines"
    for key in leaf_keys(Config):
        value = config.model_dump()
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(explained[key].default) == value


def test_every_choice_is_named_in_its_explanation():
    for key, explanation in explanations().items():
        for choice in set(choices(key)) - {"true", "false"}:
            assert choice in explanation.meaning, key


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old, new, tmp_path):
    section, name = old.split(".")
    with pytest.raises(UserError, match=f"the key '{old}' in .*mine.yaml is now called '{new}'"):
        load_config(write(tmp_path, f"{section}: {{{name}: 2}}"))
    with pytest.raises(UserError, match=f"--{old} is now called --{new}"):
        with_overrides(f"--{old}", "2")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("optimizer.lr: 0.1", "write optimizer: {lr: VALUE}"),
        ("schedules.n.n_s: 9", "write schedules: {n: {n_s: VALUE}}"),
        ("schedules: {n.n_s: 9}", "did you mean 'schedules.n.n_s'"),
        ("lr: 0.1", "did you mean 'optimizer.lr'"),
        ("batch-size: 8", "did you mean 'data.batch_size'"),
    ],
)
def test_a_misplaced_key_in_a_file_gets_the_right_hint(text, hint, tmp_path):
    with pytest.raises(UserError, match=re.escape(hint)):
        load_config(write(tmp_path, text))


def test_whole_numbers_serve_where_numbers_are_wanted():
    assert load_config(None, {"optimizer.lr": 1}).optimizer.lr == 1.0


def test_an_empty_file_is_the_default(tmp_path):
    assert load_config(write(tmp_path, "# nothing\n")) == load_config()


def test_something_must_be_evaluated():
    assert not load_config(None, {"train.eval_test": False, "data.holdout": 10}).train.eval_test
    with pytest.raises(UserError, match="train.eval_test is false, but data.holdout is 0: keep training images"):
        load_config(None, {"train.eval_test": False})


def test_warmup_must_end_before_training():
    assert load_config(None, {"train.epochs": 5, "scheduler.warmup_epochs": 4}).scheduler.warmup_epochs == 4
    with pytest.raises(UserError, match="warmup_epochs is 5.*less than train.epochs, which is 5"):
        load_config(None, {"train.epochs": 5, "scheduler.warmup_epochs": 5})


def test_dotted_keys_and_shorthands_on_the_command_line():
    config = with_overrides(
        "--optimizer.lr",
        "0.05",
        "--epochs=3",
        "-b",
        "32",
        "--noise.enabled",
        "false",
        "--train.steps_per_epoch",
        "null",
        "--network.estimator_options.clip",
        "1.5",
        "--network.estimator_options.omega=0.2",
        "--output_dir",
        "007",
        "--amp.loss_scale",
        "dynamic",
    )
    assert (config.optimizer.lr, config.train.epochs, config.data.batch_size) == (0.05, 3, 32)
    assert config.noise.enabled is False
    assert config.train.steps_per_epoch is None
    assert config.network.estimator_options == {"clip": 1.5, "omega": 0.2}
    assert config.output_dir == "007"
    assert config.amp.loss_scale == "dynamic"


def test_the_command_line_comes_after_the_file(tmp_path):
    file = write(tmp_path, "optimizer: {lr: 0.3, momentum: 0.5}\nnetwork: {estimator_options: {omega: 0.2}}")
    config = load_config(file, {"optimizer.lr": 0.05, "network.estimator_options.clip": 1.0})
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.05, 0.5)
    assert config.network.estimator_options == {"omega": 0.2, "clip": 1.0}


def test_errors_become_exit_code_2_and_a_sentence(capsys):
    def main(argv):
        return 0 if with_overrides(*argv) else 1

    assert cli.run(main, ["--seed", "5"]) == 0
    assert cli.run(main, ["--seed", "-5"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: seed is -5, but must be ")
    assert captured.err.count("\n") == 1


def test_parsing_imports_no_mindspore():
    code = "import sys; from src import config, cli, runtime; config.load_config(); print('mindspore' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
