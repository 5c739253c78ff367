"""What training and evaluation see of a data set: shuffled, augmented, sharded batches; all test images in order."""

import os
from collections.abc import Iterator

import mindspore as ms
import mindspore.dataset as engine
from mindcv.data import create_loader
from mindspore.dataset import vision

from src.data import cifar10, digits
from src.errors import UserError
from src.preprocessing import PREPROCESSING, Preprocessing

SOURCES = {"cifar10": cifar10, "digits": digits}


def find_preprocessing(name: str) -> Preprocessing:
    """Size, normalisation and classes of a data set; UserError for an unknown name."""
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}; allowed are {', '.join(SOURCES)}")
    return PREPROCESSING[name]


class Dataset:
    """The batches of one data set.

    Args:
        name: one of `SOURCES`.
        path: folder of the files; ignored where the set comes with a package.
        batch_size: images a batch.
        workers: threads that read and augment, clamped to the number of cores.
        augment: whether training images are augmented.
        seed: with the epoch it fixes order and augmentation.
        rank, size: which of how many shards of the training images this worker takes.
        splits: the ones whose files must be there.
        image_size: height and width to which images are scaled; None: as they are.

    Raises:
        UserError: an unknown name; files missing, truncated or damaged.
    """

    def __init__(
        self,
        name: str,
        path: str = "data",
        batch_size: int = 128,
        workers: int = 1,
        augment: bool = True,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        download: bool = False,
        splits: tuple[str, ...] = ("train", "test"),
        image_size: int | None = None,
    ):
        self.preprocessing = find_preprocessing(name)
        self.name = name
        self.source = SOURCES[name]
        self.root = self.source.find(path, splits, download)
        self.image_size = image_size or self.preprocessing.size
        self.num_classes = len(self.preprocessing.classes)
        self.batch_size = batch_size
        self.workers = min(workers, os.cpu_count() or 1)
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.size = size

    def train_steps(self) -> int:
        """Full batches an epoch and worker; a last partial batch is dropped, as its shape would compile a second graph.

        Raises:
            UserError: there is not one.
        """
        images = self.source.open(self.root, "train", False, 1, 0, 1).get_dataset_size() // self.size
        if images < self.batch_size:
            raise UserError(f"data.batch_size is {self.batch_size}, but a worker has only {images} training images")
        return images // self.batch_size

    def train(self, epoch: int, skip: int = 0, stop: int | None = None) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches (images float32 (N, 3, H, W), labels int32 (N,)) of this worker's shard, from number `skip` up to but
        without number `stop`, or to the end.

        Seed and epoch fix the order; they and the number of workers fix the augmentation, since each worker draws
        numbers of its own. So a resumed run sees what the first would have.
        """
        engine.config.set_seed((self.seed * 1_000_003 + epoch) % 2**31)
        rows = self.source.open(self.root, "train", True, self.size, self.rank, self.workers)
        augmentation = self.source.augmentation() if self.augment else []
        batches = self._batches(rows, augmentation, self.batch_size, drop_remainder=True)
        if stop is not None:
            batches = batches.take(stop)
        return (batches.skip(skip) if skip else batches).create_tuple_iterator(num_epochs=1)

    def test(self) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches of all test images in the file's order; the last one may be smaller."""
        rows = self.source.open(self.root, "test", False, 1, 0, self.workers)
        return self._batches(rows, [], self.batch_size, drop_remainder=False).create_tuple_iterator(num_epochs=1)

    def _batches(self, rows, augmentation, batch_size: int, drop_remainder: bool):
        mean, std = self.preprocessing.mean, self.preprocessing.std
        resize = (
            [vision.Resize((self.image_size, self.image_size))] if self.image_size != self.preprocessing.size else []
        )
        normalisation = [*resize, vision.Rescale(1 / 255, 0.0), vision.Normalize(mean, std), vision.HWC2CHW()]
        return create_loader(
            rows,
            batch_size,
            drop_remainder=drop_remainder,
            transform=augmentation + normalisation,
            num_classes=self.num_classes,
            num_parallel_workers=self.workers,
        )


def open_dataset(name: str, **options) -> Dataset:
    """A `Dataset`; its arguments."""
    return Dataset(name, **options)
