"""One training step as a Cell: loss, gradients, their average over the workers, the update."""

import mindspore as ms
from mindspore import amp, nn, ops


class TrainStep(nn.Cell):
    """loss, gradient and update for one batch; compiled once.

    Args:
        network, loss, optimizer: the loss takes (logits, labels).
        scaler: a loss scaler of mindspore.amp, or None. With one, a step whose gradients overflow is skipped: neither
            weights nor the optimizer's step counter change, and the scaler adjusts itself.
        workers: number of workers whose gradients are averaged.

    Inputs:
        images (N, C, H, W), labels int32 (N,).

    Outputs:
        loss float32 (), the gradients' global L2 norm float32 (), whether all gradients are finite bool ().
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

    def construct(self, images, labels):
        loss, gradients = self.value_and_grad(images, labels)
        if self.average is not None:
            gradients = self.average(gradients)
        if self.scaler is None:
            finite = amp.all_finite(gradients)
            self.optimizer(gradients)
        else:
            loss = self.scaler.unscale(loss)
            gradients = self.scaler.unscale(gradients)
            finite = amp.all_finite(gradients)
            if finite:
                self.optimizer(gradients)
            self.scaler.adjust(finite)
        return loss, global_norm(gradients), finite


def global_norm(gradients):
    """The L2 norm of all gradients together, float32 ()."""
    total = 0.0
    for gradient in gradients:
        total = total + ops.square(ops.cast(gradient, ms.float32)).sum()
    return ops.sqrt(total)
