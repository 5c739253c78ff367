"""What training and evaluation see of a data set: shuffled, augmented, sharded batches; all test images in order."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import mindspore.dataset as engine
from mindcv.data import create_loader
from mindspore.dataset import vision
from tqdm import tqdm

from ..errors import UserError
from ..preprocessing import find_preprocessing
from .cifar import CIFAR10, CIFAR100
from .digits import Digits
from .imagenet import ImageNet
from .source import Source, broken_picture

SOURCES: dict[str, Source] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "digits": Digits(), "imagenet": ImageNet()}
ErrorSamples = engine.config.ErrorSamplesMode
CHECKED_AT_ONCE = 1000  # pictures, between two steps of the bar


class Dataset:
    """The batches of one data set.

    Args:
        name: one of `SOURCES`.
        path: folder of the files; ignored where the set comes with a package.
        batch_size: images a batch.
        workers: threads that read and augment, clamped to the number of cores.
        augment: whether training images are augmented.
        seed: with the epoch it fixes order and augmentation.
        rank, size: which of how many shards of the images this worker takes.
        splits: the ones whose files must be there.
        image_size: height and width to which images are scaled; None: as they are.

    Attributes:
        preprocessing (Preprocessing): of this data set, with its classes.

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
        find_preprocessing(name)  # refuses an unknown one
        self.source = SOURCES[name]
        self.name = name
        self.splits = splits
        self.root = self.source.find(path, splits, download)
        self.preprocessing = self.source.described(self.root, splits[0])
        self.image_size = image_size or self.preprocessing.size
        self.num_classes = len(self.preprocessing.classes)
        self.batch_size = batch_size
        self.workers = min(workers, os.cpu_count() or 1)
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.size = size
        self.requested: list[int] = []
        self.delivered: list[int] | None = []  # None: a device took them
        self.found = self._stamps()

    @property
    def replaced(self) -> int | None:
        """How many training images of the epoch under way could not be decoded, so that others came in their place:
        those that were requested before the last good one, or of a whole epoch all. None after `train_pipeline`.

        The engine delivers good images in the order of its requests, and others once more between them or at the end.
        """
        if self.delivered is None:
            return None
        delivered = set(self.delivered)
        place = {index: number for number, index in enumerate(list(self.requested))}
        reach = max((place[index] for index in delivered), default=-1) + 1
        if len(self.delivered) == len(place):  # no remainder was dropped
            reach = len(place)
        return reach - len(delivered)

    def check(self, splits: tuple[str, ...] | None = None, shared: bool = True) -> int:
        """Decodes every picture of these splits, or of all that are open, with a progress bar; how many there are.

        Workers that train together share them, unless they are not `shared`. Data sets whose files `find` verifies as a
        whole have no pictures to look at: 0.

        Raises:
            UserError: names the first that cannot be decoded, and says how many there are.
        """
        paths = list(self.source.pictures(self.root, splits or self.splits))
        if shared:
            paths = paths[self.rank :: self.size]
        broken = []
        with ThreadPoolExecutor(self.workers) as pool, tqdm(total=len(paths), unit="picture", disable=not paths) as bar:
            for start in range(0, len(paths), CHECKED_AT_ONCE):
                some = paths[start : start + CHECKED_AT_ONCE]
                reasons = pool.map(broken_picture, some)
                broken += [(path, reason) for path, reason in zip(some, reasons, strict=True) if reason]
                bar.update(len(some))
        if broken:
            (path, reason), others = broken[0], len(broken) - 1
            raise UserError(
                f"{len(broken)} of {len(paths)} pictures cannot be decoded, first {path} ({reason})"
                + (f", then {', '.join(path for path, _ in broken[1:4])}" if others else "")
                + (", ..." if others > 3 else "")
                + ": fetch them again or take them away"
            )
        return len(paths)

    def train_steps(self) -> int:
        """Full batches an epoch and worker; a last partial batch is dropped, as its shape would compile a second graph.

        Raises:
            UserError: there is not one.
        """
        images = self._count("train") // self.size
        if images < self.batch_size:
            raise UserError(f"data.batch_size is {self.batch_size}, but a worker has only {images} training images")
        return images // self.batch_size

    def train_images(self) -> int:
        """How many there are, for all workers."""
        return self._count("train")

    def test_images(self) -> int:
        """How many there are, for all workers."""
        return self._count("test")

    def test_batches(self) -> int:
        """How many `test` gives to the worker that gets most."""
        largest = -(-self.test_images() // self.size)
        return -(-largest // self.batch_size)

    def train(self, epoch: int, skip: int = 0, stop: int | None = None) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches (images float32 (N, 3, H, W), labels int32 (N,)) of this worker's shard, from number `skip` up to but
        without number `stop`, or to the end.

        Seed and epoch fix the order; they and the number of workers fix the augmentation, since each worker draws
        numbers of its own. So a resumed run sees what the first would have. An image that cannot be decoded is replaced
        by one that can, and counted by `replaced`.

        Of the shuffled images worker r takes numbers r, r + size, r + 2 size and so on, so that the images of a step
        are, over all workers, the same ones for any number of workers with the same global batch. Where that would not
        come out even, the engine would repeat up to size - 1 images at the end; `train_steps` ends before them.

        Raises:
            UserError: the files are not the ones that were found at first.
        """
        batches = self._train_batches(epoch, stop)
        self.delivered = []
        if not self.source.indexed:
            return self._read(batches.skip(skip) if skip else batches, "train", [])
        # What is skipped here is counted too, so that a resumed epoch tells the same as a whole one.
        return itertools.islice(self._read(batches, "train", self.delivered), skip, None)

    def train_pipeline(self, epoch: int, skip: int = 0, stop: int | None = None) -> engine.Dataset:
        """The engine's pipeline of the batches that `train` gives, for a device that reads them by itself. What it
        replaces cannot be counted."""
        batches = self._train_batches(epoch, stop)
        self.delivered = None
        if self.source.indexed:
            batches = batches.project(batches.get_col_names()[:2])
        return batches.skip(skip) if skip else batches

    def test(self) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches of this worker's test images in the file's order; the last one may be smaller.

        The workers' parts follow each other, none is padded: together they are the test set, each image once. With more
        workers than images some get none.

        Raises:
            UserError: the files are not the ones that were found at first, or an image cannot be decoded.
        """
        self.require_unchanged()
        rows = self.source.open(self.root, "test", False, 1, 0, self.workers)
        images = self.test_images()
        first, end = images * self.rank // self.size, images * (self.rank + 1) // self.size
        if first == end:
            return iter(())
        reader = rows
        while reader.children:  # the sampler goes to what reads the files: the others' images are not even read
            reader = reader.children[0]
        reader.use_sampler(engine.SequentialSampler(first, end - first))
        batches = self._batches(rows, self.source.plain(self.image_size), drop_remainder=False)
        engine.config.set_error_samples_mode(ErrorSamples.RETURN)
        return self._read(batches, "test", [])

    def require_unchanged(self) -> None:
        """UserError if a file, or a folder of pictures, has gone or is no longer what it was when this was made."""
        for path, now in self._stamps().items():
            if now != self.found[path]:
                what = "is gone" if now is None else "has changed"
                raise UserError(
                    f"the data set changed while it was used: {path} {what}; put it back and resume the run"
                )

    def _stamps(self) -> dict[str, tuple[int, int] | None]:
        """Size and time in ns of the set's files; None where there is none."""
        return {path: _stamp(path) for path in self.source.files(self.root, self.splits)}

    def _train_batches(self, epoch: int, stop: int | None) -> engine.Dataset:
        self.require_unchanged()
        engine.config.set_seed((self.seed * 1_000_003 + epoch) % 2**31)
        engine.config.set_error_samples_mode(ErrorSamples.REPLACE)
        rows = self.source.open(self.root, "train", True, self.size, self.rank, self.workers)
        if self.source.indexed:
            self.requested = rows.source.requested
        transforms = self.source.plain(self.image_size)
        if self.augment:
            transforms = self.source.augmentation() or transforms
        batches = self._batches(rows, transforms, drop_remainder=True)
        return batches if stop is None else batches.take(stop)

    def _count(self, split: str) -> int:
        return self.source.open(self.root, split, False, 1, 0, 1).get_dataset_size()

    def _batches(self, rows, transforms: list, drop_remainder: bool):
        mean, std = self.preprocessing.mean, self.preprocessing.std
        normalisation = [vision.Rescale(1 / 255, 0.0), vision.Normalize(mean, std), vision.HWC2CHW()]
        return create_loader(
            rows,
            self.batch_size,
            drop_remainder=drop_remainder,
            transform=transforms + normalisation,
            num_classes=self.num_classes,
            num_parallel_workers=self.workers,
        )

    def _read(self, batches, split: str, delivered: list[int]) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """(images, labels) of the batches; adds the indices, where there are any, to `delivered`."""
        try:
            for images, labels, *indices in batches.create_tuple_iterator(num_epochs=1):
                if indices:
                    delivered += indices[0].asnumpy().tolist()
                yield images, labels
        except RuntimeError as error:
            self.check((split,), shared=False)  # names the picture, if it is one
            raise UserError(f"an image of {self.name} cannot be read: {_reason(error)}") from error


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _reason(error: RuntimeError) -> str:
    """What MindSpore's message says after its heading."""
    lines = [line.strip() for line in str(error).split("\n")]
    return next((line for line in lines if line.startswith("[ERROR]")), lines[0]).removeprefix("[ERROR] ")


def open_dataset(name: str, **options) -> Dataset:
    """A `Dataset`; its arguments."""
    return Dataset(name, **options)
