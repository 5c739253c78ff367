"""A folder tree of images in ImageNet's layout, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60))


def write_tree(root: Path, train: int, test: int, classes: int = 4, size: tuple[int, int] = (150, 120)) -> Path:
    """`train` and `test` images in total, the classes in turn, each with its own colour under noise."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for number in range(count):
            label = number % classes
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = generator.normal(0, 40, (size[1], size[0], 3))
            pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.JPEG", quality=90)
    return root
