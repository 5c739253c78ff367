"""Data sets in, batches out. `open_dataset(name, ...)` gives a `Dataset` of one name or another."""

from .dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
