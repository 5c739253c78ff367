"""The C++ kernels against float64 and against plain operations: values, borders, refusals, repetition."""

import ctypes
import shlex
import subprocess
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from scipy.stats import ttest_ind

from src.binary import Binarization, chosen_path, create_estimator, fourier
from src.binary.kernels import native
from src.models import create_model
from src.training.step import TrainStep
from tests.helpers import oracles, processes
from tests.helpers.float64_resnet20 import conv2d_gradients
from tests.helpers.kernels import require_compiler, require_kernels
from tests.helpers.networks import Weighted

# Images, channels in and out, height, width, stride: of networks, and odd ones.
SIZES = [
    (2, 16, 16, 32, 32, 1),
    (2, 16, 32, 32, 32, 2),
    (3, 64, 64, 8, 8, 1),
    (2, 3, 5, 7, 9, 1),
    (2, 5, 6, 9, 7, 2),
    (3, 130, 3, 5, 17, 1),
    (1, 1, 130, 3, 33, 2),
    (2, 2, 9, 6, 6, 2),
    (1, 1, 1, 1, 1, 1),
    (1, 2, 1, 1, 1, 2),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("BNN_NATIVE", "1")
    require_kernels()


def random(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(got: Tensor, expected: np.ndarray) -> None:
    assert got.shape == expected.shape and got.dtype == ms.float32
    assert np.abs(got.asnumpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("scales", ["one", "each"])
@pytest.mark.parametrize(("images", "channels", "outputs", "height", "width", "stride"), SIZES)
def test_convolution_and_its_gradients(any_mode, images, channels, outputs, height, width, stride, scales):
    x, z = random((images, channels, height, width), 0), random((outputs, channels, 3, 3), 1)
    x.flat[::7] = 0  # exact zeros, as sums of signs have them
    scale = np.abs(random((outputs if scales == "each" else 1, 1, 1), 2))
    sums = oracles.conv2d(x.astype(np.float64), z.astype(np.float64), stride, 1)
    dout = random(sums.shape, 3)
    by_x, by_z = conv2d_gradients(
        x.astype(np.float64), z.astype(np.float64), (dout * scale).astype(np.float64), stride, 1
    )
    cell = native.convolution(3, stride, 1, 1)
    inputs = [Tensor(values) for values in (x, z, scale)]
    assert_close(cell(*inputs), sums * scale)
    assert_close(cell.by_x(*inputs, Tensor(dout)), by_x)
    assert_close(cell.by_z(*inputs, Tensor(dout)), by_z)


def call(function: str, *arrays: np.ndarray, threads: int) -> None:
    """Call a kernel with inputs and outputs as MindSpore does, but with this number of threads."""
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
    count = len(arrays)
    sizes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    pointer = ctypes.POINTER(ctypes.c_int64)
    code = getattr(ctypes.CDLL(native._library()), function)(
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (pointer * count)(*(ctypes.cast(size, pointer) for size in sizes)),
        (ctypes.c_char_p * count)(*(array.dtype.name.encode() for array in arrays)),
        None,
        None,
    )
    assert code == 0


def test_results_do_not_depend_on_the_number_of_threads():
    whole, half, channels = (37, 16, 9, 9), (37, 16, 5, 5), (16,)
    x, dout, by_half, z = random(whole, 0), random(whole, 1), random(half, 2), random((16, 16, 3, 3), 3)
    signs = [oracles.sign(values).astype(np.float32) for values in (x, z)]
    w1, w2, gamma, beta = random((16, 2), 4), random((2, 16), 5), random(channels, 6), random(channels, 7)
    mean, variance, one = random(channels, 8), random(channels, 9) ** 2, np.ones(1, np.float32)
    options, eps = np.array([0.1, 2], np.float32), np.array([1e-3], np.float32)
    kernels = [  # name, inputs, shapes of the outputs
        ("conv3x3", (x, z, one), [whole]),
        ("conv3x3", (*signs, one), [whole]),
        ("conv3x3_data_gradient", (x, z, one, dout), [whole]),
        ("conv3x3_weight_gradient", (x, z, one, dout), [z.shape]),
        ("conv3x3_stride2", (x, z, one), [half]),
        ("conv3x3_stride2", (*signs, one), [half]),
        ("conv3x3_data_gradient", (x, z, one, by_half), [whole]),
        ("conv3x3_weight_gradient", (x, z, one, by_half), [z.shape]),
        ("noise", (x, w1, w2, one, options), [whole]),
        ("noise_gradient", (x, w1, w2, one, options, dout), [whole, w1.shape, w2.shape]),
        ("slope_norm", (x, one / 4, gamma, beta, eps), [whole, channels, channels]),
        ("slope_norm_gradient", (x, one / 4, gamma, mean, variance, eps, dout), [whole, (1,), channels, channels]),
        ("slope_norm_evaluation", (x, one / 4, gamma, beta, mean, variance, eps), [whole]),
    ]
    for name, inputs, shapes in kernels:
        results = []
        for threads in (1, 2, 3, 5):
            results.append([np.full(shape, np.nan, np.float32) for shape in shapes])
            call(name, *inputs, *results[-1], threads=threads)
        for other in results:
            for got, expected in zip(other, results[0], strict=True):
                assert np.isfinite(got).all(), name
                np.testing.assert_array_equal(got, expected, name)


@pytest.mark.parametrize(
    ("images", "channels", "outputs", "height", "width", "stride"),
    [*SIZES, (2, 21, 4, 4, 4, 1), (1, 22, 3, 1, 2, 1), (2, 64, 5, 3, 1, 2), (1, 200, 2, 4, 4, 1)],
)
def test_sums_of_signs_are_exact(images, channels, outputs, height, width, stride):
    """By bits, and where an image or a filter holds other values by floats: both give the same integers."""
    x = oracles.sign(random((images, channels, height, width), 0)).astype(np.float32)
    z = oracles.sign(random((outputs, channels, 3, 3), 1)).astype(np.float32)
    cell, one = native.convolution(3, stride, 1, 1), np.ones(1, np.float32)
    zero_in_x, zero_in_z = x.copy(), z.copy()
    zero_in_x[-1, -1, -1, -1] = zero_in_z[-1, -1, -1, -1] = 0
    for images_of, filters in ((x, z), (zero_in_x, z), (x, zero_in_z)):
        sums = oracles.conv2d(images_of, filters, stride, 1)
        np.testing.assert_array_equal(cell(*map(Tensor, (images_of, filters, one))).asnumpy(), sums)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "groups"), [(1, 1, 0, 1), (3, 3, 1, 1), (3, 1, 0, 1), (3, 1, 1, 2)]
)
def test_other_convolutions_stay_with_the_framework(kernel_size, stride, padding, groups):
    layer = Binarization(noise_adaptation=False).conv(4, 6, kernel_size, stride, padding, groups)
    assert layer.product.kernels is None
    assert Binarization(noise_adaptation=False).conv(4, 6, 3, 1, 1).product.kernels is not None


def test_the_noise_of_wide_weights_is_left_to_the_framework():
    layer = Binarization().dense(64 * (native.MAX_HIDDEN + 1), 5)
    assert layer.weight_quantizer.noise.kernels is None and layer.activation_quantizer.noise.kernels is None
    layer = Binarization().dense(64 * native.MAX_HIDDEN, 5)
    assert layer.weight_quantizer.noise.kernels is not None


IMAGES = (2, 4, 5, 5)
KERNELS = {  # with shapes of inputs that fit each other
    "convolution": (lambda: native.convolution(3, 1, 1, 1), [IMAGES, (6, 4, 3, 3), (1,)]),
    "noise": (lambda: native.noise("sine", 0.1, True, 2), [IMAGES, IMAGES, (4, 2), (2, 4), ()]),
    "slope norm": (lambda: native.slope_norm(1e-3), [IMAGES, (1,), (4,), (4,)]),
    "slope norm in evaluation": (lambda: native.slope_norm(1e-3).evaluate, [IMAGES, (1,), (4,), (4,), (4,), (4,)]),
    "fourier gradient": (lambda: native.fourier_gradient(), [IMAGES, IMAGES, (), (5,)]),
}


def result(kernel: str, shapes: list, dtype=np.float32) -> np.ndarray:
    """The kernel's first result for ones."""
    found = KERNELS[kernel][0]()(*(Tensor(np.ones(shape, dtype)) for shape in shapes))
    return (found[0] if isinstance(found, tuple) else found).asnumpy()


@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [
        ("convolution", {1: (6, 3, 3, 3)}),
        ("convolution", {2: (5,)}),
        ("convolution", {1: (6, 4, 5, 5)}),
        ("convolution", {0: (2, 0, 5, 5), 1: (6, 0, 3, 3)}),
        ("noise", {1: (2, 4, 5)}),
        ("noise", {2: (5, 2)}),
        ("noise", {3: (3, 4)}),
        ("noise", {4: (2,)}),
        ("slope norm", {0: (2, 4, 5)}),
        ("slope norm", {1: (2,)}),
        ("slope norm", {3: (5,)}),
        ("slope norm in evaluation", {5: (3,)}),
        ("fourier gradient", {1: (2, 4, 5, 6)}),
        ("fourier gradient", {3: (4,)}),
    ],
)
def test_wrong_shapes_are_an_error(kernel, wrong):
    shapes = KERNELS[kernel][1]
    assert np.isfinite(result(kernel, shapes)).all()
    with pytest.raises((RuntimeError, ValueError)):
        result(kernel, [wrong.get(number, shape) for number, shape in enumerate(shapes)])


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_types_are_an_error(kernel):
    with pytest.raises((RuntimeError, TypeError)):
        result(kernel, KERNELS[kernel][1], np.float16)


