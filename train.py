"""Train a network. Every key of default_config.yaml is a flag: --optimizer.lr 0.05.

    python train.py --config configs/digits.yaml                 embedded data, minutes on a CPU
    python train.py --data_path DIR                              the paper's CIFAR-10 ResNet-20, 400 epochs
    python train.py --resume runs/latest                         continue the newest run from its last checkpoint

Exit code: 0 trained to the end; 2 bad input or a diverged run; 128 + n stopped by signal n and saved (143: SIGTERM,
130: Ctrl-C, 129: a closed terminal).
"""

import sys
from collections.abc import Sequence

from src import cli

with cli.explain_missing_packages():
    from src import runtime
    from src.training.arguments import parse


def main(argv: Sequence[str]) -> int:
    config, arguments = parse(argv, __doc__)
    runtime.prepare_environment()
    worker = runtime.start(config.runtime.device_target, config.runtime.mode, config.seed, config.runtime.distribute)

    from src.training.run import train

    return train(config, arguments, worker)


if __name__ == "__main__":
    runtime.deliver_interrupts()
    sys.exit(cli.run(main))
