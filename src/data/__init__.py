"""Data sets as batches. `open_dataset(name, ...)` opens a `Dataset`."""

from .dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
