"""CIFAR-10 from its official binary files: records of one label byte and 3,072 pixel bytes (R, G, B planes).

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; read by MindSpore's dataset engine.
"""

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from mindcv.data import create_dataset
from mindspore.dataset import vision

from src.errors import UserError

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
RELEASED_FOLDER = "cifar-10-verify-bin"  # as the released evaluation script names it
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
RECORD_BYTES = 1 + 3 * 32 * 32
FILE_BYTES = 10_000 * RECORD_BYTES  # of each of the six files; MindSpore's engine reads no other size


def find(path: str, splits: tuple[str, ...], download: bool) -> str:
    """The folder at or under `path` that holds the splits' files, each whole and with labels 0..9.

    Raises:
        UserError: a file is missing, truncated or damaged; says where to put it.
    """
    files = [name for split in splits for name in FILES[split]]
    candidates = [Path(path) / FOLDER, Path(path) / RELEASED_FOLDER, Path(path)]
    folder = next((place for place in candidates if all((place / name).is_file() for name in files)), None)
    if folder is None and download:
        fetch(path)
        folder = Path(path) / FOLDER
    if folder is None:
        begun = next((place for place in candidates if any((place / name).is_file() for name in files)), None)
        missing = [name for name in files if begun is None or not (begun / name).is_file()]
        raise UserError(
            f"CIFAR-10 is not complete at {path}: {', '.join(missing)} not found in {begun or candidates[0]}; "
            f"give --data_path the folder that holds {FOLDER}, or add --download"
        )
    for name in files:
        _verify(folder / name)
    return str(folder)


def open(folder: str, split: str, shuffle: bool, shards: int, shard: int, workers: int):
    """Rows (image uint8 (32, 32, 3), label) of a split, or of one of `shards` disjoint parts of it."""
    return create_dataset(
        "cifar10",
        root=folder,
        split=split,
        shuffle=shuffle,
        num_shards=shards,
        shard_id=shard,
        num_parallel_workers=workers,
    )


def augmentation() -> list:
    """Random crop of 32x32 after padding 4 (the release's padding; the paper gives none) and horizontal flip."""
    return [vision.RandomCrop((32, 32), (4, 4, 4, 4)), vision.RandomHorizontalFlip(0.5)]


def fetch(path: str) -> None:
    """Downloads the official archive, verifies its checksum, and unpacks it into `path`; leaves nothing half-done.

    Raises:
        UserError: no network, or an archive with another checksum.
    """
    root = Path(path)
    archive = root / "cifar-10-binary.tar.gz.partial"
    unpacked = root / f"{FOLDER}.partial"
    by_hand = f"download {ARCHIVE_URL} elsewhere and unpack it, so that {root / FOLDER / FILES['test'][0]} is there"
    try:
        root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.md5()
        with urllib.request.urlopen(ARCHIVE_URL, timeout=30) as response, archive.open("wb") as target:
            while block := response.read(1 << 20):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != ARCHIVE_MD5:
            raise UserError(
                f"the archive from {ARCHIVE_URL} has checksum {digest.hexdigest()}, but {ARCHIVE_MD5} is "
                f"expected: {by_hand}"
            )
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        (unpacked / FOLDER).rename(root / FOLDER)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise UserError(f"cannot download CIFAR-10 ({getattr(error, 'reason', error)}): {by_hand}") from error
    except OSError as error:
        raise UserError(f"cannot write CIFAR-10 to {root} ({error.strerror or error}): {by_hand}") from error
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)


def _verify(file: Path) -> None:
    size = file.stat().st_size
    if size != FILE_BYTES:
        raise UserError(
            f"{file} is truncated or no CIFAR-10 file: it has {size} bytes, but must have {FILE_BYTES}; fetch it again"
        )
    labels = np.memmap(file, np.uint8, "r")[::RECORD_BYTES]
    if labels.max() > 9:
        raise UserError(
            f"{file} is damaged: record {int(labels.argmax())} has label {labels.max()}, but labels are "
            "0 to 9; fetch it again"
        )
