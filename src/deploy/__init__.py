"""Export of trained networks to files, and prediction with them. Importing this package does not import MindSpore;
some of its modules do."""

from .predictor import Model, load_model

__all__ = ["Model", "load_model"]
