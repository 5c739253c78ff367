"""Networks. Importing this registers each as `fda_<name>` with mindcv."""

from src.models import resnet20  # noqa: F401  (registers itself)
from src.models.registry import NETWORKS, create_model

__all__ = ["NETWORKS", "create_model"]
