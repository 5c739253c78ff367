"""Turn a checkpoint into a safetensors file, which can be read without MindSpore, or the other way round.

    python -m src.convert runs/latest/best.ckpt resnet20.safetensors
    python -m src.convert resnet20.safetensors resnet20.ckpt

The weights, the config and the preprocessing are kept; the state of the run (optimizer, progress) is not. Parameters
have the names of the released layout.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import cli, runtime
from .errors import UserError
from .files import require_writable
from .pretrained import CHECKPOINT_SUFFIXES


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m src.convert", description=__doc__)
    parser.add_argument("source", metavar="FROM", type=cli.path, help=cli.A_CHECKPOINT)
    parser.add_argument("target", metavar="TO", type=cli.path, help="a .safetensors or .ckpt file")
    arguments = parser.parse_args(argv)
    source, target = cli.require_checkpoint(arguments.source), Path(arguments.target)
    if target.suffix not in CHECKPOINT_SUFFIXES:
        raise UserError(f"{target} must end in {' or '.join(CHECKPOINT_SUFFIXES)}")
    require_writable(target.parent)
    runtime.prepare_environment()

    from . import checkpoints

    found = checkpoints.read(source)
    checkpoints.save_weights(target, found)
    left_out = len(found.optimizer) + len(found.extra)
    note = f"; {left_out} arrays of the run's state were left out" if left_out else ""
    print(f"{target}: {len(found.parameters)} parameters, {target.stat().st_size / 1024:.0f} KiB{note}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
