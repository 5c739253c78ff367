"""Speed and size of exported networks in the runtimes that are here.

    python benchmarks/inference.py --quick --json      ResNet-20
    python benchmarks/inference.py --json              also ResNet-18 at 224x224

With --lite_python PATH, a Python that has MindSpore Lite, that is measured, too.

The networks have random weights: what they predict does not matter to their speed. Each runtime runs in a process of
its own, and they take turns. benchmarks/README.md explains the numbers.
"""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.orders import Worker  # noqa: E402
from benchmarks.scaling_model import milliseconds, table  # noqa: E402
from src import cli, native_build, runtime  # noqa: E402
from src.deploy.export_process import run_export_job  # noqa: E402
from src.errors import UserError  # noqa: E402

BINARY, FLOAT, ORT, MINDSPORE, LITE = "OpenVINO", "OpenVINO, float32", "onnxruntime", "MindSpore", "MindSpore Lite"
SUFFIXES = {BINARY: ".xml", FLOAT: ".onnx", ORT: ".onnx", MINDSPORE: ".mindir"}
RESNET20, RESNET18 = "resnet20", "resnet18"
SIZES = {RESNET20: 32, RESNET18: 224}
CASES = {RESNET20: (1, 32), RESNET18: (1,)}  # batch sizes
THREADS = (1, 2)
PAUSE = 0.25  # seconds before each turn: idle threads of the process before may spin for a while
TURN = 0.3  # seconds that a turn should take
# By key: what it is, and the goal.
KEYS: dict[str, tuple[str, str, float]] = {
    "resnet20_openvino_over_ort": ("images/s, OpenVINO over onnxruntime: ResNet-20, 1 image, 1 thread", ">=", 1.8),
    "resnet18_openvino_over_ort": ("the same for ResNet-18 at 224x224", ">=", 2.5),
    "resnet20_file_bytes": ("ResNet-20: bytes of .xml and .bin, zipped", "<=", 60_000),
    "resnet18_file_bytes": ("ResNet-18: bytes of .bin, float16 weights", "<=", 2_950_000),
    "first_prediction_s": ("seconds of predict.py for one image, as a process", "<=", 1.5),
}


