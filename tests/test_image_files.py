"""One image file to pixels: kinds of files, damaged and hostile ones, extreme shapes."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from src.data.random_crop import random_crop
from src.image_files import MAX_LENGTH, MAX_PIXELS, UndecodableImage, centre, open_image
from src.preprocessing import PREPROCESSING

FOLDER = PREPROCESSING["folder"]


def saved(path, values: np.ndarray, mode: str | None = None, **options) -> str:
    Image.fromarray(values, mode).save(path, **options) if mode else Image.fromarray(values).save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_becomes_its_upper_8_bits(tmp_path, suffix):
    values = np.arange(0, 65536, 256 / 7, dtype=float).astype(np.uint16)[:1750].reshape(50, 35)
    pixels = np.asarray(open_image(saved(tmp_path / f"grey.{suffix}", values)))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (8, 6), (255, 255, 255)).convert("RGBA" if mode == "LA" else mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    (image.convert("LA") if mode == "LA" else image).save(path)
    found = open_image(str(path))
    assert found.mode == "RGB" and np.asarray(found).min() >= 254


def test_a_palette_with_transparency_raises_no_warning(tmp_path, recwarn):
    image = Image.new("P", (8, 6))
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "image.png", transparency=bytes([0] * 256))
    assert np.asarray(open_image(str(tmp_path / "image.png")))[0, 0].tolist() == [10, 20, 30]
    assert not recwarn.list


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for name in ("image.gif", "image.webp", "image.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(open_image(str(tmp_path / name)))[0, 0].astype(int) - [255, 0, 0]).max() < 3


def test_the_content_counts_and_not_the_suffix(tmp_path):
    image = Image.new("RGB", (8, 6), (9, 9, 9))
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        image.save(tmp_path / "image.jpg", kind)
        assert np.abs(np.asarray(open_image(str(tmp_path / "image.jpg"))).astype(int) - 9).max() < 3


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_a_refusal_names_its_reason(tmp_path):
    values = np.full((6, 8), 1e5)
    jpeg = Path(saved(tmp_path / "sound.jpg", np.zeros((60, 80, 3), np.uint8))).read_bytes()
    ppm = b"P6 2 2 255 " + bytes(12)
    for path, reason in (
        (written(tmp_path / "text.jpg", b"no image"), "its content is not JPEG, PNG, BMP, TIFF, WEBP or GIF"),
        (written(tmp_path / "empty.png", b""), "its content is not JPEG"),
        (written(tmp_path / "ppm.png", ppm), "its content is not JPEG"),
        (written(tmp_path / "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "its content is"),
        (written(tmp_path / "cut.jpg", jpeg[: len(jpeg) - 200]), "(?i)truncated"),
        (saved(tmp_path / "float.tif", values.astype(np.float32)), "its pixels have mode F"),
        (saved(tmp_path / "int32.tif", values.astype(np.int32)), "its grey values have a sign or more than 16 bits"),
        (saved(tmp_path / "dark.tif", np.full((6, 8), 200, np.int32)), "its grey values have a sign or more than"),
        (str(tmp_path), "Is a directory"),
        (str(tmp_path / "nowhere.jpg"), "No such file"),
    ):
        with pytest.raises(UndecodableImage, match=reason) as refusal:
            open_image(path)
        assert "\n" not in str(refusal.value)


def bomb(path: Path, width: int, height: int) -> str:
    """A PNG with only a header, which has the size."""
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    stream = PngImagePlugin.o32(PngImagePlugin._crc32(bytes(content[12:29])))
    content[29:33] = stream
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(("width", "height"), [(14_000, 14_000), (MAX_PIXELS // 1000 + 1, 1000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, width, height, recwarn, monkeypatch):
    """Pillow's own warning, and above twice as many pixels its error, would come before the sentence."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the image was decoded"))
    with pytest.raises(UndecodableImage, match=f"it has {width * height:,} pixels, but at most 89,478,485 are decoded"):
        open_image(bomb(tmp_path / "bomb.png", width, height))
    assert not recwarn.list


@pytest.fixture
def small_images_only(monkeypatch):
    """Scaling fails if it would make an image of more than 0.6 megapixels. Pillow's memory is not Python's."""
    resize = Image.Image.resize

    def bounded(image, size, *arguments, **options):
        assert math.prod(size) <= MAX_LENGTH * 256 * 256
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", bounded)


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (1, 1), (3, 900), (900, 3)])
def test_an_extreme_shape_gives_an_image_and_takes_no_more_memory(tmp_path, shape, small_images_only):
    """Scaled as a whole, 20000 x 1 would be 5,120,000 x 256, 4 GB."""
    values = np.full((*shape, 3), 77, np.uint8)
    image = open_image(saved(tmp_path / "long.png", values))
    crops = [random_crop(image, np.random.default_rng(seed), 224) for seed in range(20)]
    for pixels in [centre(image, FOLDER), *crops]:
        assert pixels.shape == (224, 224, 3) and (pixels == 77).all()


@pytest.mark.parametrize(("length", "width", "painted"), [(1000, 10, 20), (20_000, 1, 2)])
def test_of_a_very_long_image_evaluation_sees_the_middle(length, width, painted, small_images_only):
    values = np.zeros((width, length, 3), np.uint8)
    start = (length - painted) // 2
    values[:, start : start + painted] = 200
    for image in (values, values.transpose(1, 0, 2)):
        assert (centre(Image.fromarray(image), FOLDER) == 200).all()
