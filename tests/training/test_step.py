"""One training step: what it reports, what it changes, loss scaling and mixed precision."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, nn

from src.binary import Binarization
from src.models import create_model
from tests.helpers.steps import LABELS, Small, images, make, weights, with_infinity

plain_is_slow = pytest.mark.parametrize(
    "backend", ["native", pytest.param("plain", marks=pytest.mark.slow)], indirect=True
)


def levels(names: tuple[str, ...], quick: list[tuple[str, str, str]]):
    """The test runs in both modes, with both backends and at these levels; all but the `quick` ones are slow."""
    cases = itertools.product(("graph", "pynative"), ("native", "plain"), names)
    return pytest.mark.parametrize(
        ("mode", "backend", "level"),
        [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases],
        indirect=["mode", "backend"],
    )


class Affine(nn.Cell):
    """Logits w x + b of one number an image: gradients that can be written down."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(1, 2, weight_init=Tensor([[1.0], [-1.0]], ms.float32), bias_init="zeros")

    def construct(self, x):
        return self.dense(x)


def test_loss_norm_and_update_against_numpy(mode):
    """Softmax regression, momentum: v = g in the first step, w -= lr v."""
    x, labels = np.array([[0.5], [-2.0], [1.0]], np.float32), np.array([0, 1, 1], np.int32)
    step = make(Affine())
    loss, norm, finite = step(Tensor(x), Tensor(labels))

    logits = np.concatenate([x, -x], axis=1).astype(np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss.asnumpy(), -np.log(probability[range(3), labels]).mean(), rtol=1e-6)
    error = (probability - np.eye(2)[labels]) / 3
    by_weight, by_bias = error.T @ x, error.sum(0)
    np.testing.assert_allclose(norm.asnumpy(), np.sqrt((by_weight**2).sum() + (by_bias**2).sum()), rtol=1e-5)
    assert finite.asnumpy()
    after = weights(step)
    np.testing.assert_allclose(after["dense.weight"], [[1], [-1]] - 0.1 * by_weight, rtol=1e-5)
    np.testing.assert_allclose(after["dense.bias"], -0.1 * by_bias, rtol=1e-5)


@plain_is_slow
def test_one_compilation_for_all_steps(graph_mode, backend):
    """`compile_cache` of a Cell holds the phases for which it was compiled; a batch of another size adds one."""
    step = make(Small(noise=False))
    for seed in range(4):
        step(images(seed), Tensor(LABELS))
    assert len(step.compile_cache) == 1
    step(images()[:2], Tensor(LABELS[:2]))
    assert len(step.compile_cache) == 2


def test_a_gradient_that_is_not_finite_is_reported(backend, any_mode):
    step = make(Small(noise=False))
    loss, _, finite = step(with_infinity(), Tensor(LABELS))
    assert not finite.asnumpy()
    assert not np.isfinite(loss.asnumpy())


