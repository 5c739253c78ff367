"""Run a program of the project with one more network, `small`, which compiles much faster than ResNet-20.

usage: python tests/helpers/small_network.py PROGRAM ARGUMENTS..., for example train.py --network.name small
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()

from src.models.registry import register  # noqa: E402
from tests.helpers.networks import small  # noqa: E402

register(image_size=32, size_multiple=1, num_classes=10)(small)
sys.argv = sys.argv[1:]
runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
