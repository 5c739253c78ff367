"""Files written whole or not at all, and read with every parameter accounted for."""

import contextlib
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src import checkpoints
from src.binary import Binarization
from src.config import load_config
from src.errors import UserError
from src.experiment import check_network
from src.models import create_model
from src.models.resnet20 import Block
from src.preprocessing import PREPROCESSING
from tests.helpers import checkpoint_files, processes
from tests.helpers.checkpoint_files import parse, serialize, text_entry, with_new_hash, write_foreign

CONFIG = load_config(overrides={"data.name": "digits", "data.path": "/elsewhere", "data.download": True}).model_dump()
STATE = {"epoch": 2, "step": 0, "steps_per_epoch": 5, "workers": 1, "history": [{"loss": 0.1}]}


class Small(nn.Cell):
    """One block of the ResNet-20 under its names."""

    def __init__(self, noise: bool = True):
        super().__init__()
        self.layer1 = nn.SequentialCell(Block(4, 8, 2, Binarization(noise_adaptation=noise)))
        self.linear = nn.Dense(8, 2)


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in cell.get_parameters()}


def scrambled(network: nn.Cell, seed: int = 1) -> nn.Cell:
    """The network with other values in every parameter."""
    generator = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(generator.normal(size=parameter.shape).astype(np.float32)))
    return network


def optimizer_of(network: nn.Cell) -> nn.Optimizer:
    return nn.Momentum(network.trainable_params(), [0.1, 0.05], 0.9)


def without_noise(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in arrays.items() if ".noise." not in name}


def assert_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.fixture
def own(tmp_path) -> tuple[Path, nn.Cell]:
    """A checkpoint of ours, and the network that is in it."""
    network, path = scrambled(Small()), tmp_path / "last.ckpt"
    checkpoints.save(
        path,
        network,
        optimizer_of(network),
        CONFIG,
        PREPROCESSING["digits"],
        STATE,
        {"signs": np.arange(5, dtype=np.uint8)},
    )
    return path, network


@pytest.mark.parametrize("slope", ["a", "w"])
def test_the_released_layout_loads_in_both_spellings(tmp_path, slope):
    network = create_model("resnet20", binarization=Binarization(noise_adaptation=False))
    released = values(scrambled(create_model("resnet20", binarization=Binarization(noise_adaptation=False))))
    spelled = {
        name.removesuffix(".a") + f".{slope}" if name.endswith(".a") else name: value
        for name, value in released.items()
    }
    assert sum(name.endswith(f"relu1.{slope}") for name in spelled) == 9
    checkpoints.load_network(network, write_foreign(tmp_path / "released.ckpt", spelled))
    assert_equal(values(network), released)


def test_our_own_checkpoint_comes_back_whole(own):
    path, network = own
    read = checkpoints.read(path)
    assert read.format == 1
    assert read.config == CONFIG
    assert read.preprocessing == PREPROCESSING["digits"]
    assert {key: read.state[key] for key in STATE} == STATE
    np.testing.assert_array_equal(read.extra["signs"], np.arange(5))
    fresh = Small()
    checkpoints.load_network(fresh, path)
    assert_equal(values(fresh), values(network))


def test_the_optimizers_state_comes_back(tmp_path):
    network, path = Small(), tmp_path / "last.ckpt"
    optimizer = optimizer_of(network)
    for moment in optimizer.moments:
        scrambled_moment = np.random.default_rng(2).normal(size=moment.shape)
        moment.set_data(Tensor(scrambled_moment.astype(np.float32)))
    optimizer.global_step.set_data(Tensor([7], ms.int32))
    checkpoints.save(path, network, optimizer, CONFIG, PREPROCESSING["digits"], STATE, {})
    fresh = optimizer_of(Small())
    checkpoints.load_optimizer(fresh, checkpoints.read(path))
    assert fresh.global_step.asnumpy() == 7
    for got, expected in zip(fresh.moments, optimizer.moments, strict=True):
        np.testing.assert_array_equal(got.asnumpy(), expected.asnumpy())


def test_another_optimizers_state_is_refused(own):
    network = Small()
    with pytest.raises(UserError, match="cannot be resumed with this optimizer.*holds no .*--init_checkpoint"):
        checkpoints.load_optimizer(nn.Adam(network.trainable_params()), checkpoints.read(own[0]))


