"""Data sets in, batches out. `open_dataset(name, ...)` gives a `Dataset` of one name or another."""

from src.data.dataset import Dataset, find_preprocessing, open_dataset

__all__ = ["Dataset", "find_preprocessing", "open_dataset"]
