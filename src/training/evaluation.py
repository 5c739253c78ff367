"""Accuracy and loss over all images of a test set."""

from collections.abc import Iterable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn


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


def evaluate(network: nn.Cell, batches: Iterable, num_classes: int, smoothing: float = 0.0) -> Evaluation:
    """Runs the network in evaluation mode over every batch; a smaller last one is padded, so that one graph serves all.

    Args:
        network: (N, C, H, W) to logits (N, num_classes).
        batches: (images, labels) Tensors.
        smoothing: of the loss, as in the released evaluation: 1 - smoothing on the label, smoothing / (K - 1) on each
            other class. 0 is cross-entropy.
    """
    was_training = network.training
    network.set_train(False)
    all_logits, all_labels, batch_size = [], [], None
    for images, labels in batches:
        count = images.shape[0]
        batch_size = batch_size or count
        if count < batch_size:
            padded = np.zeros((batch_size, *images.shape[1:]), np.float32)
            padded[:count] = images.asnumpy()
            images = ms.Tensor(padded)
        all_logits.append(network(images).asnumpy()[:count].astype(np.float64))
        all_labels.append(labels.asnumpy())
    network.set_train(was_training)
    return summarize(np.concatenate(all_logits), np.concatenate(all_labels), num_classes, smoothing)


def summarize(logits: np.ndarray, labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> Evaluation:
    """The `Evaluation` of float64 logits (N, K) and labels (N,)."""
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
    per_class = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return Evaluation(
        len(labels), float(loss.mean()), float((rank == 0).mean()), float((rank < 5).mean()), per_class, counts
    )
