"""Run a program of the project with more networks: `small` compiles much faster than ResNet-20, `varied` is awkward.

The processes in which export.py does its work know the network, too.

usage: python tests/helpers/small_network.py PROGRAM ARGUMENTS..., for example train.py --network.name small
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()

from src.deploy import export_process  # noqa: E402
from src.models.registry import register  # noqa: E402
from tests.helpers.networks import small, varied  # noqa: E402

for network in (small, varied):
    register(image_size=32, size_multiple=1, num_classes=10)(network)
if __name__ == "__main__":
    export_process.START = export_process.START.replace("runpy.run", "import tests.helpers.small_network; runpy.run")
    sys.argv = sys.argv[1:]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
