"""The worker of inference.py: runs one model file in one runtime on command.

python inference_worker.py RUNTIME FILE THREADS
"""

from __future__ import annotations  # the Python that has MindSpore Lite may be old

import sys
from pathlib import Path

from orders import serve, timed, use_cores

RUNTIME, FILE, THREADS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
use_cores(THREADS)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

models = {}


def logits_of(batch_size: int):
    """The function that runs the file, for batches of this size."""
    if RUNTIME == "onnxruntime":
        from src.deploy.onnx import load

        return load(FILE, THREADS).logits
    if RUNTIME == "OpenVINO":
        from src.deploy.openvino import load

        return load(FILE, THREADS).logits
    if RUNTIME == "OpenVINO, float32":  # the ONNX file as it is
        network = compiled(batch_size)
        return lambda images: network(images)[0]
    if RUNTIME == "MindSpore Lite":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src/deploy"))  # it imports nothing of src
        from lite import LiteModel

        return LiteModel(FILE, threads=THREADS).logits
    from src import runtime

    runtime.prepare_environment()
    runtime.start()
    from src.deploy.mindir import load

    return load(FILE).logits


def compiled(batch_size: int, **options):
    """The file as OpenVINO compiles it."""
    import openvino

    from src.deploy.openvino import FLOAT32

    model = openvino.Core().read_model(FILE)
    model.reshape([batch_size, *(size.get_length() for size in list(model.input(0).get_partial_shape())[1:])])
    return openvino.Core().compile_model(model, "CPU", {**FLOAT32, "INFERENCE_NUM_THREADS": THREADS, **options})


def run(size: int, batch_size: int, count: int) -> list[float]:
    """Seconds of each of `count` runs on random images."""
    images = np.random.default_rng(0).normal(size=(batch_size, 3, size, size)).astype(np.float32)
    if batch_size not in models:
        models[batch_size] = logits_of(batch_size)
    return timed(lambda: models[batch_size](images), count)


def profile(size: int, count: int) -> list[tuple[str, str, str, float]]:
    """Name, kind, implementation and median seconds of each operation that OpenVINO executes, one image."""
    network = compiled(1, PERF_COUNT=True)
    request = network.create_infer_request()
    images = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for number in range(count + 5):
        request.infer([images])
        for entry in request.profiling_info if number >= 5 else ():
            key = entry.node_name, entry.node_type, entry.exec_type
            seconds.setdefault(key, []).append(entry.real_time.total_seconds())
    return [(*key, float(np.median(values))) for key, values in seconds.items() if max(values) > 0]


if __name__ == "__main__":
    serve({"run": run, "profile": profile})
