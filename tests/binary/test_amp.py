"""Mixed precision: float16 reaches the method's layers, and stops before latent weights, scales and derivatives."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, nn, ops

from src.binary import Binarization
from src.binary.amp import NoAutoCast
from src.binary.schedules import ScheduledValue
from tests.helpers import oracles

levels = pytest.mark.parametrize("level", ["O2", "O3"])


class Around(nn.Cell):
    """A network around one layer, which as a whole is made float16."""

    def __init__(self, layer: nn.Cell, level: str):
        super().__init__()
        self.layer = layer
        amp.auto_mixed_precision(self, level)

    def construct(self, x):
        return self.layer(x + 0)  # an operation: in PyNative mode it is these that are made float16


class Scheduled(NoAutoCast):
    """x times a scheduled value, in float32."""

    def __init__(self, value: float):
        super().__init__()
        self.value = ScheduledValue(None, value)

    def construct(self, x):
        return ops.cast(x, ms.float32) * self.value()


def dense(weight: np.ndarray, **options) -> nn.Cell:
    layer = Binarization(**options).dense(weight.shape[1], weight.shape[0])
    layer.weight.set_data(Tensor(weight))
    return layer


@levels
@pytest.mark.parametrize("quantizer", ["sign", "dorefa"])
def test_latent_weights_that_float16_rounds_to_0_keep_their_signs(backend, any_mode, level, quantizer):
    weight = np.array([[1e-9], [-1e-9], [0.3], [-0.2]], np.float32)
    network = Around(dense(weight, weight_quantizer=quantizer, noise_adaptation=False), level)
    y = network(Tensor([[1.0], [-1.0]], ms.float32))
    scale = np.float16(np.abs(weight).mean() if quantizer == "dorefa" else 1)
    assert y.dtype == ms.float16
    np.testing.assert_array_equal(y.asnumpy(), np.outer([1, -1], [1, -1, 1, -1]).astype(np.float16) * scale)


@levels
def test_the_fourier_gradients_are_those_of_the_oracle(backend, mode, level):
    """Those of weights within float32's rounding, although multiplied in float16; of activations within float16's."""
    spread = np.concatenate([[1e-7, 10 * np.pi], np.random.default_rng(0).uniform(-100, 100, 500)])
    weight = spread[None].astype(np.float32)
    x = spread[None, ::-1].astype(np.float16).astype(np.float32)
    layer = dense(weight, noise_adaptation=False)
    by_x, (by_weight,) = ms.grad(Around(layer, level), 0, [layer.weight])(Tensor(x))
    peak, scale = oracles.peak(9), np.float16(np.abs(weight).mean())
    expected = oracles.fourier(weight, 9) * oracles.sign(x)
    assert by_weight.dtype == ms.float32
    np.testing.assert_allclose(by_weight.asnumpy(), expected, atol=1e-6 * peak)
    expected = oracles.fourier(x, 9) * oracles.sign(weight) * scale
    np.testing.assert_allclose(by_x.asnumpy(), expected, rtol=2**-10, atol=1e-6 * peak * scale)


@levels
def test_noise_annealed_to_0_leaves_exact_signs(backend, any_mode, level):
    weight, x = (np.random.default_rng(seed).normal(size=(3, 16)).astype(np.float32) for seed in (0, 1))
    outputs = {}
    for alpha in (0.1, 0.0):
        ms.set_seed(1)
        layer = dense(weight)
        for quantizer in (layer.activation_quantizer, layer.weight_quantizer):
            quantizer.noise.alpha.table = Tensor([alpha], ms.float32)
        network = Around(layer, level).set_train()
        outputs[alpha] = network(Tensor(x)).asnumpy()
    assert np.abs(outputs[0.1] - outputs[0.0]).max() > 0
    np.testing.assert_array_equal(outputs[0.0], network.set_train(False)(Tensor(x)).asnumpy())


@levels
def test_scheduled_values_keep_their_digits(mode, level):
    value = Around(Scheduled(1 / 3), level)(Tensor(1.0, ms.float32))
    np.testing.assert_array_equal(value.asnumpy(), np.float32(1 / 3))