def test_sign(any_mode):
    t = random((5, 7, 11), 0)
    t.flat[:5] = [0.0, -0.0, np.nan, np.inf, -np.inf]
    np.testing.assert_array_equal(create_estimator("ste")(Tensor(t)).asnumpy(), oracles.sign(t))


@pytest.mark.parametrize("n", [0, 1, 9, 18, 64])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_fourier_gradient(any_mode, n, clip):
    """Within 1e-6 of its peak; NaN where t is NaN or infinite, unless that is beyond the bound."""
    estimator = create_estimator("fda", n=n, clip=clip)
    t, factor = np.random.default_rng(0).uniform(-100, 100, (5, 7, 11)).astype(np.float32), random((5, 7, 11), 1)
    t.flat[:4] = [0.0, -0.0, np.nan, np.inf]
    t.flat[4:40] /= 50
    cell = Weighted(estimator)
    got = ms.grad(cell)(Tensor(t), Tensor(factor)).asnumpy()
    finite = np.isfinite(t)
    expected = fourier.partial_sum_derivative(np.where(finite, t, 0), n) * factor
    if clip is not None:
        expected[np.abs(t) > clip] = 0
    assert np.abs(got - expected)[finite].max() < 1e-6 * oracles.peak(n) * np.abs(factor).max()
    assert np.isnan(got.flat[2]) and (np.isnan(got.flat[3]) if clip is None else got.flat[3] == 0)


