"""A worker of distributed.py: joins the others of its group, then trains and averages on command.

python distributed_worker.py SOCKET GROUP CORES NETWORK NOISE        under msrun

CORES: cores of each worker, such as 0:1 or 0,1. NOISE: 1 or 0.
"""

import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import runtime  # noqa: E402

# Threads are counted and bound when MindSpore is imported. msrun's scheduler, which has no number, runs this file too.
cores = sys.argv[3].split(":")[int(os.environ.get("MS_NODE_ID", 0))].split(",")
os.sched_setaffinity(0, map(int, cores))
os.environ["OMP_NUM_THREADS"] = str(len(cores))
runtime.prepare_environment()

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn  # noqa: E402

from benchmarks.scaling_model import build  # noqa: E402
from src.binary import schedules  # noqa: E402
from src.models import NETWORKS  # noqa: E402
from src.optimizers import parameter_groups  # noqa: E402
from src.training.step import TrainStep  # noqa: E402


def timed(call: Callable[[], ms.Tensor], times: int) -> list[float]:
    """Seconds of each of `times` calls. A call before them, in which the workers wait for each other, is not timed."""
    seconds = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        call().asnumpy()
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def main(socket: str, group: str, network_name: str, noise: bool) -> None:
    worker = runtime.start("CPU", distribute=True)
    network, size = build(network_name, noise), NETWORKS[network_name].image_size
    optimizer = nn.Momentum(parameter_groups(network, weight_decay=1e-4, decay_all=True), 0.01, 0.9)
    tables = {"n": np.full(1, 9, np.float32), "alpha": np.full(1, 0.1, np.float32)}
    schedules.attach(network, tables, optimizer.global_step)
    step = TrainStep(network, nn.CrossEntropyLoss(), optimizer, workers=worker.size).set_train()
    generator = np.random.default_rng(worker.rank)
    gradients = {"tensors": tuple(ms.Tensor(np.ones(p.shape, np.float32)) for p in optimizer.parameters)}
    gradients["flat"] = (ms.Tensor(np.ones(sum(tensor.size for tensor in gradients["tensors"]), np.float32)),)
    averages = {"tensors": step.average}
    if worker.size > 1:
        averages["flat"] = nn.DistributedGradReducer(
            [ms.Parameter(gradients["flat"][0])], mean=True, degree=worker.size
        )
    with Client(socket) as parent:
        parent.send(group)
        while (order := parent.recv()) is not None:
            what, which, times = order
            if what == "train":
                shape = (which, 3, size, size)
                images = ms.Tensor(generator.normal(size=shape).astype(np.float32))
                labels = ms.Tensor(generator.integers(0, 10, which).astype(np.int32))
                parent.send(timed(lambda: step(images, labels)[0], times))  # noqa: B023
            else:
                parent.send(timed(lambda: averages[which](gradients[which])[-1], times))  # noqa: B023


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[4], sys.argv[5] == "1")
