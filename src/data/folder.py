"""A folder of images: train/CLASS/* and val/CLASS/*, for ImageNet or your own images. Labels count classes by name.

Training crops and scales at random and mirrors; evaluation scales the shorter side and takes the centre.
"""

import math
import os
import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..image_files import SUFFIXES, UndecodableImage, centre, open_image
from ..preprocessing import PREPROCESSING, Preprocessing
from .random_crop import random_crop
from .source import Epoch, Images, Source

FOLDERS = {"train": "train", "test": "val"}


class Buffers:
    """Reuse the memory of float32 arrays once nothing refers to them.

    Page faults of a new ImageNet batch cost a tenth or more of its decoding time.
    """

    def __init__(self):
        self.free: dict[int, list[bytearray]] = {}  # by bytes

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array with arbitrary content."""
        size = math.prod(shape) * np.dtype(np.float32).itemsize
        free = self.free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:  # not asked before: another thread may take the last
            memory = bytearray(size)
        owner = np.frombuffer(memory, np.float32)  # the base of all views
        weakref.finalize(owner, free.append, memory)
        return owner.reshape(shape)


class FileImages(Images):
    """Images that have a file each, read by several threads at each access.

    Args:
        paths: paths of the image files.
        labels: (N,).
        classes: names of the classes, by label.
        folders: folders with these files.
        preprocessing: size, shorter side, mean and standard deviation.
        threads: number of threads that read. Results do not depend on it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        classes: tuple[str, ...],
        folders: Sequence[str],
        preprocessing: Preprocessing,
        threads: int,
    ):
        self.paths = paths
        self.labels = np.array(labels, np.int32)
        self.classes = classes
        self.folders = folders
        self.preprocessing = preprocessing
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.buffers = Buffers()

    def read(self, indices: np.ndarray, augment: Epoch | None = None) -> tuple[np.ndarray, dict[int, str]]:
        size = self.preprocessing.size
        batch = self.buffers.take((len(indices), 3, size, size))
        reasons = self.pool.map(self._read_one, indices.tolist(), batch, [augment] * len(indices))
        return batch, {position: reason for position, reason in enumerate(reasons) if reason}

    def _read_one(self, index: int, out: np.ndarray, augment: Epoch | None) -> str | None:
        """Write the image to `out`, or return why it cannot be decoded."""
        try:
            image = open_image(self.paths[index])
        except UndecodableImage as error:
            return str(error)
        if augment is None:
            pixels = centre(image, self.preprocessing)
        else:
            pixels = random_crop(image, augment.generator("augmentation", index), self.preprocessing.size)
        self.preprocessing.normalise(pixels.transpose(2, 0, 1), out)
        return None


class Folder(Source):
    """Images in class folders.

    Args:
        name: name of the data set in `PREPROCESSING`.
        title: name of the data set in messages.
        where_to_get: what to do instead of `--download`.
    """

    def __init__(self, name: str, title: str, where_to_get: str):
        self.preprocessing = PREPROCESSING[name]
        self.title = title
        self.where_to_get = where_to_get

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        hint = f"give --data_path the folder that holds {' and '.join(FOLDERS.values())}"
        if download:
            raise UserError(f"{self.title} cannot be downloaded: {self.where_to_get}, and {hint}")
        for split in splits:
            folder = Path(path) / FOLDERS[split]
            if not folder.is_dir():
                raise UserError(f"{self.title} is not complete at {path}: {folder} is not a folder; {hint}")
        return str(Path(path))

    def open(self, root: str, split: str, preprocessing: Preprocessing, threads: int) -> FileImages:
        """Walk the class folders of a split. What is left out, and why, is counted in a warning.

        Raises:
            UserError: there are no class folders, one has no image, or one cannot be read.
        """
        folder = Path(root) / FOLDERS[split]
        left_out = LeftOut()
        try:
            found = _paths_by_class(folder, left_out)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        if left_out.counts:
            print(f"warning: {left_out.sentence(folder)}", file=sys.stderr)
        return FileImages(
            paths=[path for paths in found.values() for path in paths],
            labels=[label for label, paths in enumerate(found.values()) for _ in paths],
            classes=tuple(found),
            folders=[str(folder / name) for name in found],
            preprocessing=preprocessing,
            threads=threads,
        )


class LeftOut:
    """Counts the entries of a folder tree that are not images, by kind."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def sentence(self, folder: Path) -> str:
        kinds = [f"{count} {kind} (first {self.examples[kind]})" for kind, count in self.counts.items()]
        return f"left out in {folder}: {', '.join(kinds)}; images are files in CLASS/ that end in {', '.join(SUFFIXES)}"


def _paths_by_class(folder: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """List the images of each class folder, both in the order of their names. Hidden files and folders are ignored.

    Raises:
        UserError: there is no class folder, or one without an image or whose name a checkpoint cannot hold.
        OSError: something cannot be read.
    """
    found: dict[str, list[str]] = {}
    for entry in _visible(folder, left_out):
        if not entry.is_dir():
            left_out.add("files or links outside class folders", entry.path)
            continue
        if not _is_text(entry.name):
            raise UserError(f"the class folder {entry.path!r} has a name that is blank or not UTF-8: rename it")
        images = found[entry.name] = []
        for inner in _visible(entry.path, left_out):
            kind = _kind(inner)
            if kind is None:
                images.append(inner.path)
            else:
                left_out.add(kind, inner.path)
        if not images:
            raise UserError(f"the class folder {entry.path} is empty: no file in it ends in {', '.join(SUFFIXES)}")
    if not found:
        raise UserError(
            f"{folder} holds no class folders: images are expected in {folder}/CLASS/, one folder per class"
        )
    return found


def _visible(folder: str | Path, left_out: LeftOut) -> list[os.DirEntry]:
    """The entries that are not hidden, in the order of their names. Hidden images are counted in `left_out`."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(".") and _kind(entry) is None:
            left_out.add("hidden images", entry.path)
    return [entry for entry in ordered if not entry.name.startswith(".")]


def _is_text(name: str) -> bool:
    """Whether a checkpoint can store it as the name of a class. Bytes that are not UTF-8 appear as surrogates."""
    return bool(name.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _kind(entry: os.DirEntry) -> str | None:
    """Why an entry of a class folder is not read; None if it is an image by its name."""
    if entry.is_dir():
        return "nested folders"
    if not entry.is_file():
        return "broken links" if entry.is_symlink() else "special files"
    return None if entry.name.lower().endswith(SUFFIXES) else "files with other suffixes"


FOLDER = Folder("folder", "the image folder", "put your own images there")
IMAGENET = Folder("imagenet", "ImageNet", "get it from image-net.org, whose licence you must accept")
