"""Read one image file. Training, evaluation, `--check_data` and prediction all use this module, so they see the same
pixels.

Pillow decodes. What a file holds is decided by its content, not by its suffix. 16-bit grey becomes value >> 8, as
16-bit colour does; transparency is dropped; CMYK and palettes become RGB; EXIF orientation is not applied; of an
animated or multi-page file the first image is taken.
"""

import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import UserError
from .preprocessing import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")  # in lower or upper case
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # Pillow's others can run programs or need further libraries
MAX_PIXELS = 89_478_485  # 256 MiB as RGB; above it Pillow by itself warns of decompression bombs
MODES_TO_RGB = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
MAX_LENGTH = 8  # longer side of a scaled image, in multiples of the shorter side
Box = tuple[int, int, int, int]  # left, top, right, bottom


class UndecodableImage(UserError):
    """An image file that cannot be used; the message is the reason, without the path."""


def open_image(path: str) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        UndecodableImage: it cannot be read, is damaged or truncated, has another format or more than `MAX_PIXELS`
            pixels, or its values are not 8-bit or unsigned 16-bit.
    """
    Image.MAX_IMAGE_PIXELS = None  # instead of a warning of Pillow there is the check below, with the true size
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = math.prod(image.size)
            if pixels > MAX_PIXELS:
                raise UndecodableImage(f"it has {pixels:,} pixels, but at most {MAX_PIXELS:,} are decoded")
            return _as_rgb(image)
    except (UndecodableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise UndecodableImage(reason or type(error).__name__) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" and image.format != "PNG":  # some versions of Pillow open 16-bit PNG as "I"
        raise UndecodableImage("its grey values have a sign or more than 16 bits")
    if image.mode.startswith("I"):  # "I;16" and the like
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in MODES_TO_RGB:
        raise UndecodableImage(f"its pixels have mode {image.mode}, but 8-bit or 16-bit colour or grey is expected")
    if image.mode == "RGB":
        image.load()  # the file is about to be closed; `convert` would copy as well
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    return image.convert("RGB")


def centre(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The part of an RGB image that evaluation sees: scaled so that the shorter side has `shorter_side` pixels (None:
    `size`), the size x size centre of that; uint8 (size, size, 3).

    Only the middle is scaled of an image longer than `MAX_LENGTH` times its shorter side: the whole would take
    gigabytes.
    """
    size, shorter_side = preprocessing.size, preprocessing.shorter_side or preprocessing.size
    longest = MAX_LENGTH * min(image.size)
    if max(image.size) > longest:
        image = image.crop(middle(image.size, min(image.width, longest), min(image.height, longest)))
    width, height = image.size
    if width < height:
        scaled = image.resize((shorter_side, shorter_side * height // width), Image.BILINEAR)
    else:
        scaled = image.resize((shorter_side * width // height, shorter_side), Image.BILINEAR)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def middle(shape: tuple[int, int], width: int, height: int) -> Box:
    """The box of width x height in the middle of an image of that shape (width, height)."""
    left, top = (shape[0] - width) // 2, (shape[1] - height) // 2
    return left, top, left + width, top + height