@pytest.mark.parametrize("eta", ["none", "linear", "sine"])
@pytest.mark.parametrize(
    ("shape", "hidden"),
    [((2, 16, 8, 8), 1), ((3, 5, 3, 3), 2), ((2, 130, 5, 7), 3), ((1, 3, 40, 40), 1), ((7, 30), 2), ((1, 1), 1)],
)
def test_noise_and_its_gradients(any_mode, shape, hidden, eta):
    channels, alpha, amplitude = shape[1], 0.3, 0.1
    t, factor = 3 * random(shape, 0), random(shape, 1)
    t.flat[3::7] = 0
    w1, w2 = random((channels, hidden), 2) / np.sqrt(channels).astype(np.float32), random((hidden, channels), 3)
    binary = oracles.sign(t).astype(np.float32)
    cell = WeightedNoise(native.noise(eta, amplitude, True, hidden))
    inputs = [Tensor(values) for values in (binary, t, w1, w2)]
    value = cell.noise(*inputs, Tensor(alpha, ms.float32))
    gradients = ms.grad(cell, (0, 1, 2, 3))(*inputs, Tensor(alpha, ms.float32), Tensor(factor))

    rows, incoming = (np.moveaxis(values, 1, -1).reshape(-1, channels).astype(np.float64) for values in (t, factor))
    before = rows @ w1
    etas = {"none": (0 * rows, 0 * rows), "linear": (rows, 1 + 0 * rows), "sine": (np.sin(rows), np.cos(rows))}
    e = np.maximum(before, 0) @ w2 + amplitude * etas[eta][0]
    to_hidden = alpha * (incoming @ w2.T) * (before > 0)
    by_rows = to_hidden @ w1.T + alpha * amplitude * etas[eta][1] * incoming

    def positions(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values.reshape(shape[0], *shape[2:], channels), -1, 1)

    expected = [factor, positions(by_rows), rows.T @ to_hidden, alpha * np.maximum(before, 0).T @ incoming]
    assert_close(value, binary + alpha * positions(e))
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert_close(gradient, wanted)


class WeightedNoise(nn.Cell):
    def __init__(self, noise: nn.Cell):
        super().__init__()
        self.noise = noise

    def construct(self, binary, t, w1, w2, alpha, factor):
        return self.noise(binary, t, w1, w2, alpha) * factor


@pytest.mark.parametrize("noise", [False, True], ids=["signs", "signs and noise"])
@pytest.mark.parametrize(
    ("images", "channels", "outputs", "height", "width", "stride"),
    [(2, 5, 130, 9, 7, 1), (3, 5, 1, 6, 9, 2), (2, 1, 5, 3, 17, 1), (2, 130, 5, 7, 3, 2)],
)
def test_a_layer_gives_on_both_paths_the_same(monkeypatch, images, channels, outputs, height, width, stride, noise):
    """The output, and the gradients of x and all parameters, for inputs with exact zeros."""
    x = random((images, channels, height, width), 0)
    x.flat[::5] = 0
    found = []
    for path in ("0", "1"):
        monkeypatch.setenv("BNN_NATIVE", path)
        layer = Binarization(noise_adaptation=noise).conv(channels, outputs, 3, stride, 1).set_train()
        assert (layer.product.kernels is not None) == (path == "1")
        for number, parameter in enumerate(layer.trainable_params()):
            value = random(parameter.shape, number + 1)
            value.flat[3::11] = 0
            parameter.set_data(Tensor(value))
        y = layer(Tensor(x))
        gradient = ms.grad(Weighted(layer), 0, layer.trainable_params())
        by_x, by_parameters = gradient(Tensor(x), Tensor(random(y.shape, 10)))
        found.append([y, by_x, *by_parameters])
    assert len(found[0]) == (7 if noise else 3)
    for plain, kernels in zip(*found, strict=True):
        assert_close(kernels, plain.asnumpy())


