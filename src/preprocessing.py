"""Size, normalisation and class names of each data set, as plain data for training and deployment alike."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Preprocessing:
    """An image becomes a network's input as (pixel / 255 - mean) / std per channel, RGB, laid out N, C, H, W."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    layout: str = "NCHW"
    color: str = "RGB"

    def to_dict(self) -> dict:
        return asdict(self)


PREPROCESSING = {
    # The release normalises CIFAR-10 with these numbers, which are ImageNet's.
    "cifar10": Preprocessing(
        32,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "digits": Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tuple("0123456789")),
}