def test_noise_modules_may_be_missing_on_either_side(own, tmp_path):
    path, network = own
    bare = Small(noise=False)
    checkpoints.load_network(bare, path)
    assert_equal(values(bare), without_noise(values(network)))

    fresh = Small()
    before = values(fresh)
    checkpoints.load_network(fresh, write_foreign(tmp_path / "bare.ckpt", values(bare)))
    assert_equal(without_noise(values(fresh)), values(bare))
    for name, value in values(fresh).items():
        if ".noise." in name:
            np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    "make", [optimizer_of, lambda network: nn.Adam(network.trainable_params(), 0.1)], ids=["momentum", "adam"]
)
def test_mindspores_own_optimizer_state_is_passed_over(tmp_path, make):
    network = scrambled(Small(noise=False))
    state = {name: value for name, value in values(make(network)).items()}
    scaling = {"scale_sense": np.float32([1024]), "current_iterator_step": np.int32([3])}
    fresh = Small(noise=False)
    checkpoints.load_network(fresh, write_foreign(tmp_path / "foreign.ckpt", {**state, **scaling, **values(network)}))
    assert_equal(values(fresh), values(network))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays: arrays.pop("linear.bias"), r"missing: linear\.bias$"),
        (lambda arrays: arrays.pop("layer1.0.relu2.a"), r"missing: layer1\.0\.relu2\.a$"),
        (lambda arrays: arrays.update({"fc.weight": np.zeros((2, 8), np.float32)}), r"unknown: fc\.weight$"),
        (
            lambda arrays: arrays.update({"linear.weight": np.zeros((3, 8), np.float32)}),
            r"of another shape: linear\.weight \(3, 8\) \(the network has \(2, 8\)\)$",
        ),
        (
            lambda arrays: arrays.update(
                {"linear.weight": np.zeros((2, 9), np.float32), "extra.bias": arrays.pop("linear.bias")}
            ),
            r"missing: linear\.bias; unknown: extra\.bias; of another shape: linear\.weight",
        ),
        (lambda arrays: [arrays.pop(name) for name in list(arrays) if ".bn" in name], "missing: .* and 4 more"),
    ],
    ids=["missing", "missing slope", "unknown", "shape", "all three", "many"],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, damage, message):
    arrays = values(scrambled(Small(noise=False)))
    damage(arrays)
    network = Small()
    before = values(network)
    with pytest.raises(UserError, match=message):
        checkpoints.load_network(network, write_foreign(tmp_path / "other.ckpt", arrays))
    assert_equal(values(network), before)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:50], "is a truncated checkpoint"),
        (lambda content: content[: len(content) // 2], "is a truncated checkpoint"),
        (lambda content: content[:-1], "is a truncated checkpoint"),
        (lambda content: flip(content, len(content) // 2), "is truncated or damaged: its checksum does not fit"),
        (lambda content: flip(content, 3), "is truncated or damaged: its checksum does not fit"),
        (lambda content: b"no checkpoint at all\n" * 200, "is not a MindSpore checkpoint"),
        (lambda content: bytes(4096), "is not a MindSpore checkpoint"),
    ],
    ids=["empty", "start alone", "half", "last byte gone", "a bit flipped", "first bytes", "text", "zeros"],
)
def test_a_damaged_file_is_refused_and_changes_nothing(own, damage, message):
    path, _ = own
    path.write_bytes(damage(path.read_bytes()))
    network = Small()
    before = values(network)
    with pytest.raises(UserError, match=message) as refusal:
        checkpoints.load_network(network, path)
    assert str(path) in str(refusal.value)
    assert_equal(values(network), before)


def test_every_flipped_byte_is_noticed(own):
    path, _ = own
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(flip(content, position))
        with pytest.raises(UserError):
            checkpoints.load_network(Small(), path)


@contextlib.contextmanager
def full_disk():
    """Files beyond 4,096 bytes cannot be written, as on a full disk. No longer than need be: pytest writes, too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_leaves_the_earlier_file(own):
    path, network = own
    before = path.read_bytes()
    assert len(before) > 4096
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: File too large$"), full_disk():
        checkpoints.save(path, network, optimizer_of(network), CONFIG, PREPROCESSING["digits"], STATE, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_where_no_file_can_be_is_refused(tmp_path):
    network = Small()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: Not a directory"):
        checkpoints.save(
            tmp_path / "file" / "last.ckpt", network, optimizer_of(network), CONFIG, PREPROCESSING["digits"], STATE, {}
        )


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_an_untrusted_file_is_executed(tmp_path, own):
    trace, file = tmp_path / "executed", tmp_path / "evil.ckpt"
    for content in (pickle.dumps(Evil(trace)), own[0].read_bytes() + pickle.dumps(Evil(trace))):
        file.write_bytes(content)
        with pytest.raises(UserError, match="evil.ckpt is"):
            checkpoints.read(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()  # it would have worked


def test_a_file_of_ours_cut_between_any_two_entries_is_known_as_truncated(tmp_path, own):
    """Protocol buffers have no end: what is before the cut reads well."""
    entries, cut = parse(own[0].read_bytes()), tmp_path / "cut.ckpt"
    assert entries[0].name == "fda_bnn_format" and len(entries) > 20
    for number in range(1, len(entries) + 1):
        cut.write_bytes(serialize(entries[:number], checksum=False))
        with pytest.raises(UserError, match="cut.ckpt is a truncated checkpoint: it does not end with its checksum"):
            checkpoints.read(cut)


def test_a_save_leaves_one_file(own):
    path, network = own
    checkpoints.save(path, network, optimizer_of(network), {**CONFIG, "seed": 4}, PREPROCESSING["digits"], None, {})
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert checkpoints.read(path).config["seed"] == 4


@pytest.mark.parametrize("strict", [False, True])
def test_mindspores_own_recipe_for_fine_tuning_keeps_the_new_head(tmp_path, strict):
    """`load_param_into_net` uses entries with a name that ends in a missing parameter's: ours must not."""
    network, path = scrambled(Small()), tmp_path / "last.ckpt"
    optimizer = nn.Adam(network.trainable_params(), 0.1)
    checkpoints.save(path, network, optimizer, CONFIG, PREPROCESSING["digits"], STATE, {"linear.weight": np.ones(16)})
    content = ms.load_checkpoint(str(path))
    for name in ("linear.weight", "linear.bias"):
        content.pop(name)
    fresh = Small()
    before = values(fresh)
    missing, _ = ms.load_param_into_net(fresh, content, strict_load=strict)
    assert missing == ["linear.weight", "linear.bias"]
    after = values(fresh)
    for name, value in values(network).items():
        np.testing.assert_array_equal(after[name], before[name] if name in missing else value, err_msg=name)


def test_no_entry_of_ours_ends_in_the_name_of_a_parameter(own):
    content = ms.load_checkpoint(str(own[0]))
    names = {parameter.name for parameter in own[1].get_parameters()}
    for dropped in names:
        others = [name for name in content if name not in names and name.endswith(dropped)]
        assert not others


def test_mindspore_reads_our_files(own):
    content = ms.load_checkpoint(str(own[0]), crc_check=True)
    assert content["fda_bnn_format"] == "1" and json.loads(content["state"]) == STATE
    np.testing.assert_array_equal(content["linear.weight"].asnumpy(), own[1].linear.weight.asnumpy())


def test_large_tensors_are_read_from_their_slices(tmp_path):
    """MindSpore writes tensors of more than 512 MiB so."""
    network, path = scrambled(Small(noise=False)), tmp_path / "sliced.ckpt"
    entries = parse(write_foreign(path, values(network)).read_bytes())
    sliced = [
        part
        for entry in entries
        for part in (
            checkpoint_files.Entry(entry.name, entry.kind, entry.dims, entry.content[:8]),
            checkpoint_files.Entry(entry.name, entry.kind, entry.dims, entry.content[8:]),
        )
    ]
    path.chmod(0o600)
    path.write_bytes(serialize(sliced, checksum=False))
    fresh = Small(noise=False)
    checkpoints.load_network(fresh, path)
    assert_equal(values(fresh), values(network))


@pytest.mark.parametrize("kind", [ms.float16, ms.bfloat16, ms.float64])
def test_other_floating_types_are_taken(tmp_path, kind):
    network = scrambled(Small(noise=False))
    rounded = {name: Tensor(value).astype(kind) for name, value in values(network).items()}
    path = tmp_path / "other.ckpt"
    ms.save_checkpoint([{"name": name, "data": value} for name, value in rounded.items()], str(path))
    fresh = Small(noise=False)
    checkpoints.load_network(fresh, path)
    assert_equal(values(fresh), {name: value.astype(ms.float32).asnumpy() for name, value in rounded.items()})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float64(1e300)])