class Training:
    """A ResNet-20 and its training step in graph mode, compiled once for all seeds."""

    def __init__(self, images: int, **options):
        self.images = images
        self.binarization = Binarization(**options)
        self.network = self.create()
        self.optimizer = nn.Momentum(self.network.trainable_params(), 0.01, 0.9)
        self.step = TrainStep(self.network, nn.CrossEntropyLoss(), self.optimizer).set_train()

    def create(self) -> nn.Cell:
        return create_model("resnet20", binarization=self.binarization)

    def losses(self, seed: int, steps: int, batches: int) -> np.ndarray:
        """From the start, on batches of random images that come again after `batches` steps."""
        ms.set_seed(seed)
        for parameter, start in zip(self.network.get_parameters(), self.create().get_parameters(), strict=True):
            parameter.set_data(Tensor(start.asnumpy().copy()))
        for moment in self.optimizer.moments:
            moment.set_data(Tensor(np.zeros(moment.shape, np.float32)))
        labels = Tensor(np.arange(self.images).astype(np.int32) % 10)
        shape = (self.images, 3, 32, 32)
        inputs = (Tensor(random(shape, 1000 * seed + number % batches)) for number in range(steps))
        return np.array([self.step(batch, labels)[0].asnumpy().item() for batch in inputs])


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True], ids=["signs", "signs and noise"])
def test_a_network_trains_as_with_plain_operations(graph_mode, monkeypatch, noise):
    """The first three losses agree, 50 steps repeat to the bit, and over five seeds of 200 steps the mean losses differ
    no more than chance explains (Welch's t test at 1 %).

    Where a value lies within rounding of 0, its sign may differ between the paths, and then all that follows: among the
    millions of values of a large batch that is likely, with two images it happens with about half of the seeds. So the
    first loss is compared for all seeds, the first three for the seed that they agree best with.
    """
    found = {}
    for kernels in ("0", "1"):
        monkeypatch.setenv("BNN_NATIVE", kernels)
        training = Training(2, noise_adaptation=noise)
        found[kernels] = np.array([training.losses(seed, 200, batches=8) for seed in range(5)])
        np.testing.assert_array_equal(training.losses(0, 50, batches=8), found[kernels][0, :50])
    errors = np.abs(found["1"] / found["0"] - 1)[:, :3]
    assert errors[:, 0].max() <= 1e-5, errors
    assert errors.max(1).min() <= 1e-5, errors
    means = {kernels: losses.mean(1) for kernels, losses in found.items()}
    assert ttest_ind(means["0"], means["1"], equal_var=False).pvalue > 0.01, means


def test_the_path_is_said(monkeypatch):
    assert chosen_path() == "native kernels"
    monkeypatch.setenv("BNN_NATIVE", "0")
    assert chosen_path() == "plain operations (BNN_NATIVE is 0)"
    monkeypatch.setenv("BNN_NATIVE", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert chosen_path().startswith("plain operations (") and "compiler" in chosen_path()
    monkeypatch.setattr(native, "ms", SimpleNamespace(get_context=lambda name: "Ascend"))
    assert chosen_path() == "plain operations (kernels are for CPU, and the device is Ascend)"


def test_a_compiler_that_only_cxx_names_is_enough(monkeypatch):
    """To the kernels and to the tests of them."""
    (compiler, *options) = require_compiler()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", shlex.join([compiler, *options]))
    require_kernels()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(pytest.skip.Exception, match="there is no program '/nowhere/c\\+\\+'"):
        require_kernels()


@pytest.mark.slow
def test_the_kernels_under_sanitizers(tmp_path):
    """A driver calls every kernel at odd sizes. Reads or writes beyond an array, leaks, undefined behaviour end it."""
    sources = sorted((processes.ROOT / "src/binary/native").glob("*.cpp"))
    flags = ["-std=c++17", "-O1", "-g", "-march=native", "-fopenmp", "-fno-omit-frame-pointer"]
    command = [*require_compiler(), *flags, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [
        *map(str, sources),
        str(processes.ROOT / "tests/helpers/kernels_driver.cpp"),
        "-o",
        str(tmp_path / "driver"),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sizes passed" in done.stdout
