"""Files and run folders of format 0, the one before formats had a number, load and continue as they did."""

import json
from argparse import Namespace
from copy import deepcopy
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor, nn

from src import checkpoints, migration
from src.config import load_config
from src.errors import UserError
from src.preprocessing import PREPROCESSING
from src.run_dir import read_config
from src.training.arguments import resumed
from tests.helpers.checkpoint_files import write_format_0
from tests.test_checkpoints import Small, assert_equal, optimizer_of, scrambled, values

# As the commit before format 1 stored them: `data.workers`, `norm_sum`.
OLD_CONFIG = json.loads(
    """{"seed": 3, "output_dir": "run", "init_checkpoint": null,
    "runtime": {"device_target": "CPU", "mode": "graph", "distribute": false, "sync_batch_norm": false},
    "data": {"name": "digits", "path": "data", "download": false, "batch_size": 32, "workers": 3, "augment": true},
    "network": {"name": "resnet20", "options": {}, "binary": true, "estimator": "fda", "estimator_options": {},
    "weight_estimator": null, "weight_estimator_options": {}, "weight_quantizer": "dorefa", "weight_init": "uniform",
    "scale_in_gradient": null}, "noise": {"enabled": true, "eta": "sine", "amplitude": 0.1, "reduction": 64,
    "in_forward": true}, "schedules": {"n": {"setting": 3, "n_p": 9, "n_s": 9}, "alpha": {"start": 0.1}},
    "optimizer": {"name": "adam", "lr": 0.005, "lr_for_batch": null, "momentum": 0.9, "weight_decay": 0.0,
    "decay_all": true}, "scheduler": {"name": "cosine_decay", "min_lr": 0.0, "warmup_epochs": 0},
    "loss": {"label_smoothing": 0.0}, "amp": {"level": "O0", "loss_scale": "none"}, "train": {"epochs": 2,
    "steps_per_epoch": 6, "save_every_steps": 1, "keep": 2, "on_write_error": "stop", "sink_size": null}}"""
)
OLD_STATE = {
    "epoch": 1,
    "step": 2,
    "loss_sum": 4.5,
    "norm_sum": 17.25,
    "skipped": 0,
    "replaced": 0,
    "best_top1": 0.5,
    "history": [{"epoch": 1, "train_loss": 2.3}],
    "steps_per_epoch": 6,
    "workers": 1,
}


def write_old(path: Path, network: nn.Cell, optimizer: nn.Cell, **config) -> Path:
    content = deepcopy(OLD_CONFIG)
    content["network"].update(config)
    preprocessing = PREPROCESSING["digits"].to_dict()
    extra = {"signs": np.arange(5, dtype=np.uint8)}
    return write_format_0(path, network, optimizer, content, preprocessing, OLD_STATE, extra)


def test_an_old_checkpoint_is_read_under_todays_names(tmp_path):
    network = scrambled(Small())
    optimizer = nn.Adam(network.trainable_params(), 0.1)
    for parameter in optimizer.moment1:
        parameter.set_data(Tensor(np.random.default_rng(5).normal(size=parameter.shape).astype(np.float32)))
    found = checkpoints.read(write_old(tmp_path / "old.ckpt", network, optimizer))
    assert found.format == 0
    assert found.config["data"]["num_parallel_workers"] == 3 and "workers" not in found.config["data"]
    assert found.state["grad_norm_sum"] == 17.25 and "norm_sum" not in found.state
    np.testing.assert_array_equal(found.extra["signs"], np.arange(5))
    fresh = Small()
    fresh_optimizer = nn.Adam(fresh.trainable_params(), 0.1)
    checkpoints.load_network(fresh, found)
    checkpoints.load_optimizer(fresh_optimizer, found)
    assert_equal(values(fresh), values(network))
    for got, expected in zip(fresh_optimizer.moment1, optimizer.moment1, strict=True):
        np.testing.assert_array_equal(got.asnumpy(), expected.asnumpy())


def test_an_old_checkpoint_that_was_cut_before_its_texts_is_known(tmp_path):
    """It holds the optimizer's entries and no config."""
    from tests.helpers.checkpoint_files import parse, serialize

    network = Small()
    entries = parse(write_old(tmp_path / "old.ckpt", network, optimizer_of(network)).read_bytes())
    first = next(number for number, entry in enumerate(entries) if entry.name.startswith("optimizer."))
    cut = tmp_path / "cut.ckpt"
    for end in range(first + 1, len(entries) + 1):
        cut.write_bytes(serialize(entries[:end], checksum=False))
        with pytest.raises(UserError, match="is a truncated checkpoint"):
            checkpoints.read(cut)


class OldAlexNetStart(nn.Cell):
    """AlexNet's first convolution as it was, without a bias."""

    def __init__(self, bias: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, has_bias=bias)
        self.linear = nn.Dense(4, 2)


