"""Entry point of MindSpore Hub: build a network by name."""

from mindspore import nn

from src.models import create_model


def create_network(name: str, *args, **kwargs) -> nn.Cell:
    """`src.models.create_model(name, *args, **kwargs)`: for example create_network("resnet20", num_classes=10)."""
    return create_model(name, *args, **kwargs)
