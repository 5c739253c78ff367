"""The random part of an image that training sees."""

import math

import numpy as np
from PIL import Image

from ..image_files import Box, middle

AREA = (0.08, 1.0)  # area of a random crop, as a share of the image's
ASPECT_RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10  # to draw a crop that lies inside the image


def random_box(width: int, height: int, generator: np.random.Generator) -> Box:
    """Draw a crop of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3, as Inception and its successors do.

    After ten draws that do not fit, the largest centre crop with an aspect ratio in that range is taken.
    """
    areas = generator.uniform(*AREA, ATTEMPTS) * (width * height)
    ratios = np.exp(generator.uniform(*np.log(ASPECT_RATIO), ATTEMPTS))
    for area, ratio in zip(areas.tolist(), ratios.tolist(), strict=True):
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = generator.integers(0, (width - wide + 1, height - high + 1)).tolist()
            return left, top, left + wide, top + high
    widest, highest = max(1, round(height * ASPECT_RATIO[1])), max(1, round(width / ASPECT_RATIO[0]))
    return middle((width, height), min(width, widest), min(height, highest))


def random_crop(image: Image.Image, generator: np.random.Generator, size: int) -> np.ndarray:
    """A random part of an RGB image, scaled to uint8 (size, size, 3) and mirrored every second time on average."""
    pixels = np.asarray(image.resize((size, size), Image.BILINEAR, random_box(*image.size, generator)))
    return pixels[:, ::-1] if generator.integers(2) else pixels
