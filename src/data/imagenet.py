"""ImageNet, or any pictures in its layout: train/CLASS/*.JPEG and val/CLASS/*.JPEG. Labels count the classes by name.

Training crops and scales at random and mirrors; evaluation scales the shorter side to 256 and takes the centre, with
PIL, so that any other reader of the picture sees the same pixels.
"""

import os
from pathlib import Path

import numpy as np
from mindspore.dataset import GeneratorDataset, vision

from ..errors import UserError
from ..preprocessing import PREPROCESSING
from .source import Source

FOLDERS = {"train": "train", "test": "val"}
SUFFIXES = (".jpeg", ".jpg", ".png")


class Pictures:
    """Rows (bytes of the file uint8 (B,), label int32, index int32), from disk at each access.

    `requested` are the indices in the order in which the engine asked for them. MindSpore's own ImageFolderDataset has
    no indices, without which pictures that were replaced cannot be counted.
    """

    def __init__(self, paths: list[str], labels: list[int]):
        self.paths = paths
        self.labels = labels
        self.requested: list[int] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        index = int(index)
        self.requested.append(index)
        return read_bytes(self.paths[index]), np.int32(self.labels[index]), np.int32(index)


class ImageNet(Source):
    """`imagenet`. What `find` saw of a split is what is read until it looks again: a walk of the tree takes long."""

    preprocessing = PREPROCESSING["imagenet"]
    indexed = True

    def __init__(self):
        self.seen: dict[tuple[str, str], dict[str, list[str]]] = {}  # by folder and split: the pictures of each class

    def find(self, path: str, splits: tuple[str, ...], download: bool) -> str:
        """`path`, in which every split is there, has the same classes, and a picture in each.

        Raises:
            UserError: names the folder that is not so.
        """
        root = Path(path)
        hint = f"give --data_path the folder that holds {' and '.join(FOLDERS.values())}"
        if download:
            raise UserError(f"ImageNet cannot be downloaded without its licence: get it from image-net.org and {hint}")
        for split in splits:
            folder = root / FOLDERS[split]
            if not folder.is_dir():
                raise UserError(f"ImageNet is not complete at {root}: {folder} is no folder; {hint}")
            try:
                self.seen[str(root), split] = pictures_by_class(folder)
            except OSError as error:
                raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        if len(splits) > 1:
            first, second = splits
            differing = sorted(self.seen[str(root), first].keys() ^ self.seen[str(root), second].keys())
            if differing:
                raise UserError(
                    f"the classes of {root / FOLDERS[first]} and {root / FOLDERS[second]} differ: {differing[0]} is in "
                    f"one alone ({len(differing)} such)"
                )
        return str(root)

    def open(self, folder: str, split: str, shuffle: bool, shards: int, shard: int, workers: int):
        classes = self.seen[folder, split].values()
        paths = [path for pictures in classes for path in pictures]
        labels = [label for label, pictures in enumerate(classes) for _ in pictures]
        return GeneratorDataset(
            Pictures(paths, labels),
            ["image", "label", "index"],
            shuffle=shuffle,
            num_shards=shards,
            shard_id=shard,
            num_parallel_workers=1,  # one reads, many decode; MindSpore's further readers take SIGTERM from the process
            python_multiprocessing=False,
        )

    def classes(self, folder: str, split: str) -> tuple[str, ...]:
        """The names of the class folders, in order; of ImageNet they are WordNet's numbers."""
        return tuple(self.seen[folder, split])

    def augmentation(self) -> list:
        """A crop of 8 to 100 % of the area scaled to 224x224, and a horizontal flip (section 3 of the paper)."""
        return [vision.RandomCropDecodeResize(self.preprocessing.size), vision.RandomHorizontalFlip(0.5)]

    def plain(self, size: int) -> list:
        shorter_side = round(size * self.preprocessing.shorter_side / self.preprocessing.size)
        return [vision.Decode(to_pil=True), vision.Resize(shorter_side), vision.CenterCrop(size)]

    def files(self, folder: str, splits: tuple[str, ...]) -> list[str]:
        """The class folders: their time changes when a picture comes or goes."""
        return [str(Path(folder) / FOLDERS[split] / name) for split in splits for name in self.seen[folder, split]]

    def pictures(self, folder: str, splits: tuple[str, ...]) -> list[str]:
        return [path for split in splits for paths in self.seen[folder, split].values() for path in paths]


def pictures_by_class(folder: Path) -> dict[str, list[str]]:
    """The paths of the pictures in each class folder, both in order; hidden files and folders are none.

    Raises:
        UserError: there is no class folder, or one without a picture.
        OSError: something cannot be read.
    """
    found: dict[str, list[str]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            found[entry.name] = sorted(inner.path for inner in os.scandir(entry.path) if _is_picture(inner))
            if not found[entry.name]:
                raise UserError(f"the class folder {entry.path} is empty: no file in it ends in {', '.join(SUFFIXES)}")
    if not found:
        raise UserError(f"{folder} holds no class folders: pictures are expected in {folder}/CLASS/, a folder a class")
    return found


def _is_picture(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def read_bytes(path: str) -> np.ndarray:
    """The file's bytes; none of one that cannot be read, which then counts as one that cannot be decoded."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError:
        return np.zeros(0, np.uint8)