@plain_is_slow
def test_scaled_steps_update_as_unscaled_ones(backend, any_mode):
    steps = []
    for scaler in (None, amp.StaticLossScaler(1024), amp.DynamicLossScaler(1024, 2, 1000)):
        ms.set_seed(1)
        steps.append(make(Small(noise=False), scaler))
    for seed in range(2):
        expected, *results = [step(images(seed), Tensor(LABELS)) for step in steps]
        for result in results:
            for got, wanted in zip(result, expected, strict=True):
                np.testing.assert_allclose(got.asnumpy(), wanted.asnumpy(), rtol=1e-5)
    for step in steps[1:]:
        assert step.optimizer.global_step.asnumpy() == 2
        for name, value in weights(steps[0]).items():
            np.testing.assert_allclose(weights(step)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@levels(
    ("O0", "O2", "O3"),
    quick=[
        ("graph", "native", "O0"),
        ("pynative", "plain", "O0"),
        ("pynative", "native", "O2"),
        ("pynative", "plain", "O3"),
    ],
)
def test_an_overflow_is_a_skipped_step(mode, backend, level):
    """Neither weights nor momentum nor the step counter, which the schedules follow, change; the scale is halved."""
    step = make(Small(noise=False), amp.DynamicLossScaler(1024, 2, 1000), level)
    step(images(), Tensor(LABELS))
    before, moments = weights(step), [moment.asnumpy().copy() for moment in step.optimizer.moments]
    _, _, finite = step(with_infinity(), Tensor(LABELS))
    assert not finite.asnumpy()
    assert step.scaler.scale_value.asnumpy() == 512
    assert step.optimizer.global_step.asnumpy() == 1
    for name, value in weights(step).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for moment, value in zip(step.optimizer.moments, moments, strict=True):
        np.testing.assert_array_equal(moment.asnumpy(), value)


def test_a_fixed_scale_skips_an_overflow_and_stays(backend, any_mode):
    step = make(Small(noise=False), amp.StaticLossScaler(64))
    before = weights(step)
    _, _, finite = step(with_infinity(), Tensor(LABELS))
    assert not finite.asnumpy()
    assert step.optimizer.global_step.asnumpy() == 0
    for name, value in weights(step).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@plain_is_slow
def test_the_scale_doubles_after_its_window_of_good_steps(backend, any_mode):
    step = make(Small(noise=False), amp.DynamicLossScaler(8, 2, 3))
    scales = []
    for seed in range(3):
        step(images(seed), Tensor(LABELS))
        scales.append(float(step.scaler.scale_value.asnumpy()))
    assert scales == [8, 8, 16]


@levels(("O2", "O3"), quick=[("pynative", "native", "O2"), ("pynative", "plain", "O3")])
def test_mixed_precision_takes_nearly_the_same_step(mode, backend, level):
    ms.set_seed(1)
    full = make(Small())
    ms.set_seed(1)
    mixed = make(Small(), amp.DynamicLossScaler(128, 2, 1000), level)
    expected_loss, expected_norm, _ = full(images(), Tensor(LABELS))
    loss, norm, finite = mixed(images(), Tensor(LABELS))
    assert finite.asnumpy()
    assert loss.dtype == ms.float32
    np.testing.assert_allclose(loss.asnumpy(), expected_loss.asnumpy(), rtol=0.02)
    np.testing.assert_allclose(norm.asnumpy(), expected_norm.asnumpy(), rtol=0.1)
    for name, value in weights(full).items():
        assert np.isfinite(weights(mixed)[name]).all(), name
        np.testing.assert_allclose(weights(mixed)[name], value, atol=0.02, err_msg=name)


def test_mixed_precision_leaves_names_and_float32_parameters():
    network = Small()
    names = [parameter.name for parameter in network.get_parameters()]
    amp.auto_mixed_precision(network, "O2")
    assert [parameter.name for parameter in network.get_parameters()] == names
    assert {parameter.dtype for parameter in network.get_parameters()} == {ms.float32}


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_the_fourier_gradient_stays_float32_under_mixed_precision(backend, any_mode, level):
    """In float16 its closed form would have poles at 0 and at every multiple of half the period."""
    network = Binarization(noise_adaptation=False).conv(1, 1, 1)
    network.weight.set_data(Tensor([[[[0.0]]]], ms.float32))
    amp.auto_mixed_precision(network, level)
    x = Tensor(np.array([0, 1e-7, 10 * np.pi, 40], np.float32).reshape(4, 1, 1, 1))
    (gradient,) = ms.grad(network, None, [network.weight])(x)
    np.testing.assert_allclose(gradient.asnumpy().ravel(), 2 * 4 * 0.1 * 10 / np.pi, rtol=2e-3)  # signs -1, 1, 1, 1


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_mixed_precision_trains_the_resnet20(mode, level):
    network = create_model("resnet20")
    step = make(network, amp.DynamicLossScaler(1024, 2, 1000), level, lr=0.02)
    x = Tensor(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32))
    losses = []
    for _ in range(3):
        loss, norm, finite = step(x, Tensor(np.arange(4, dtype=np.int32)))
        assert finite.asnumpy()
        assert np.isfinite(norm.asnumpy())
        losses.append(float(loss.asnumpy()))
    assert losses[-1] < losses[0]
