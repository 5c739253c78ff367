"""One training step as a Cell: loss, gradients averaged over the workers, update; and the results that the host
reads."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import mindspore as ms
from mindspore import amp, nn, ops


@dataclass(frozen=True)
class StepResult:
    """Results of a training step, or of all steps since the host last read them.

    Attributes:
        loss_sum, grad_norm_sum: sums of losses and of gradient norms over the applied steps.
        applied: steps that changed the weights.
        skipped: steps left out because their scaled gradients overflowed.
        broken: "loss" or "gradient" if that was not finite in the step after these; else None.
    """

    loss_sum: float
    grad_norm_sum: float
    applied: int
    skipped: int
    broken: str | None

    @property
    def steps(self) -> int:
        """Number of steps, without the broken one."""
        return self.applied + self.skipped

    @property
    def loss(self) -> float:
        """Mean over the applied steps; NaN if there are none."""
        return self.loss_sum / self.applied if self.applied else math.nan


class TrainStep(nn.Cell):
    """Loss, gradients and update for one batch; compiled once.

    Args:
        network, loss, optimizer: the loss takes (logits, labels).
        scaler: a loss scaler of mindspore.amp, or None. With one, a step with overflowing gradients is skipped: weights
            and the optimizer's step counter do not change, and the scaler adjusts itself.
        workers: number of workers; their gradients are averaged.

    Inputs:
        images (N, C, H, W), labels int32 (N,).

    Outputs:
        loss float32 (), the gradients' global L2 norm float32 (), whether that is finite bool ().
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Optimizer,
        scaler: amp.LossScaler | None = None,
        workers: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.scaler = scaler
        self.average = (
            nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=workers) if workers > 1 else None
        )
        self.value_and_grad = ops.value_and_grad(self.scaled_loss, None, optimizer.parameters)

    def scaled_loss(self, images, labels):
        logits = ops.cast(self.network(images), ms.float32)  # under mixed precision they are float16
        loss = self.loss(logits, labels)
        return loss if self.scaler is None else self.scaler.scale(loss)

    def backward(self, images, labels):
        """Return loss, gradients averaged over the workers and unscaled, and their global L2 norm."""
        loss, gradients = self.value_and_grad(images, labels)
        if self.average is not None:
            gradients = self.average(gradients)
        if self.scaler is not None:
            loss = self.scaler.unscale(loss)
            gradients = self.scaler.unscale(gradients)
        return loss, gradients, global_norm(gradients)

    def construct(self, images, labels):
        loss, gradients, norm = self.backward(images, labels)
        finite = ops.isfinite(norm)
        if self.scaler is None:
            self.optimizer(gradients)
        else:
            if finite:
                self.optimizer(gradients)
            self.scaler.adjust(finite)
        return loss, norm, finite


def global_norm(gradients):
    """The L2 norm of all gradients together, float32 (). It is finite if they all are, and below 1e19."""
    total = 0.0
    for gradient in gradients:
        total = total + ops.square(ops.cast(gradient, ms.float32)).sum()
    return ops.sqrt(total)


def results(step: TrainStep, batches: Iterable) -> Iterator[StepResult]:
    """Take a step with each of the batches (images, labels), and report it."""
    for images, labels in batches:
        loss, norm, finite = (value.asnumpy().item() for value in step(images, labels))
        overflowed = not finite and step.scaler is not None and float(step.scaler.scale_value) > 1
        if overflowed:
            yield StepResult(0.0, 0.0, 0, 1, None)
        elif finite and math.isfinite(loss):
            yield StepResult(loss, norm, 1, 0, None)
        else:
            yield StepResult(0.0, 0.0, 0, 0, "gradient" if math.isfinite(loss) else "loss")
