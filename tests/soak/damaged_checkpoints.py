"""Damage checkpoint files in many seeded ways: each must be read as it was, or refused in a sentence.

    python tests/soak/damaged_checkpoints.py --files 5000 --seed 1

Files of format 1, of format 0 and of other programs in turn. The work is done in a child process, so that one which
dies by a signal is noticed as well.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()


def soak(files: int, seed: int) -> None:
    from tests.helpers.checkpoint_files import mutants
    from tests.test_checkpoints import LAYOUTS, unharmed

    with tempfile.TemporaryDirectory(prefix="damaged") as folder:
        for number, layout in enumerate(LAYOUTS):
            started, done, read = time.monotonic(), Counter(), Counter()
            subject = unharmed(Path(folder), layout)
            count = files // len(LAYOUTS) + (number < files % len(LAYOUTS))
            for kind, rehashed, content in mutants(subject.content, seed + number, count):
                done[kind] += 1
                read[kind] += subject.check(kind, rehashed, content)
            print(f"{layout}: {done.total()} files in {time.monotonic() - started:.0f} s, {read.total()} read as whole")
            for kind in sorted(done):
                print(f"    {kind}: {done[kind]}, {read[kind]} read as whole", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="how many; default 5000")
    parser.add_argument("--seed", type=int, default=1, help="of the damage; default 1")
    arguments = parser.parse_args()
    child = multiprocessing.get_context("spawn").Process(target=soak, args=(arguments.files, arguments.seed))
    child.start()
    child.join()
    print("every file was read as it was, or refused" if child.exitcode == 0 else f"the child ended {child.exitcode}")
    return int(child.exitcode != 0)


if __name__ == "__main__":
    sys.exit(main())
