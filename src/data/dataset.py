"""What training and evaluation see of a data set: shuffled, augmented batches; all test images in order."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import mindspore as ms
import mindspore.dataset as engine
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..image_files import UndecodableImage, open_image
from ..preprocessing import find_preprocessing
from .cifar import CIFAR10, CIFAR100
from .digits import Digits
from .folder import FOLDER, IMAGENET
from .source import Epoch, Images, Source

SOURCES: dict[str, Source] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "digits": Digits(),
    "folder": FOLDER,
    "imagenet": IMAGENET,
}
HOLDOUT_SEED = 20211207  # seed of the shuffle that chooses held-out images, the same in every run
MAX_REPLACEMENTS = 100  # images in a row that cannot be decoded
PREFETCHED_BATCHES = 4  # by MindSpore; its default of 16 takes gigabytes for ImageNet
CHECKED_AT_ONCE = 1000  # images, between two steps of the progress bar


class Dataset:
    """The batches of one data set.

    Args:
        name: one of `SOURCES`.
        path: folder of the files; ignored for a data set that comes with a package.
        batch_size: images per batch.
        num_parallel_workers: threads that read image files, clamped to the number of cores. No result depends on it.
        augment: whether training images are augmented.
        seed: fixes, with the epoch, the order of training images and their augmentation.
        rank, size: this worker's rank and the number of workers, which divide the images.
        download: whether to download files that are missing; only for CIFAR.
        splits: the splits to open.
        image_size: height and width of the images; None: the data set's own.
        holdout: number of training images that are kept out of training, for `validation`. They are the same for any
            seed and number of workers; a larger holdout contains a smaller one.

    Attributes:
        preprocessing (Preprocessing): preprocessing of this data set, with its classes and the image size in use.

    Raises:
        UserError: an unknown name; files missing, truncated or damaged; splits with different classes; a holdout that
            leaves no image.
    """

    def __init__(
        self,
        name: str,
        path: str = "data",
        batch_size: int = 128,
        num_parallel_workers: int = 1,
        augment: bool = True,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
        download: bool = False,
        splits: tuple[str, ...] = ("train", "test"),
        image_size: int | None = None,
        holdout: int = 0,
    ):
        preprocessing = find_preprocessing(name, image_size)
        source = SOURCES[name]
        self.name = name
        self.batch_size = batch_size
        self.threads = min(num_parallel_workers, os.cpu_count() or 1)
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.size = size
        self.root = source.find(path, splits, download)
        self.images = {split: source.open(self.root, split, preprocessing, self.threads) for split in splits}
        self.preprocessing = replace(preprocessing, classes=self._common_classes())
        self.num_classes = len(self.preprocessing.classes)
        self.held_out, self.trained = np.zeros(0, int), np.zeros(0, int)
        if "train" in splits:
            self._hold_out(holdout)
        self.found = self._times()
        self.reader: BatchReader | None = None  # of the epoch under way
        self.delivered = 0  # number of its batches that were given
        if self.has_files and self.threads < num_parallel_workers and rank == 0:
            print(
                f"warning: data.num_parallel_workers is {num_parallel_workers}, but this machine has {self.threads} "
                f"cores: {self.threads} threads read images",
                file=sys.stderr,
            )

    @property
    def has_files(self) -> bool:
        """Whether each image has a file of its own."""
        return any(images.paths for images in self.images.values())

    @property
    def replaced(self) -> int | None:
        """Number of images in the batches given since the last call of `train` that could not be decoded and were
        replaced. None after `train_pipeline`: how many batches a device has read is unknown."""
        return self.reader and sum(self.reader.replaced[: self.delivered])

    @cached_property
    def checksum(self) -> str | None:
        """The first 16 digits of a SHA-256 over the images of all open splits, in order; None if each has a file."""
        found = [images.checksum() for images in self.images.values()]
        if None in found:
            return None
        return hashlib.sha256("".join(found).encode()).hexdigest()[:16]

    def check(self, splits: tuple[str, ...] | None = None, shared: bool = True) -> int:
        """Decode every image file of these splits, or of all open splits, with a progress bar; return their number.

        Held-out images are always included, as they are evaluated. If `shared`, the workers divide the images. Data
        sets without a file for each image were verified when they were opened: 0.

        Raises:
            UserError: names the first image that cannot be decoded, and the number of such images.
        """
        paths = [path for split in splits or self.images for path in self.images[split].paths]
        if splits and "train" not in splits and "train" in self.images and self.images["train"].paths:
            paths += [self.images["train"].paths[index] for index in self.held_out]
        if shared:
            paths = paths[self.rank :: self.size]
        broken = []
        with ThreadPoolExecutor(self.threads) as pool, tqdm(total=len(paths), unit="image", disable=not paths) as bar:
            for start in range(0, len(paths), CHECKED_AT_ONCE):
                some = paths[start : start + CHECKED_AT_ONCE]
                reasons = pool.map(_why_undecodable, some)
                broken += [(path, reason) for path, reason in zip(some, reasons, strict=True) if reason]
                bar.update(len(some))
        if broken:
            (path, reason), others = broken[0], len(broken) - 1
            raise UserError(
                f"{len(broken)} of {len(paths)} images cannot be decoded, first {path} ({reason})"
                + (f", then {', '.join(path for path, _ in broken[1:4])}" if others else "")
                + (", ..." if others > 3 else "")
                + ": replace or delete them"
            )
        return len(paths)

    def train_steps(self) -> int:
        """Full batches per epoch and worker. A last partial batch is dropped: its shape would compile a second graph.

        Raises:
            UserError: a worker has fewer images than one batch.
        """
        images = self.train_images() // self.size
        if images < self.batch_size:
            raise UserError(f"data.batch_size is {self.batch_size}, but a worker has only {images} training images")
        return images // self.batch_size

    def train_images(self) -> int:
        """Number of training images over all workers, without held-out images."""
        return len(self.trained)

    def test_images(self) -> int:
        """Number of test images over all workers."""
        return len(self.images["test"])

    def validation_images(self) -> int:
        """Number of held-out training images over all workers."""
        return len(self.held_out)

    def test_batches(self) -> int:
        """Largest number of test batches of any worker."""
        return self._most_batches(self.test_images())

    def validation_batches(self) -> int:
        """Largest number of held-out batches of any worker."""
        return self._most_batches(self.validation_images())

    def train(self, epoch: int, skip: int = 0, stop: int | None = None) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches (images float32 (N, 3, H, W), labels int32 (N,)) of this worker, from batch `skip` up to but not
        including batch `stop`, or to the end. Skipped batches are not read.

        Seed and epoch fix the order of all workers' images. Of the global batch of a step, worker r takes numbers r,
        r + size, r + 2 size and so on, so the images of a step are, over all workers, the same for any number of
        workers with the same global batch. How an image is augmented depends on seed, epoch and image only. So a
        resumed run sees the same batches as one that was not stopped. An image that cannot be decoded is replaced by
        the next one in the order, and counted by `replaced`.

        Raises:
            UserError: image folders have changed since they were opened, or too many images cannot be decoded.
        """
        pipeline = self.train_pipeline(epoch, skip, stop)
        self.reader, self.delivered = pipeline.source, 0
        return self._counted(self._read(pipeline))

    def train_pipeline(self, epoch: int, skip: int = 0, stop: int | None = None) -> engine.GeneratorDataset:
        """The MindSpore dataset of the batches that `train` gives, for a device that reads them by itself."""
        self._require_unchanged()
        self.reader = None
        place = Epoch(self.seed, epoch)
        order = place.generator("order").permutation(self.trained)
        mine = order[self.rank :: self.size]
        count = len(order) // self.size // self.batch_size
        batches = mine[: count * self.batch_size].reshape(count, self.batch_size)[skip:stop]
        return _pipeline(BatchReader(self.images["train"], batches, place if self.augment else None, order))

    def test(self) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches of this worker's test images in the file's order; the last one may be smaller.

        The workers' parts follow each other, none is padded: together they are the test set, each image once. With more
        workers than images some get none.

        Raises:
            UserError: image folders have changed since they were opened, or an image cannot be decoded.
        """
        return self._evaluation("test", np.arange(self.test_images()))

    def validation(self) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Batches of this worker's held-out training images, transformed and divided as those of `test`."""
        return self._evaluation("train", self.held_out)

    def _evaluation(self, split: str, indices: np.ndarray) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        self._require_unchanged()
        mine = indices[len(indices) * self.rank // self.size : len(indices) * (self.rank + 1) // self.size]
        batches = [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]
        return self._read(_pipeline(BatchReader(self.images[split], batches))) if batches else iter(())

    def _most_batches(self, images: int) -> int:
        largest = -(-images // self.size)
        return -(-largest // self.batch_size)

    def _common_classes(self) -> tuple[str, ...]:
        first, *others = self.images.values()
        for other in others:
            differing = sorted(set(first.classes) ^ set(other.classes))
            if differing:
                raise UserError(
                    f"the splits in {self.root} have different classes: {differing[0]} is in only one of them "
                    f"({len(differing)} such)"
                )
        return first.classes

    def _hold_out(self, holdout: int) -> None:
        images = len(self.images["train"])
        if holdout >= images:
            raise UserError(
                f"data.holdout is {holdout}, but {self.name} has {images} training images: at most {images - 1} can be "
                "held out"
            )
        shuffled = np.random.default_rng(HOLDOUT_SEED).permutation(images)
        self.held_out, self.trained = np.sort(shuffled[:holdout]), np.sort(shuffled[holdout:])

    def _require_unchanged(self) -> None:
        """UserError if a folder is missing, or images were added or removed, since the set was opened."""
        for path, now in self._times().items():
            if now != self.found[path]:
                what = "is gone" if now is None else "has changed"
                raise UserError(
                    f"the data set changed while it was used: {path} {what}; put it back and resume the run"
                )

    def _times(self) -> dict[str, int | None]:
        """The time of the last change of each image folder, in ns; None if the folder is missing."""
        return {path: _changed(path) for images in self.images.values() for path in images.folders}

    def _counted(self, batches: Iterator) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        for batch in batches:
            self.delivered += 1
            yield batch

    def _read(self, pipeline: engine.GeneratorDataset) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        try:
            yield from pipeline.create_tuple_iterator(num_epochs=1)
        except RuntimeError as error:
            if pipeline.source.error is None:
                raise
            raise pipeline.source.error from error  # MindSpore's error has only its text


class BatchReader:
    """Whole batches as the rows of a MindSpore dataset: (images float32 (B, 3, H, W), labels int32 (B,)).

    Args:
        images: images of the split.
        batches: the numbers of each batch's images.
        augment: the epoch whose augmentation is applied; None: no augmentation.
        order: numbers of all images of the epoch, in order; an image that cannot be decoded is replaced by the next
            one. None: an image that cannot be decoded is an error.

    Attributes:
        replaced: number of replaced images in each batch that was read.
        error: the exception that ended the reading.
    """

    def __init__(
        self,
        images: Images,
        batches: Sequence[np.ndarray],
        augment: Epoch | None = None,
        order: np.ndarray | None = None,
    ):
        self.images = images
        self.batches = batches
        self.augment = augment
        self.order = order
        self.replaced = [0] * len(batches)
        self.error: Exception | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            indices = np.array(self.batches[number])
            pixels, broken = self.images.read(indices, self.augment)
            self.replaced[number] = len(broken)
            for _ in range(MAX_REPLACEMENTS):
                if not broken or self.order is None:
                    break
                positions = list(broken)
                indices[positions] = self._following(indices[positions])
                pixels[positions], again = self.images.read(indices[positions], self.augment)
                broken = {positions[place]: reason for place, reason in again.items()}
            for position, reason in broken.items():
                raise UserError(
                    f"{self.images.paths[indices[position]]} cannot be decoded ({reason})"
                    + (f", nor can the {MAX_REPLACEMENTS} images before it" if self.order is not None else "")
                    + "; --check_data finds all such images"
                )
            return pixels, self.images.labels[indices]
        except Exception as error:
            self.error = error
            raise

    def _following(self, indices: np.ndarray) -> np.ndarray:
        positions = np.argsort(self.order)[np.searchsorted(np.sort(self.order), indices)]
        return self.order[(positions + 1) % len(self.order)]


def _pipeline(reader: BatchReader) -> engine.GeneratorDataset:
    engine.config.set_prefetch_size(PREFETCHED_BATCHES)
    return engine.GeneratorDataset(
        reader,
        ["image", "label"],
        shuffle=False,
        num_parallel_workers=1,  # more would take SIGTERM from the process
        python_multiprocessing=False,
    )


def _why_undecodable(path: str) -> str | None:
    try:
        open_image(path)
    except UndecodableImage as error:
        return str(error)
    return None


def _changed(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def open_dataset(name: str, **options) -> Dataset:
    """Open a `Dataset`. The arguments are those of the class."""
    return Dataset(name, **options)