@pytest.mark.parametrize("name", ["linear.weight", "layer1.0.bn1.moving_variance"])
def test_a_value_that_is_not_finite_is_refused_by_its_name(tmp_path, name, value):
    """Nor one that is not finite in the network's type, float32."""
    arrays = values(scrambled(Small(noise=False)))
    arrays[name] = arrays[name].astype(getattr(value, "dtype", np.float32))
    arrays[name].flat[-1] = value
    network = Small(noise=False)
    before = values(network)
    with pytest.raises(UserError, match=rf"not finite \(NaN or infinity\): {name}$"):
        checkpoints.load_network(network, write_foreign(tmp_path / "nan.ckpt", arrays))
    assert_equal(values(network), before)


def test_an_optimizers_value_that_is_not_finite_is_refused(tmp_path):
    network, path = Small(), tmp_path / "last.ckpt"
    optimizer = optimizer_of(network)
    moment = optimizer.moments[0]
    moment.set_data(Tensor(np.full(moment.shape, np.nan, np.float32)))
    checkpoints.save(path, network, optimizer, CONFIG, PREPROCESSING["digits"], STATE, {})
    with pytest.raises(UserError, match="the optimizer's moments.* is not finite.*--init_checkpoint"):
        checkpoints.load_optimizer(optimizer_of(Small()), checkpoints.read(path))


