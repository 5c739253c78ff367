"""Networks. Importing this package registers each of them with mindcv as `fda_<name>`."""

from . import alexnet, bireal_resnet, resnet20, vgg_small  # noqa: F401  (they register themselves)
from .registry import NETWORKS, create_model

__all__ = ["NETWORKS", "create_model"]
