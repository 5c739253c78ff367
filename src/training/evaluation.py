"""Accuracy and loss over all images of a test set."""

from collections.abc import Iterable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from .collectives import Collectives


@dataclass(frozen=True)
class Evaluation:
    """Of `images` images: mean loss, and shares in [0, 1] of right answers, in all and for each class.

    `per_class` is NaN where a class has no image; `counts` are the images of each class.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: np.ndarray
    counts: np.ndarray


def evaluate(
    network: nn.Cell,
    batches: Iterable,
    num_classes: int,
    smoothing: float = 0.0,
    collectives: Collectives | None = None,
) -> Evaluation:
    """Runs the network in evaluation mode over every batch; a smaller last one is padded, so that one graph serves all.

    Args:
        network: (N, C, H, W) to logits (N, num_classes).
        batches: (images, labels) Tensors; of several workers each has its own part of the images, or none.
        smoothing: of the loss, as in the released evaluation: 1 - smoothing on the label, smoothing / (K - 1) on each
            other class. 0 is cross-entropy.
        collectives: of the workers that share the images; all get the `Evaluation` of all. None: this process alone.
    """
    was_training = network.training
    network.set_train(False)
    # By class: images, right answers; then the sum of the losses and the answers among the first five.
    sums, batch_size = np.zeros(2 * num_classes + 2), None
    try:
        for images, labels in batches:
            count = images.shape[0]
            batch_size = batch_size or count
            if count < batch_size:
                padded = np.zeros((batch_size, *images.shape[1:]), np.float32)
                padded[:count] = images.asnumpy()
                images = ms.Tensor(padded)
            logits = network(images).asnumpy()[:count].astype(np.float64)
            sums += _sums(logits, labels.asnumpy(), num_classes, smoothing)
    finally:
        network.set_train(was_training)
    return _evaluation((collectives or Collectives()).gather(sums).sum(0), num_classes)


def summarize(logits: np.ndarray, labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> Evaluation:
    """The `Evaluation` of float64 logits (N, K) and labels (N,)."""
    return _evaluation(_sums(logits, labels, num_classes, smoothing), num_classes)


def _sums(logits: np.ndarray, labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Images and right answers of each class, sum of the losses, answers among the first five: float64 (2 K + 2,)."""
    with np.errstate(invalid="ignore"):  # infinite logits: the loss is no number either
        shifted = logits - logits.max(1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    other = smoothing / (num_classes - 1) if num_classes > 1 else 0.0
    loss = -((1 - smoothing - other) * log_probability[rows, labels] + other * log_probability.sum(1))
    # A label's rank is the number of classes that beat it, ties broken by the lower index.
    own = logits[rows, labels][:, None]
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    rank = np.where(np.isfinite(logits).all(1), ahead.sum(1), logits.shape[1])
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=rank == 0, minlength=num_classes)
    return np.concatenate([counts, right, [loss.sum(), (rank < 5).sum()]])


def _evaluation(sums: np.ndarray, num_classes: int) -> Evaluation:
    counts, right = sums[:num_classes].astype(int), sums[num_classes : 2 * num_classes]
    loss, top5 = sums[2 * num_classes :]
    images = int(counts.sum())
    per_class = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return Evaluation(
        images, float(loss / images), float(right.sum() / images), float(top5 / images), per_class, counts
    )