def test_integers_in_the_place_of_weights_are_refused(tmp_path):
    arrays = values(scrambled(Small(noise=False)))
    arrays["linear.bias"] = arrays["linear.bias"].view(np.int32)
    with pytest.raises(UserError, match=r"of another type: linear\.bias int32 \(the network has float32\)$"):
        checkpoints.load_network(Small(noise=False), write_foreign(tmp_path / "int.ckpt", arrays))


@pytest.mark.parametrize("classes", [1, 3])
def test_another_number_of_classes_starts_the_last_layer_fresh_on_request(tmp_path, own, classes):
    path, network = own
    fresh = Small()
    fresh.linear = nn.Dense(8, classes)
    before, old = values(fresh), values(network)
    with pytest.raises(UserError, match="of another shape: linear.weight"):
        checkpoints.load_network(fresh, path)
    (note,) = checkpoints.load_network(fresh, path, new_classes=True)
    assert note.startswith(f"the last layer (linear.weight, linear.bias) starts fresh for {classes} classes: {path}")
    assert note.endswith("has it for 2 classes")
    for name, value in values(fresh).items():
        np.testing.assert_array_equal(value, before[name] if name.startswith("linear") else old[name], err_msg=name)


def test_a_file_without_the_last_layer_starts_it_fresh_on_request(tmp_path):
    arrays = values(scrambled(Small(noise=False)))
    backbone = {name: value for name, value in arrays.items() if not name.startswith("linear")}
    path = write_foreign(tmp_path / "backbone.ckpt", backbone)
    with pytest.raises(UserError, match="missing: linear.weight, linear.bias"):
        checkpoints.load_network(Small(noise=False), path)
    (note,) = checkpoints.load_network(Small(noise=False), path, new_classes=True)
    assert note.endswith("does not have it")


def test_the_last_layer_of_as_many_classes_is_taken(own):
    fresh = Small()
    assert checkpoints.load_network(fresh, own[0], new_classes=True) == []
    assert_equal(values(fresh), values(own[1]))


def test_another_width_of_the_last_layer_is_no_other_number_of_classes(own):
    fresh = Small()
    fresh.linear = nn.Dense(9, 3)
    with pytest.raises(UserError, match="of another shape: linear.weight"):
        checkpoints.load_network(fresh, own[0], new_classes=True)


def optimizers() -> list[tuple[str, object]]:
    from mindcv.optim import create_optimizer

    names = ("sgd", "momentum", "adam", "adamw", "lion", "nadam", "adan", "rmsprop", "adagrad", "lamb")
    classes = (nn.AdamWeightDecay, nn.Lamb, nn.RMSProp, nn.FTRL, nn.Adadelta, nn.Adagrad, nn.AdaMax, nn.Rprop, nn.ASGD)
    return [
        *((name, lambda parameters, name=name: create_optimizer(parameters, opt=name, lr=0.1)) for name in names),
        *((made.__name__, lambda parameters, made=made: made(parameters, 0.1)) for made in classes),
    ]