@dataclass
class Benchmark:
    """Measures network by network.

    Attributes:
        values: by the keys of `KEYS`, None until measured.
        tables: header and rows by title.
    """

    folder: Path
    rounds: int
    lite_python: str | None = None
    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(KEYS))
    tables: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = field(default_factory=dict)

    def measure(self, network: str) -> None:
        path = self.export(network)
        self.sizes(network, path)
        for threads in THREADS:
            for batch_size in CASES[network]:
                self.speeds(network, path, batch_size, threads)
        self.layers(network, path)
        if network == RESNET20:
            self.first_prediction(path)

    def export(self, network: str) -> Path:
        """Write the network with random weights in every format, and return the files' path without suffix."""
        checkpoint, path = self.folder / f"{network}.ckpt", self.folder / network
        subprocess.run([sys.executable, "-c", WRITE_CHECKPOINT, str(ROOT), network, str(checkpoint)], check=True)
        for file_format in ("MINDIR", "ONNX", "OPENVINO"):
            self.run_export(checkpoint, file_format, path)
        if self.lite_python:
            for batch_size in CASES[network]:  # a Lite file has one
                fixed = self.folder / f"{network}_fixed"
                self.run_export(checkpoint, "ONNX", fixed, batch_size=batch_size)
                command = ["convert", str(fixed.with_suffix(".onnx")), f"{path}_lite_{batch_size}.mindir"]
                subprocess.run([self.lite_python, str(ROOT / "src/deploy/lite.py"), *command], check=True)
        return path

    def run_export(
        self,
        checkpoint: Path,
        file_format: str,
        output: Path,
        float_weights: str = "float32",
        batch_size: int | None = None,
    ) -> None:
        request = {
            "checkpoint": str(checkpoint),
            "overrides": {},
            "num_classes": None,
            "file_format": file_format,
            "batch_size": batch_size,
            "output": str(output),
            "float_weights": float_weights,
        }
        if run_export_job(request):
            raise UserError(f"{output.name} cannot be exported to {file_format}")

    def sizes(self, network: str, path: Path) -> None:
        """The bytes of the files. The float16 file is written for its size only."""
        half = self.folder / f"{network}_float16"
        self.run_export(path.with_suffix(".ckpt"), "OPENVINO", half, "float16")
        packed = self.folder / f"{network}.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for suffix in (".xml", ".bin"):
                archive.write(path.with_suffix(suffix), f"{network}{suffix}")
        rows = [
            (suffix, f"{path.with_suffix(suffix).stat().st_size:,}") for suffix in (".mindir", ".onnx", ".xml", ".bin")
        ]
        rows.append((".bin, float16 weights", f"{half.with_suffix('.bin').stat().st_size:,}"))
        rows.append((".xml and .bin, zipped", f"{packed.stat().st_size:,}"))
        self.tables[f"{network}, files"] = (("", "bytes"), rows)
        if network == RESNET20:
            self.values["resnet20_file_bytes"] = packed.stat().st_size
        else:
            self.values["resnet18_file_bytes"] = half.with_suffix(".bin").stat().st_size

    def speeds(self, network: str, path: Path, batch_size: int, threads: int) -> None:
        names = [*SUFFIXES, *([LITE] if self.lite_python else [])]
        medians: dict[str, list[float]] = {name: [] for name in names}
        least = dict.fromkeys(names, float("inf"))
        workers = {name: self.worker(name, path, threads, batch_size) for name in names}
        given = {"size": SIZES[network], "batch_size": batch_size}
        try:
            counts = {name: count_of(min(worker.ask("run", count=3, **given))) for name, worker in workers.items()}
            for number in range(self.rounds):
                cli.echo(f"{network}, {batch_size} image(s), {threads} thread(s), round {number + 1}", sys.stderr)
                for name, worker in workers.items():
                    time.sleep(PAUSE)
                    seconds = worker.ask("run", count=counts[name], **given)
                    medians[name].append(statistics.median(seconds))
                    least[name] = min(least[name], *seconds)
        finally:
            for worker in workers.values():
                worker.__exit__()
        rows = []
        for name, seconds in medians.items():
            median = statistics.median(seconds)
            rows.append((name, milliseconds(median), milliseconds(least[name]), f"{batch_size / median:.0f}"))
        title = f"{network} at {SIZES[network]}x{SIZES[network]}, images: {batch_size}, threads: {threads}"
        self.tables[title] = (("", "median, ms", "least, ms", "images/s"), rows)
        if batch_size == threads == 1:
            ratios = [one / other for one, other in zip(medians[ORT], medians[BINARY], strict=True)]
            self.values[f"{network}_openvino_over_ort"] = statistics.median(ratios)

    def worker(self, name: str, path: Path, threads: int, batch_size: int = 1) -> Worker:
        program = str(ROOT / "benchmarks/inference_worker.py")
        file = f"{path}_lite_{batch_size}.mindir" if name == LITE else str(path.with_suffix(SUFFIXES[name]))
        command = [self.lite_python if name == LITE else sys.executable, program, name, file, str(threads)]
        return Worker(command, self.folder / f"{name}.log")

    def layers(self, network: str, path: Path) -> None:
        """OpenVINO's own profile of its layers, and the least time of XNOR and popcount for the binary ones."""
        with self.worker(BINARY, path, 1) as worker:
            measured = worker.ask("profile", size=SIZES[network], count=200 if network == RESNET20 else 20)
        macs, limit = binary_macs(path.with_suffix(".xml")), popcount_limit()
        rows, others = [], 0.0
        for name, _, implementation, seconds in measured:
            if name not in macs:
                others += seconds
                continue
            at_limit = f"{1e6 * macs[name] / limit:.1f}" if limit else "not measured"
            rows.append(
                (
                    name.rpartition("/")[0],
                    implementation,
                    f"{1e6 * seconds:.1f}",
                    f"{macs[name] / seconds / 1e9:.0f}",
                    at_limit,
                )
            )
        binary = sum(seconds for name, _, _, seconds in measured if name in macs)
        at_limit = f"{1e6 * sum(macs.values()) / limit:.1f}" if limit else "not measured"
        speed = f"{sum(macs.values()) / binary / 1e9:.0f}"
        rows.append(("all binary layers", "", f"{1e6 * binary:.1f}", speed, at_limit))
        rows.append(("everything else", "", f"{1e6 * others:.1f}", "", ""))
        header = ("layer", "implementation", "µs", "GMAC/s", "µs at the popcount limit")
        self.tables[f"{network}, 1 image, 1 thread, by layer"] = (header, rows)

    def first_prediction(self, path: Path) -> None:
        from PIL import Image

        image = self.folder / "image.png"
        Image.new("RGB", (32, 32)).save(image)
        command = [sys.executable, str(ROOT / "predict.py"), "--model", str(path.with_suffix(".xml")), str(image)]
        seconds = []
        for _ in range(self.rounds + 1):
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
        self.values["first_prediction_s"] = statistics.median(seconds[1:])  # the first reads files from the disk

    def print(self, as_json: bool) -> None:
        for title, (header, rows) in self.tables.items():
            print(f"{title}\n\n{table(header, rows)}")
        print(table(("key", "", "value", "goal", ""), [verdict(key, value) for key, value in self.values.items()]))
        if as_json:
            print(json.dumps(self.values))


