"""Predict the classes of image files, in batches. A file that is no image does not stop the others."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..image_files import SUFFIXES, UndecodableImage, open_image
from .exported_model import filled
from .predictor import Model

DECODERS = 4  # threads


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image with their probabilities, in falling order; or why there are none."""

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def find_images(paths: Sequence[str]) -> Iterator[Prediction | str]:
    """The paths, with folders replaced by the image files below them, in the order of their names.

    Hidden files and folders are left out. A folder without images, one that cannot be read and a link to a folder
    become a `Prediction` with an error.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found, unreadable = False, []
        for folder, folders, files in os.walk(path, onerror=unreadable.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for link in filter(os.path.islink, (os.path.join(folder, name) for name in folders)):
                yield Prediction(link, error="links to folders are not followed")
            for name in sorted(files):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    found = True
                    yield os.path.join(folder, name)
        for error in unreadable:
            yield Prediction(str(error.filename), error=error.strerror)
        if not found and not unreadable:
            yield Prediction(path, error=f"no file in this folder ends in {', '.join(SUFFIXES)}")


def predict(model: Model, images: Sequence[Prediction | str], batch_size: int, top: int) -> Iterator[Prediction]:
    """Yield a `Prediction` for each image, in their order.

    Args:
        images: what `find_images` yields.
        batch_size: images that are decoded and run at once.
        top: number of classes of a prediction.
    """
    size = model.batch_size or min(batch_size, len(images))
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(images), size):
            some = images[start : start + size]
            prepared = list(pool.map(lambda image: _prepare(model, image), some))
            good = [pixels for pixels in prepared if isinstance(pixels, np.ndarray)]
            if good:
                probabilities = iter(model.probabilities(filled(np.stack(good), size)))
            for image, result in zip(some, prepared, strict=True):
                yield (
                    result if isinstance(result, Prediction) else _best(image, next(probabilities), model.classes, top)
                )


def _prepare(model: Model, image: Prediction | str) -> Prediction | np.ndarray:
    if isinstance(image, Prediction):
        return image
    try:
        if Path(image).exists() and not Path(image).is_file():  # opening a pipe would wait for a writer
            return Prediction(image, error="it is not a file")
        return model.prepare(open_image(image))
    except (UndecodableImage, OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Prediction(image, error=getattr(error, "strerror", None) or str(error))


def _best(image: str, probabilities: np.ndarray, classes: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(image, tuple((classes[index], float(probabilities[index])) for index in order))
