"""Every command of the README and of the pages under docs/ works, on a tiny budget or as far as this machine can go."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import images, processes
from tests.helpers.processes import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = "--epochs 1 --steps_per_epoch 1 --data.batch_size 10"
# What is not run to its end: a part of a command, what is appended, the exit code and words to expect. These commands
# need devices, other machines or the network, or they run for hours, or they start these tests.
NOT_RUN = (
    ("srun ", "--dry-run", 0, "# machine 0 of 2"),
    ("--nodes", "--dry-run", 0, "# machine 0 of 2"),
    ("--rank_table", "--dry-run", 2, "hccl_8p.json, which cannot be read"),
    ("run_distribute_train.sh --workers 8", "--dry-run", 0, "# machine 0 of 1"),
    ("run_distribute_train.sh --workers 4", "", 2, "which 4 worker(s) cannot share equally"),
    ("src.paper table5", "--dry-run", 0, "11 runs"),
    ("src.paper table2", "--dry-run", 0, "runs in"),
    ("--device_target Ascend", "", 2, "device Ascend is not available here"),
    ("--from_epoch 120", "", 2, "--from_epoch is 120, but"),
    ("scripts/quickstart.sh", None, None, None),
    ("scripts/run_tests.sh", None, None, None),
    ("benchmarks/", None, None, None),  # tests/test_benchmarks.py runs them
)


@dataclass(frozen=True)
class Command:
    """A line of a page's shell blocks, without its comment."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def program(self) -> str:
        return next(word for word in shlex.split(self.text.rpartition("|")[2]) if word not in ("bash", "python", "-m"))

    @property
    def limit(self) -> tuple | None:
        return next((limit for limit in NOT_RUN if limit[0] in self.text), None)


def commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if text := line.split(" #")[0].strip().removeprefix("#").strip() if not line.startswith("#") else "":
                    found.append(Command(str(page.relative_to(ROOT)), " ".join(text.split())))
    return list(dict.fromkeys(found))


def test_the_commands_of_a_page_can_follow_each_other_in_any_order():
    """A run folder that another command made already is refused, so a page names each only once."""
    for page in PAGES:
        texts = [command.text for command in commands() if command.page == str(page.relative_to(ROOT))]
        new = [re.search(r"--output_dir (\S+)", text) for text in texts if "train.py" in text or "train.sh" in text]
        # The launchers of several machines start one run.
        named = [found[1] for found in new if found and found[1] != "runs/two_machines"]
        assert len(set(named)) == len(named), f"{page.name} uses a run folder twice: {named}"


@pytest.mark.parametrize("command", commands(), ids=str)
def test_the_files_that_a_documented_command_names_exist(command):
    if command.text.startswith(("pip ", "srun ", "source ")):
        return
    program = command.program
    path = ROOT / program
    if program.startswith("src."):
        path = ROOT / program.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        return
    assert path.exists(), f"{command} names {program}, which is not there"
    for config in re.findall(r"--config (\S+)", command.text):
        assert (ROOT / config).is_file(), f"{command} names {config}, which is not there"


def test_the_list_of_commands_that_are_not_run_holds_only_commands_of_the_pages():
    texts = "\n".join(command.text for command in commands())
    for part, *_ in NOT_RUN:
        assert part in texts, f"no page has a command with {part!r} any more"


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """A folder with data sets, a finished run in runs/digits, and a checkpoint in the released layout."""
    folder = tmp_path_factory.mktemp("commands")
    processes.write_cifar10(folder / "cifar")
    for name, records in (("train.bin", 50_000), ("test.bin", 10_000)):  # black images of the first class
        path = folder / "cifar/cifar-100-binary" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, records * (2 + 3072))
    images.write_tree(folder / "folder", 16, 8)
    run(folder, f"python train.py --config configs/digits.yaml --output_dir runs/digits {TINY}")
    Image.new("RGB", (40, 30)).save(folder / "photo.png")
    run(folder, "python export.py --checkpoint runs/digits/best.ckpt")
    run(folder, "python export.py --checkpoint runs/digits/best.ckpt --output exports/digits")
    program = (
        "import mindspore as ms; from src.models import create_model; from src.binary import Binarization; "
        "ms.save_checkpoint(create_model('resnet20', 10, binarization=Binarization(noise_adaptation=False)), "
        "'released.ckpt')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment(), check=True)
    return folder


def environment() -> dict[str, str]:
    """One in which `python` is this interpreter, for commands that are given from the repository's root."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**os.environ, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def run(folder: Path, text: str, code: int | None = 0) -> str:
    """Run a command in `folder` with this repository's files, and return its output."""
    text = re.sub(r"(?<![\w/])((?:train|eval|export|predict)\.py|scripts/\S+|configs/\S+)", rf"{ROOT}/\1", text)
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=processes.PATIENCE,
    )
    assert done.returncode == code, f"{text}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_documented_command_runs(command, data_folder):
    text = command.text.removeprefix("srun --nodes 2 --ntasks-per-node 1 ")
    part, appended, code, words = command.limit or (None, "", 0, None)
    if appended is None or text.startswith("source "):
        pytest.skip(f"not run here: {part or text}")
    data = "folder" if re.search("--dataset (folder|imagenet)|configs/imagenet|table5|predict", text) else "cifar"
    text = re.sub(r"\bDIR\b", str(data_folder / data), text)
    text = re.sub(r"\bFILE\b", "runs/digits/best.ckpt", text).replace("runs/latest", "runs/digits")
    text = re.sub(r"\bNAME\b", "resnet20", text)
    if command.text.startswith("srun"):
        text = f"SLURM_STEP_NUM_NODES=2 SLURM_NODEID=0 MASTER_ADDR=10.0.0.1 {text}"
    if part is None and re.search(r"(train\.py|run_\w+_train\.sh)", text) and "--resume" not in text:
        text += f" {TINY}"
        text = re.sub(r"--output_dir \S+", "", text)
    if part is None and "gaussian" in text:
        pytest.skip("the estimator of the page is not registered; tests/test_docs.py runs its code")
    output = run(data_folder, f"{text} {appended}", code)
    if words:
        assert words in output


@pytest.mark.slow
def test_the_programs_of_the_page_on_deployment_run(data_folder):
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    given = "import numpy as np\npixels = np.zeros((40, 30, 3), np.uint8)\n"
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        (data_folder / "page.py").write_text(given + program, encoding="utf-8")
        run(data_folder, "python page.py")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 230


@pytest.mark.slow
def test_the_program_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment(), check=True)