WRITE_CHECKPOINT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from src import runtime
runtime.prepare_environment()
import mindspore as ms
import numpy as np
from mindspore import nn
from src import checkpoints
from src.binary import Binarization
from src.config import load_config
from src.models import NETWORKS, create_model
from src.preprocessing import PREPROCESSING, find_preprocessing
from dataclasses import replace

ms.set_seed(0)
name = sys.argv[2]
size, classes = NETWORKS[name].image_size, NETWORKS[name].num_classes
network = create_model(name, classes, binarization=Binarization(noise_adaptation=False))
generator = np.random.default_rng(0)
for parameter in network.get_parameters():
    if parameter.name.rsplit(".", 1)[-1] in ("gamma", "beta"):
        parameter.set_data(ms.Tensor(generator.normal(0.1, 0.5, parameter.shape), ms.float32))
data = {"data.name": "digits", "data.image_size": size, "network.name": name, "noise.enabled": False}
preprocessing = replace(find_preprocessing("digits", size), classes=tuple(map(str, range(classes))))
optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
config = load_config(overrides=data).model_dump()
checkpoints.save(Path(sys.argv[3]), network, optimizer, config, preprocessing, None, {})
"""


def count_of(seconds: float) -> int:
    """How many runs a turn has."""
    return max(3, min(200, round(TURN / seconds)))


def binary_macs(path: Path) -> dict[str, int]:
    """The multiplications and additions of each binary convolution of an OpenVINO file, one image."""
    import math

    import openvino

    found = {}
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "BinaryConvolution":
            weight, output = node.get_input_shape(1), node.get_output_shape(0)
            found[node.get_friendly_name()] = math.prod(weight) * math.prod(output[2:])
    return found


def popcount_limit() -> float | None:
    """Binary multiplications and additions a second of one thread, of words in the cache; None without a compiler."""
    import numpy as np

    try:
        library = ctypes.CDLL(str(native_build.library(Path(__file__).with_name("popcount.cpp"))))
    except native_build.Unavailable:
        return None
    words, filters, repeats = 256, 4, 5_000
    image, others = np.random.default_rng(0).integers(0, 2**63, (2, filters * words), dtype=np.uint64)
    library.popcount_words.restype = ctypes.c_int64
    arguments = [
        ctypes.c_void_p(image.ctypes.data),
        ctypes.c_void_p(others.ctypes.data),
        ctypes.c_int64(words),
        ctypes.c_int64(repeats),
    ]
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        library.popcount_words(*arguments)
        best = min(best, time.perf_counter() - begun)
    return 64 * words * filters * repeats / best


def verdict(key: str, value: float | None) -> tuple[str, ...]:
    """The row of a key in the last table."""
    what, comparison, goal = KEYS[key]
    if value is None:
        return f"`{key}`", what, "", f"{comparison} {goal:,}", "not measured"
    met = value <= goal if comparison == "<=" else value >= goal
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return f"`{key}`", what, shown, f"{comparison} {goal:,}", "met" if met else "missed"


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/inference.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 only")
    parser.add_argument("--rounds", type=cli.integer, default=7, metavar="N", help="turns of each runtime; default: 7")
    parser.add_argument("--lite_python", metavar="PATH", type=cli.path, help="a Python that has MindSpore Lite")
    parser.add_argument("--json", action="store_true", help="print the values by key as a last line of JSON")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}, but must be at least 1")
    runtime.prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(Path(folder), arguments.rounds, arguments.lite_python)
        for network in (RESNET20,) if arguments.quick else (RESNET20, RESNET18):
            benchmark.measure(network)
        benchmark.print(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