@pytest.mark.parametrize("prefix", ["", "network.backbone."])
@pytest.mark.parametrize(("name", "make"), optimizers())
def test_other_optimizers_state_is_passed_over_and_said(tmp_path, name, make, prefix):
    network = scrambled(Small(noise=False))
    state = {
        key: value for key, value in values(make(network.trainable_params())).items() if key not in values(network)
    }
    assert state
    arrays = {
        **state,
        **{f"moment1.{prefix}{key}": value for key, value in values(network).items()},
        **{f"ema.{prefix}{key}": 2 * value for key, value in values(network).items()},
        **{prefix + key: value for key, value in values(network).items()},
    }
    fresh = Small(noise=False)
    (note,) = checkpoints.load_network(fresh, write_foreign(tmp_path / "foreign.ckpt", arrays))
    assert_equal(values(fresh), values(network))
    assert "entries (optimizer state or copies) were ignored: " in note
    assert (f"the prefix {prefix!r} was removed" in note) == bool(prefix)


@pytest.mark.parametrize(
    ("copy", "prefix"),
    [("ema.", "module."), ("moment1.", "backbone."), ("model_ema.module.", "student.module.encoder.")],
)
def test_a_whole_copy_is_not_taken_for_the_weights(tmp_path, copy, prefix):
    """Without batch norm, whose statistics only the weights have, moments are whole copies, too."""
    network = nn.SequentialCell(nn.Dense(4, 3), nn.Dense(3, 2))
    own = values(scrambled(network))
    copied = {copy + name: 2 * value for name, value in own.items()}
    arrays = {**copied, **{prefix + name: value for name, value in own.items()}}
    fresh = nn.SequentialCell(nn.Dense(4, 3), nn.Dense(3, 2))
    (note,) = checkpoints.load_network(fresh, write_foreign(tmp_path / "foreign.ckpt", arrays))
    assert_equal(values(fresh), own)
    assert f"the prefix {prefix!r} was removed" in note and "4 entries (optimizer state or copies) were ignored" in note


def test_unknown_layers_are_not_mistaken_for_optimizer_state(tmp_path):
    """`layer4.0.conv1.weight` ends as a parameter of the network does."""
    arrays = values(scrambled(Small(noise=False)))
    more = {f"extra.{name}": value for name, value in list(arrays.items())[:3]}
    with pytest.raises(UserError, match=r"parameters unknown: extra\."):
        checkpoints.load_network(Small(noise=False), write_foreign(tmp_path / "more.ckpt", {**arrays, **more}))


def test_some_noise_modules_missing_is_refused(tmp_path):
    arrays = values(scrambled(Small()))
    noise = [name for name in arrays if ".noise." in name]
    arrays.pop(noise[0])
    with pytest.raises(UserError, match=f"missing: {noise[0]}$"):
        checkpoints.load_network(Small(), write_foreign(tmp_path / "part.ckpt", arrays))


def test_a_newer_format_is_refused_by_its_number(own):
    path, _ = own
    entries = parse(path.read_bytes())
    entries[0] = text_entry("fda_bnn_format", "7")
    path.chmod(0o600)
    path.write_bytes(serialize(entries))
    with pytest.raises(UserError, match="has format 7, but this version reads formats up to 1: use a newer version"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("preprocessing", "size", "32", "its preprocessing: size: Input should be a valid integer"),
        ("preprocessing", "size", 0, "its preprocessing: size: not an allowed"),
        ("preprocessing", "classes", None, "its preprocessing: classes: "),
        ("preprocessing", "classes", [["a"]], "its preprocessing: classes.0: "),
        ("preprocessing", "std", [1, 0, 1], "its preprocessing: std: not an allowed"),
        ("preprocessing", "mean", [1, 0], "its preprocessing: mean"),
        ("preprocessing", "layout", "NHWC", "its preprocessing: layout: not an allowed"),
        ("preprocessing", "x", 1, "its preprocessing: x: not an allowed"),
        ("config", "data", {}, "its config: it lacks the key 'data.name'"),
        ("config", "network", None, "its config: it lacks the section 'network'"),
        ("config", "seed", "x", "its config: seed is 'x', but must be a valid integer"),
        ("config", "x", 1, "its config: unknown key 'x' in the stored config"),
        ("state", "workers", None, "its state: workers: "),
        ("state", "epoch", -1, "its state: epoch: "),
        ("state", "history", [[1]], "its state: history.0"),
    ],
)
def test_every_field_of_the_texts_is_checked(own, name, key, value, message):
    path, _ = own
    entries = parse(path.read_bytes())
    place = next(number for number, entry in enumerate(entries) if entry.name == name)
    entries[place] = text_entry(name, json.dumps({**json.loads(entries[place].text), key: value}))
    path.chmod(0o600)
    path.write_bytes(serialize(with_new_hash(entries)))
    with pytest.raises(UserError) as refusal:
        checkpoints.read(path)
    assert message in str(refusal.value)