@pytest.mark.parametrize(
    "make",
    [optimizer_of, lambda network: nn.Adam(network.trainable_params(), 0.1)],
    ids=["momentum", "adam"],
)
def test_the_bias_that_an_old_alexnet_did_not_have_is_zero_and_so_are_its_moments(tmp_path, make):
    old, new = scrambled(OldAlexNetStart(bias=False)), scrambled(OldAlexNetStart(bias=True), seed=2)
    optimizer = make(new)
    for parameter in checkpoints.optimizer_state(optimizer):
        parameter.set_data(Tensor(np.ones(parameter.shape), parameter.dtype))
    found = checkpoints.read(write_old(tmp_path / "old.ckpt", old, make(old), name="alexnet"))
    checkpoints.load_network(new, found)
    checkpoints.load_optimizer(optimizer, found)
    assert_equal(values(new), {**values(old), "conv1.bias": np.zeros(4, np.float32)})
    moments = [p for p in checkpoints.optimizer_state(optimizer) if p.name.endswith("conv1.bias")]
    assert moments and not any(parameter.asnumpy().any() for parameter in moments)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet18", {}, {"stem_pool": "same"}),
        ("resnet34", {"prelu": False}, {"stem_pool": "same", "prelu": False}),
        ("resnet18_cifar", {}, {}),
        ("resnet20", {}, {}),
    ],
)
def test_the_stem_of_an_old_bireal_network_keeps_its_pool(name, options, expected):
    config = {**OLD_CONFIG, "network": {**OLD_CONFIG["network"], "name": name, "options": options}}
    assert migration.migrate_config(config, 0)["network"]["options"] == expected
    assert migration.migrate_config(config, 1)["network"]["options"] == options


def test_other_networks_get_no_bias():
    arrays = {"conv1.weight": np.ones((4, 3, 3, 3))}
    assert migration.migrate_arrays({"network": {"name": "resnet18"}}, dict(arrays), 0).keys() == arrays.keys()
    assert migration.migrate_arrays({"network": {"name": "alexnet"}}, dict(arrays), 1).keys() == arrays.keys()


def run_folder(folder: Path, content: dict) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "last.ckpt").write_bytes(b"")
    return folder


def resume(folder: Path):
    return resumed(folder, Namespace(config=None, from_epoch=None, distribute=False), {})


def test_an_old_run_folders_config_is_read_under_todays_names(tmp_path):
    config = resume(run_folder(tmp_path, OLD_CONFIG))
    assert config.data.num_parallel_workers == 3 and config.train.epochs == 2
    assert "workers" in OLD_CONFIG["data"]  # the input is as it was


def test_a_new_run_folders_config_carries_its_format(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config(overrides={"seed": 5}).to_yaml())
    content = read_config(tmp_path)
    assert (tmp_path / "config.yaml").read_text().startswith("format: 1\n")
    assert content["seed"] == 5 and "format" not in content
    assert load_config(tmp_path / "config.yaml").seed == 5  # another run may begin with it


@pytest.mark.parametrize(("number", "message"), [(2, "has format 2, but this version reads"), ("x", "is damaged")])
def test_a_folder_of_a_newer_or_no_format_is_refused(tmp_path, number, message):
    with pytest.raises(UserError, match=message):
        resume(run_folder(tmp_path, {"format": number, **OLD_CONFIG}))


def test_an_old_key_in_a_users_own_file_is_refused_with_the_new_name(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("data: {workers: 3}\n")
    with pytest.raises(
        UserError, match="the key 'data.workers' in .* is now called 'data.num_parallel_workers': rename it"
    ):
        load_config(own)


def test_a_migrated_file_saved_again_loads_safely_in_mindspore(tmp_path):
    network, path = scrambled(Small()), tmp_path / "new.ckpt"
    optimizer = optimizer_of(network)
    found = checkpoints.read(write_old(tmp_path / "old.ckpt", network, optimizer))
    checkpoints.save(path, network, optimizer, found.config, found.preprocessing, found.state, found.extra)
    again = checkpoints.read(path)
    assert again.format == 1
    assert (again.config, again.preprocessing, again.state) == (found.config, found.preprocessing, found.state)
    assert not any(name.startswith("optimizer.") for name in ms.load_checkpoint(str(path)))


@pytest.mark.parametrize(("name", "kept"), [("cosine_decay", 0.01), ("polynomial_decay", 0.0), ("constant", 0.0)])
def test_a_min_lr_that_had_no_effect_keeps_none(name, kept):
    config = {"scheduler": {"name": name, "min_lr": 0.01}}
    assert migration.migrate_config(config, 0)["scheduler"]["min_lr"] == kept
    assert migration.migrate_config(config, 1)["scheduler"]["min_lr"] == 0.01
