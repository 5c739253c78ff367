"""Data sinking: batches reach the network through a queue on the device, and the host reads every `sink_size` steps.

Between two reads the graph adds up what the host needs. Schedules are already in the graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import nn, ops
from mindspore.dataset import Dataset as Pipeline

from .step import StepResult, TrainStep

NON_FINITE = (None, "loss", "gradient")  # indexed by the last of the totals


class SunkSteps(nn.Cell):
    """A training step that adds its results to the totals of earlier steps; compiled once.

    When a loss or gradient is not finite and loss scaling is not the cause, weights and totals no longer change: the
    weights stay the last good ones. Later steps are still computed, because other workers may wait for their gradients,
    so moving statistics still change.

    Args:
        step: the step to take.

    Inputs:
        images (N, C, H, W), labels int32 (N,); totals float32 (5,), zeros at first: sums of loss and of gradient norm
        over the applied steps, numbers of applied and of skipped steps, and an index into `NON_FINITE`.

    Outputs:
        The new totals.
    """

    def __init__(self, step: TrainStep):
        super().__init__(auto_prefix=False)
        self.step = step

    def construct(self, images, labels, totals):
        loss, gradients, norm = self.step.backward(images, labels)
        finite = ops.isfinite(norm)
        running = totals[4] == 0
        number = ops.isfinite(loss)
        applied = ops.logical_and(running, ops.logical_and(finite, number))
        if applied:
            self.step.optimizer(gradients)
        skipped = ops.logical_and(running, ops.logical_not(finite))
        if self.step.scaler is None:
            skipped = ops.logical_and(skipped, False)
        else:
            self.step.scaler.adjust(finite)
            skipped = ops.logical_and(skipped, self.step.scaler.scale_value > 1)
        breaks = ops.logical_and(running, ops.logical_not(ops.logical_or(applied, skipped)))
        zero = ops.zeros_like(loss)
        news = (
            ops.select(applied, loss, zero),
            ops.select(applied, norm, zero),
            ops.cast(applied, ms.float32),
            ops.cast(skipped, ms.float32),
            ops.cast(breaks, ms.float32) * (1.0 + ops.cast(number, ms.float32)),
        )
        return totals + ops.stack(news)


def results(sunk: SunkSteps, pipeline: Pipeline, steps: int, sink_size: int) -> Iterator[StepResult]:
    """Take `steps` steps, one with each batch of the pipeline; report every `sink_size` of them, then the rest.

    The graph is compiled once: it does not depend on the number of steps between two reports.
    """
    totals = ms.ops.zeros(5, ms.float32)

    def take_step(images, labels):
        nonlocal totals
        totals = sunk(images, labels, totals)

    with device_queue(take_step, pipeline) as next_step:
        for start in range(0, steps, sink_size):
            for _ in range(min(sink_size, steps - start)):
                next_step()
            loss_sum, grad_norm_sum, applied, skipped, broken = totals.asnumpy().tolist()
            totals = ms.ops.zeros(5, ms.float32)
            yield StepResult(loss_sum, grad_norm_sum, int(applied), int(skipped), NON_FINITE[int(broken)])


@contextmanager
def device_queue(take_step: Callable, pipeline: Pipeline) -> Iterator[Callable[[], None]]:
    """Give a function that passes the next batch of the pipeline to `take_step`, from the device's queue.

    Not run on a device yet. Check there that (1) two calls overlap; (2) opening the next epoch's queue compiles
    nothing; (3) `release` frees the queue, which otherwise fills with another round of the pipeline. No `jit_config` is
    passed: each queue's name is part of a graph that reads it, so the step would compile again.
    """
    next_step = ms.data_sink(take_step, pipeline, sink_size=1)
    try:
        yield next_step
    finally:
        pipeline.__transfer_dataset__.stop_send()
        pipeline.__transfer_dataset__.release()