def test_a_stored_config_decides_the_network_and_nothing_of_the_users_machine(own):
    taken = checkpoints.network_config(checkpoints.read(own[0]))
    assert taken.keys() == {"network", "noise", "amp", "data"}
    assert taken["amp"].keys() == {"level"} and taken["data"].keys() <= {"name", "image_size"}
    config = load_config(taken)
    assert config.network.model_dump() == CONFIG["network"] and config.data.name == "digits"
    assert config.data.path == load_config().data.path and not config.data.download


SCARCE = """
import resource, sys
from src import cli, runtime
runtime.prepare_environment()
from src import checkpoints
for spare in (2**25, 150 * 2**20):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    code = cli.run(lambda argv: checkpoints.read(argv[0]) and 0, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)  # MindSpore starts a thread as it ends
sys.exit(code)
"""


def test_low_memory_is_not_called_damage(tmp_path):
    """Neither too little for the file, of 64 MiB, nor enough for it but too little for upb to parse it."""
    path = tmp_path / "large.ckpt"
    path.write_bytes(
        serialize([checkpoint_files.Entry(f"{n}", "Float32", (2**12,), bytes(2**14)) for n in range(2**12)])
    )
    done = subprocess.run(
        [sys.executable, "-c", SCARCE, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb"},
    )
    assert done.returncode == 2, done.stderr
    assert [line[:20] for line in done.stderr.splitlines()] == ["error: out of memory"] * 2


class Unharmed:
    """The file that mutants are made of, and the check of one: equal to it, or refused in a sentence."""

    def __init__(self, path: Path, path_of_mutants: Path, network: nn.Cell):
        self.content = path.read_bytes()
        self.path = path_of_mutants
        self.network, self.optimizer = Small(), optimizer_of(Small())
        self.original = checkpoints.read(path)
        self.values = values(network)

    def check(self, kind: str, rehashed: bool, content: bytes) -> bool:
        """Whether the mutant was read. Values may differ only if someone who knows the format meant them to."""
        self.path.write_bytes(content)
        try:
            found = checkpoints.read(self.path)
            checkpoints.load_network(self.network, found)
            if self.original.format is not None:
                checkpoints.load_optimizer(self.optimizer, found)
            check_network(load_config(checkpoints.network_config(found)))
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            return False
        if kind != "structure of bytes":
            assert_equal(values(self.network), self.values)
            assert_equal(found.optimizer, self.original.optimizer)
        if kind not in ("structure of bytes", "field of a text", "text") and not rehashed:
            assert (found.config, found.preprocessing, found.state) == (
                self.original.config,
                self.original.preprocessing,
                self.original.state,
            )
            if self.original.format:  # format 0 does not say which of them there were
                assert_equal(found.extra, self.original.extra)
        return True


def unharmed(folder: Path, layout: str) -> Unharmed:
    """A file of format 1, of format 0, or one that is not ours."""
    network, path = scrambled(Small()), folder / f"{layout}.ckpt"
    extra, preprocessing = {"signs": np.arange(5, dtype=np.uint8)}, PREPROCESSING["digits"]
    if layout == "format 1":
        checkpoints.save(path, network, optimizer_of(network), CONFIG, preprocessing, STATE, extra)
    elif layout == "format 0":
        checkpoint_files.write_format_0(
            path, network, optimizer_of(network), CONFIG, preprocessing.to_dict(), STATE, extra
        )
    else:
        path.write_bytes(serialize(parse(write_foreign(folder / "written.ckpt", values(network)).read_bytes())))
    return Unharmed(path, folder / "mutant.ckpt", network)


LAYOUTS = {"format 1": 250, "format 0": 150, "foreign": 100}


@pytest.mark.parametrize(("layout", "count"), LAYOUTS.items())
def test_a_damaged_file_is_equal_or_refused(tmp_path, layout, count):
    subject = unharmed(tmp_path, layout)
    results = [subject.check(*mutant) for mutant in checkpoint_files.mutants(subject.content, 0, count)]
    assert len(results) == count and 0 < sum(results) < count / 2


@pytest.mark.slow
def test_thousands_of_damaged_files_are_equal_or_refused(tmp_path):
    done = processes.run("tests/soak/damaged_checkpoints.py", "--files", 5000, "--seed", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(line.split(": ")[1].split(" files")[0]) for line in done.stdout.splitlines() if " files in " in line]
    assert len(counts) == len(LAYOUTS) and sum(counts) == 5000
