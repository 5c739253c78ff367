"""Files written whole or not at all, and read with every parameter accounted for."""

import contextlib
import pickle
import resource
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src import checkpoints
from src.binary import Binarization
from src.errors import UserError
from src.models import create_model
from src.models.resnet20 import Block
from src.preprocessing import PREPROCESSING


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


def write_bare(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A file of parameters alone, as MindSpore's own save_checkpoint writes it."""
    ms.save_checkpoint([{"name": name, "data": Tensor(value)} for name, value in arrays.items()], str(path))
    return path


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
        {"seed": 3},
        PREPROCESSING["digits"],
        {"epoch": 2, "history": [{"loss": 0.1}]},
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
    checkpoints.load_network(network, write_bare(tmp_path / "released.ckpt", spelled))
    assert_equal(values(network), released)


def test_our_own_checkpoint_comes_back_whole(own):
    path, network = own
    read = checkpoints.read(path)
    assert read.config == {"seed": 3}
    assert read.preprocessing == PREPROCESSING["digits"]
    assert read.state == {"epoch": 2, "history": [{"loss": 0.1}]}
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
    checkpoints.save(path, network, optimizer, {}, PREPROCESSING["digits"], {}, {})
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
    checkpoints.load_network(fresh, write_bare(tmp_path / "bare.ckpt", values(bare)))
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
    checkpoints.load_network(fresh, write_bare(tmp_path / "foreign.ckpt", {**state, **scaling, **values(network)}))
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
                {"linear.weight": np.zeros((2, 9), np.float32), "extra": arrays.pop("linear.bias")}
            ),
            r"missing: linear\.bias; unknown: extra; of another shape: linear\.weight",
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
        checkpoints.load_network(network, write_bare(tmp_path / "other.ckpt", arrays))
    assert_equal(values(network), before)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:50], "truncated or damaged"),
        (lambda content: content[: len(content) // 2], "truncated or damaged"),
        (lambda content: content[:-1], "truncated or damaged"),
        (lambda content: flip(content, len(content) // 2), "truncated or damaged"),
        (lambda content: flip(content, 3), "truncated or damaged"),
        (lambda content: b"no checkpoint at all\n" * 200, "no MindSpore checkpoint"),
        (lambda content: bytes(4096), "no MindSpore checkpoint"),
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
        checkpoints.save(path, network, optimizer_of(network), {}, PREPROCESSING["digits"], {}, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_where_no_file_can_be_is_refused(tmp_path):
    network = Small()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: Not a directory"):
        checkpoints.save(
            tmp_path / "file" / "last.ckpt", network, optimizer_of(network), {}, PREPROCESSING["digits"], {}, {}
        )


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_strangers_file_is_executed(tmp_path, own):
    trace, file = tmp_path / "executed", tmp_path / "evil.ckpt"
    for content in (pickle.dumps(Evil(trace)), own[0].read_bytes() + pickle.dumps(Evil(trace))):
        file.write_bytes(content)
        with pytest.raises(UserError, match="evil.ckpt is"):
            checkpoints.read(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()  # it would have worked


def test_a_file_cut_between_two_parameters_is_refused(tmp_path, own):
    """Protocol buffers have no end: what is before the cut reads well."""
    content = own[0].read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(content[: content.rindex(b"crc_num")])
    with pytest.raises(UserError, match="cut.ckpt is a truncated checkpoint: it does not end with its checksum"):
        checkpoints.read(cut)


def test_a_save_leaves_one_file(own):
    path, network = own
    checkpoints.save(path, network, optimizer_of(network), {"seed": 4}, PREPROCESSING["digits"], {}, {})
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert checkpoints.read(path).config == {"seed": 4}
