"""Train the full-precision ResNet-20 here and in PyTorch, from the same weights, on the same batches.

    python benchmarks/convergence.py --torch_python PATH --data_path DIR

Prints the losses of three steps with a learning rate of 0.001, which must agree to 1e-5, and after the whole training
the test accuracy of each seed; the means must be within two standard errors of their difference, which does not prove
that they are equal: it finds large faults. The exit code is 1 if either does not hold. The recipe is
configs/cifar10/resnet20_fp32.yaml, shortened. The batches of an epoch are stored in a temporary folder, 250 MB.

The recipe's learning rate of 0.1 is no test of equality: a PReLU's derivative jumps at 0, a few of its 22 million
inputs are within rounding of 0, and so the losses of two float32 programs are apart by 1e-4 after three steps; so are
those of PyTorch in float32 and in float64.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.orders import Worker, WorkerEnded  # noqa: E402
from benchmarks.training_step import find_pytorch  # noqa: E402
from src import cli, runtime  # noqa: E402
from src.config import load_config  # noqa: E402
from src.errors import UserError  # noqa: E402

RECIPE = ROOT / "configs/cifar10/resnet20_fp32.yaml"
COMPARED = {"optimizer.lr": 0.001, "scheduler.name": "constant", "train.epochs": 1, "train.steps_per_epoch": 3}
TOLERANCE = 1e-5
EVALUATION_BATCH = 100


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/convergence.py", description=__doc__)
    parser.add_argument(
        "--torch_python", type=cli.path, metavar="PATH", required=True, help="a Python that has PyTorch"
    )
    parser.add_argument("--seeds", type=cli.integer, default=3, help="default: 3")
    parser.add_argument("--threads", type=cli.integer, default=0, help="of PyTorch; default: its own choice")
    cli.add_config_flags(parser, {"--data_path": "data.path", "--epochs": "train.epochs"})
    arguments, overrides = cli.parse_config_flags(parser, argv)
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}, but must be at least 1")
    if "seed" in overrides:
        raise UserError("--seed cannot be given: --seeds N takes the seeds 0 to N-1")
    overrides = {"train.epochs": 8, "train.steps_per_epoch": 156, **overrides}
    torch_python = find_pytorch(arguments.torch_python, "CPU")
    runtime.prepare_environment()
    print(runtime.code_and_machine(), flush=True)
    ours, theirs, apart = [], [], []
    for seed in range(arguments.seeds):
        command = [torch_python, str(ROOT / "benchmarks/torch_training.py"), str(arguments.threads)]
        whole = load_config(RECIPE, {**overrides, "seed": seed})
        first = load_config(RECIPE, {**overrides, **COMPARED, "seed": seed})
        try:
            with (
                tempfile.TemporaryDirectory(prefix="fda_bnn_convergence_") as folder,
                Worker(command, Path(folder) / "torch.log") as worker,
            ):
                compared, _ = train_both(first, Path(folder), worker)
                losses, accuracies = train_both(whole, Path(folder), worker)
        except WorkerEnded as error:
            raise UserError(str(error)) from error
        for step, (own, other) in enumerate(compared, start=1):
            apart.append(abs(own - other) / abs(other))
            print(f"seed {seed}, step {step}: loss {own:.7f} here, {other:.7f} in PyTorch")
        last = np.mean(losses[-100:], 0)
        print(f"seed {seed}: loss of the last 100 steps {last[0]:.4f} here, {last[1]:.4f} in PyTorch")
        print(f"seed {seed}: test accuracy {accuracies[0]:.2%} here, {accuracies[1]:.2%} in PyTorch", flush=True)
        ours.append(100 * accuracies[0])
        theirs.append(100 * accuracies[1])
    sentences, good = judge(apart, ours, theirs)
    print(*sentences, sep="\n")
    return 0 if good else 1


def judge(apart: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> tuple[list[str], bool]:
    """What the numbers say, in sentences, and whether all is as it should be.

    Args:
        apart: relative differences of the compared losses; NaN if one is not finite.
        ours, theirs: test accuracy of each seed in percent.
    """
    agree = all(value <= TOLERANCE for value in apart)  # false for NaN
    told = "as asked" if agree else "NOT as asked"
    sentences = [f"losses of three steps with a learning rate of 0.001: apart by at most {np.max(apart):.1e}, {told}"]
    if len(ours) < 2:
        return sentences, agree
    means = statistics.mean(ours), statistics.mean(theirs)
    error = ((statistics.variance(ours) + statistics.variance(theirs)) / len(ours)) ** 0.5
    close = abs(means[0] - means[1]) <= 2 * error
    sentences.append(
        f"test accuracy: {means[0]:.2f} ± {statistics.stdev(ours):.2f} here, {means[1]:.2f} ± "
        f"{statistics.stdev(theirs):.2f} in PyTorch; {means[0] - means[1]:+.2f} apart, standard error {error:.2f}, "
        f"{'within' if close else 'NOT within'} two of them"
    )
    return sentences, agree and close


def train_both(config, folder: Path, worker: Worker) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Losses of each step, and the accuracies at the end, here and in PyTorch."""
    from mindspore import Tensor

    from src import experiment
    from src.training.evaluation import evaluate
    from src.training.step import TrainStep

    worker_here = runtime.start(config.runtime.device_target, config.runtime.mode, config.seed)
    built = experiment.build(config, worker_here)
    parameters = built.network.trainable_params()
    np.concatenate([parameter.asnumpy().ravel() for parameter in parameters]).tofile(folder / "weights")
    shapes = {parameter.name: list(parameter.shape) for parameter in parameters}
    optimizer = config.optimizer
    worker.ask(
        "begin",
        path=str(folder / "weights"),
        shapes=shapes,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
    )
    step = TrainStep(built.network, built.loss, built.optimizer, built.scaler).set_train()
    steps, ours, theirs = built.steps_per_epoch, [], []
    for epoch in range(1, config.train.epochs + 1):
        for index, (images, labels) in enumerate(built.data.train(epoch, stop=steps)):
            with (folder / "images").open("ab" if index else "wb") as file:
                images.asnumpy().tofile(file)
            with (folder / "labels").open("ab" if index else "wb") as file:
                labels.asnumpy().astype(np.int64).tofile(file)
            ours.append(float(step(Tensor(images), labels)[0].asnumpy()))
        rates = [float(rate) for rate in built.tables["lr"][(epoch - 1) * steps : epoch * steps]]
        files = {name: str(folder / name) for name in ("images", "labels")}
        theirs += worker.ask("train", **files, batch_size=config.data.batch_size, rates=rates)
    batches = list(built.data.test())
    np.concatenate([images.asnumpy() for images, _ in batches]).tofile(folder / "images")
    np.concatenate([labels.asnumpy() for _, labels in batches]).astype(np.int64).tofile(folder / "labels")
    count = built.data.test_images()
    right = worker.ask("evaluate", **files, count=count, batch_size=EVALUATION_BATCH)
    found = evaluate(built.network, batches, built.data.num_classes)
    return list(zip(ours, theirs, strict=True)), (found.top1, right / count)


if __name__ == "__main__":
    sys.exit(cli.run(main))
