"""CIFAR-10 and CIFAR-100 from their official binary files: records of label bytes and 3,072 pixel bytes (R, G, B).

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The files are read into memory once.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import locked
from ..preprocessing import PREPROCESSING, Preprocessing
from .arrays import ArrayImages
from .source import Source

IMAGE = (3, 32, 32)
PIXEL_BYTES = 3 * 32 * 32
CROP_PADDING = 4  # the release's; the paper gives none


class Cifar(Source):
    """CIFAR-10 or CIFAR-100.

    Args:
        name: name of the data set in `PREPROCESSING`.
        title: name of the data set in messages.
        folders: names of the folder that holds the files; the first is the official one.
        files, records: names of each split's files, and the number of images in each of them.
        label_bytes: number of bytes before the pixels of a record; the last of them is the label.
        url, md5: address and checksum of the official archive.
    """

    def __init__(
        self,
        name: str,
        title: str,
        folders: tuple[str, ...],
        files: dict[str, tuple[str, ...]],
        records: dict[str, int],
        label_bytes: int,
        url: str,
        md5: str,
    ):
        self.name = name
        self.title = title
        self.folders = folders
        self.files = files
        self.records = records
        self.label_bytes = label_bytes
        self.url = url
        self.md5 = md5
        self.preprocessing = PREPROCESSING[name]

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        files = [name for split in splits for name in self.files[split]]
        candidates = [*(Path(path) / name for name in self.folders), Path(path)]
        folder = next((place for place in candidates if all((place / name).is_file() for name in files)), None)
        if folder is None and download:
            folder = self.fetch(path, files)
        if folder is None:
            begun = next((place for place in candidates if any((place / name).is_file() for name in files)), None)
            missing = [name for name in files if begun is None or not (begun / name).is_file()]
            raise UserError(
                f"{self.title} is not complete at {path}: {', '.join(missing)} not found in {begun or candidates[0]}; "
                f"give --data_path the folder that holds {self.folders[0]}, or add --download"
            )
        return str(folder)

    def open(self, root: str, split: str, preprocessing: Preprocessing, threads: int) -> ArrayImages:
        """Read a split into memory; training images are augmented by a random crop and a horizontal flip.

        Raises:
            UserError: a file cannot be read, has another size, or has a label out of range.
        """
        files, count = self.files[split], self.records[split]
        records = np.empty((len(files), count, self.label_bytes + PIXEL_BYTES), np.uint8)
        for name, part in zip(files, records, strict=True):
            self._read(Path(root) / name, part)
        records = records.reshape(-1, records.shape[-1])
        pixels = records[:, self.label_bytes :].reshape(-1, *IMAGE)
        return ArrayImages(pixels, records[:, self.label_bytes - 1], preprocessing, CROP_PADDING)

    def _read(self, file: Path, records: np.ndarray) -> None:
        """Fill `records` (N, bytes of a record) with a file's content, and check it."""
        try:
            with file.open("rb") as stream:
                read, size = stream.readinto(records), stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}") from error
        if not read == size == records.nbytes:
            raise UserError(
                f"{file} is truncated or not a {self.title} file: it has {size} bytes, but must have {records.nbytes}; "
                "fetch it again"
            )
        labels, last = records[:, self.label_bytes - 1], len(self.preprocessing.classes) - 1
        if labels.max() > last:
            raise UserError(
                f"{file} is damaged: record {int(labels.argmax())} has label {labels.max()}, but labels are "
                f"0 to {last}; fetch it again"
            )

    def fetch(self, path: str, files: list[str]) -> Path:
        """Download the official archive, verify its checksum, and unpack it into `path`. Leave no partial files.

        With several workers, the first one downloads; the others wait for it and find the files there.

        Raises:
            UserError: no network, or an archive with another checksum.
        """
        root, folder = Path(path), self.folders[0]
        archive = root / f"{self.url.rsplit('/', 1)[1]}.partial"
        unpacked = root / f"{folder}.partial"
        by_hand = (
            f"download {self.url} elsewhere and unpack it, so that {root / folder / self.files['test'][0]} is there"
        )
        try:
            root.mkdir(parents=True, exist_ok=True)
            with locked(root / f".{folder}.lock", wait=True):
                try:
                    if not all((root / folder / name).is_file() for name in files):
                        self._download(archive, by_hand)
                        with tarfile.open(archive) as tar:
                            tar.extractall(unpacked, filter="data")
                        shutil.rmtree(root / folder, ignore_errors=True)
                        (unpacked / folder).rename(root / folder)
                finally:
                    archive.unlink(missing_ok=True)
                    shutil.rmtree(unpacked, ignore_errors=True)
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise UserError(f"cannot download {self.title} ({getattr(error, 'reason', error)}): {by_hand}") from error
        except tarfile.TarError as error:
            raise UserError(f"the archive from {self.url} cannot be unpacked ({error}): {by_hand}") from error
        except OSError as error:
            raise UserError(f"cannot write {self.title} to {root} ({error.strerror or error}): {by_hand}") from error
        return root / folder

    def _download(self, archive: Path, by_hand: str) -> None:
        digest = hashlib.md5()
        with urllib.request.urlopen(self.url, timeout=30) as response, archive.open("wb") as target:
            while block := response.read(1 << 20):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != self.md5:
            raise UserError(
                f"the archive from {self.url} has checksum {digest.hexdigest()}, but {self.md5} is expected: {by_hand}"
            )


CIFAR10 = Cifar(
    "cifar10",
    "CIFAR-10",
    ("cifar-10-batches-bin", "cifar-10-verify-bin"),  # the second as the released evaluation script names it
    {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    {"train": 10_000, "test": 10_000},
    label_bytes=1,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100 = Cifar(
    "cifar100",
    "CIFAR-100",
    ("cifar-100-binary",),
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"train": 50_000, "test": 10_000},
    label_bytes=2,  # the superclass (of 20), then the class (of 100)
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
)
