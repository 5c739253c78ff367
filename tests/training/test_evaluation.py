"""Accuracy and loss against numbers worked out by hand, over all images."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.training.evaluation import evaluate, summarize

CLASSES = 6
LOGITS = np.array(
    [
        [2.0, 1.0, 0.0, -1.0, -2.0, -3.0],  # label 0: first
        [2.0, 1.0, 0.0, -1.0, -2.0, -3.0],  # label 4: fifth
        [2.0, 1.0, 0.0, -1.0, -2.0, -3.0],  # label 5: sixth
        [0.0, 5.0, 0.0, 0.0, 0.0, 0.0],  # label 1: first
    ]
)
LABELS = np.array([0, 4, 5, 1])


class Shifted(nn.Cell):
    """Logits are the image itself, plus 1 in training, so that the mode shows."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def construct(self, x):
        self.sizes.append(x.shape[0])
        logits = x.reshape((x.shape[0], -1))
        return -logits if self.training else logits


def batches(logits: np.ndarray, labels: np.ndarray, size: int):
    for start in range(0, len(labels), size):
        images = logits[start : start + size].astype(np.float32).reshape(-1, logits.shape[1], 1, 1)
        yield Tensor(images), Tensor(labels[start : start + size].astype(np.int32))


def test_top_1_top_5_and_classes():
    result = summarize(LOGITS, LABELS, CLASSES)
    assert result.images == 4
    assert result.top1 == 2 / 4
    assert result.top5 == 3 / 4
    np.testing.assert_array_equal(result.counts, [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(result.per_class, [1, 1, np.nan, np.nan, 0, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_smoothed_as_in_the_release(smoothing):
    """1 - s on the label, s / (K - 1) on each other class: not s / K on every class. The plain loss is next to it."""
    total = plain = 0.0
    for logits, label in zip(LOGITS, LABELS, strict=True):
        log_probability = logits - np.log(np.exp(logits).sum())
        for index in range(CLASSES):
            share = 1 - smoothing if index == label else smoothing / (CLASSES - 1)
            total -= share * log_probability[index]
        plain -= log_probability[label]
    result = summarize(LOGITS, LABELS, CLASSES, smoothing)
    assert result.smoothed_loss == pytest.approx(total / 4, rel=1e-12)
    assert result.loss == pytest.approx(plain / 4, rel=1e-12)


def test_loss_of_one_image_with_ten_classes():
    """Two logits of log 9 and eight of 0: probabilities 9/26 and 1/26."""
    logits = np.log(np.array([[9.0, 9, 1, 1, 1, 1, 1, 1, 1, 1]]))
    expected = -(0.9 * np.log(9 / 26) + 0.1 / 9 * np.log(9 / 26) + 8 * 0.1 / 9 * np.log(1 / 26))
    assert summarize(logits, np.array([0]), 10, 0.1).smoothed_loss == pytest.approx(expected, rel=1e-12)


def test_large_logits_do_not_overflow():
    assert summarize(np.array([[1e4, 0.0]]), np.array([1]), 2).loss == pytest.approx(1e4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_count_as_wrong(bad):
    logits = LOGITS.copy()
    logits[0, 0] = bad
    logits[3, 5] = np.nan
    result = summarize(logits, LABELS, CLASSES)
    assert (result.top1, result.top5) == (0, 1 / 4)


def test_only_one_of_equal_logits_is_first():
    logits = np.zeros((CLASSES, CLASSES))
    result = summarize(logits, np.arange(CLASSES), CLASSES)
    assert result.top1 == 1 / CLASSES
    assert result.top5 == 5 / CLASSES


@pytest.mark.parametrize("size", [1, 4, 5, 8, 23, 64])
def test_every_image_counts_whatever_the_batch(mode, size):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(23, CLASSES)), generator.integers(0, CLASSES, 23)
    result = evaluate(Shifted(), batches(logits, labels, size), CLASSES, 0.1)
    expected = summarize(logits.astype(np.float32).astype(np.float64), labels, CLASSES, 0.1)
    assert (result.images, result.top1, result.top5) == (23, expected.top1, expected.top5)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.smoothed_loss == pytest.approx(expected.smoothed_loss, rel=1e-6)
    np.testing.assert_array_equal(result.per_class, expected.per_class)


def test_a_smaller_last_batch_compiles_nothing_new(graph_mode):
    network = Shifted()
    generator = np.random.default_rng(0)
    evaluate(network, batches(generator.normal(size=(11, CLASSES)), generator.integers(0, CLASSES, 11), 4), CLASSES)
    assert len(network.compile_cache) == 1


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_during_and_the_former_mode_after(training):
    network = Shifted().set_train(training)
    result = evaluate(network, batches(np.eye(CLASSES), np.arange(CLASSES), 2), CLASSES)
    assert result.top1 == 1
    assert network.training is training
