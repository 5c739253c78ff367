"""Accuracy and loss over all images of a test set."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from .collectives import Collectives


@dataclass(frozen=True)
class Evaluation:
    """Losses and accuracy over `images` images; accuracies are in [0, 1].

    Attributes:
        loss: mean cross-entropy.
        smoothed_loss: mean loss with smoothed labels; equal to `loss` if the smoothing is 0.
        top1, top5: share of images with the label first, or among the first five.
        per_class: top-1 of each class; NaN for a class without images.
        counts: number of images of each class.
    """

    images: int
    loss: float
    smoothed_loss: float
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
    """Run the network in evaluation mode over every batch. A smaller last batch is padded, so one graph is enough.

    Args:
        network: (N, C, H, W) to logits (N, num_classes).
        batches: (images, labels) Tensors; with several workers each has its part of the images, which may be empty.
        smoothing: of `smoothed_loss`, as in the released evaluation: 1 - smoothing on the label,
            smoothing / (K - 1) on each other class.
        collectives: operations of the workers that share the images; all get the `Evaluation` of all images. None: one
            process.
    """
    was_training = network.training
    network.set_train(False)
    try:
        sums = _sums_over(lambda images: network(images).asnumpy(), batches, num_classes, smoothing)
    finally:
        network.set_train(was_training)
    return _evaluation((collectives or Collectives()).gather(sums).sum(0), num_classes)


def evaluate_function(
    logits: Callable[[np.ndarray], np.ndarray], batches: Iterable, num_classes: int, smoothing: float = 0.0
) -> Evaluation:
    """As `evaluate`, for a function of arrays, such as `logits` of an exported model."""
    sums = _sums_over(lambda images: logits(images.asnumpy()), batches, num_classes, smoothing)
    return _evaluation(sums, num_classes)


def _sums_over(
    logits: Callable[[ms.Tensor], np.ndarray], batches: Iterable, num_classes: int, smoothing: float
) -> np.ndarray:
    """`_sums` over all batches, each with as many images as the first."""
    sums, batch_size = np.zeros(2 * num_classes + 3), None
    for images, labels in batches:
        count = images.shape[0]
        batch_size = batch_size or count
        if count < batch_size:
            padded = np.zeros((batch_size, *images.shape[1:]), np.float32)
            padded[:count] = images.asnumpy()
            images = ms.Tensor(padded)
        found = logits(images)[:count].astype(np.float64)
        sums += _sums(found, labels.asnumpy(), num_classes, smoothing)
    return sums


def summarize(logits: np.ndarray, labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> Evaluation:
    """The `Evaluation` of float64 logits (N, K) and labels (N,)."""
    return _evaluation(_sums(logits, labels, num_classes, smoothing), num_classes)


def _sums(logits: np.ndarray, labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Images and correct answers of each class, sums of both losses, number of labels among the first five: float64
    (2 K + 3,)."""
    with np.errstate(invalid="ignore"):  # infinite logits: the loss is not finite either
        shifted = logits - logits.max(1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    other = smoothing / (num_classes - 1) if num_classes > 1 else 0.0
    loss = -log_probability[rows, labels]
    smoothed = (1 - smoothing - other) * loss - other * log_probability.sum(1) if smoothing else loss
    # A label's rank is the number of classes ahead of it; of equal logits the lower index is ahead.
    own = logits[rows, labels][:, None]
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    rank = np.where(np.isfinite(logits).all(1), ahead.sum(1), logits.shape[1])
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=rank == 0, minlength=num_classes)
    return np.concatenate([counts, right, [loss.sum(), smoothed.sum(), (rank < 5).sum()]])


def _evaluation(sums: np.ndarray, num_classes: int) -> Evaluation:
    counts, right = sums[:num_classes].astype(int), sums[num_classes : 2 * num_classes]
    loss, smoothed, top5 = sums[2 * num_classes :]
    images = int(counts.sum())
    per_class = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return Evaluation(
        images=images,
        loss=float(loss / images),
        smoothed_loss=float(smoothed / images),
        top1=float(right.sum() / images),
        top5=float(top5 / images),
        per_class=per_class,
        counts=counts,
    )
